//! Becoming a command of another runtime: `create`, `start` and `exec` of an OCI runtime's command line.
//!
//! The layers are mounted in a mount namespace of the command's own, which the container's is then a copy of: the host
//! never sees them, and nothing has to be taken down after a crash. The program it creates is an orphan when the command
//! has ended, and so becomes a child of the shim, which is the nearest subreaper.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{execve, getppid};

use super::error::LaunchError;
use super::report::{Report, send};
use super::{Streams, make_namespace, mounts, process, rootfs, set_streams};
use crate::protocol::{LaunchSpec, OciRuntime};
use crate::sys;

/// Runtimes look programs up here, and some want to know where their own directory is.
const ENVIRONMENT: [&std::ffi::CStr; 2] =
    [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", c"HOME=/root"];

/// Name of the socket over which a runtime hands out a terminal.
const CONSOLE: &str = "console.sock";

/// `create`: the container is there afterwards, and waits for `start`.
pub(super) fn create(
    spec: &LaunchSpec,
    oci: &OciRuntime,
    streams: &Streams,
    status: &OwnedFd,
) -> Result<(), LaunchError> {
    set_streams(streams, status, &[])?;
    process::reset()?;
    make_namespace(CloneFlags::CLONE_NEWNS, "mount")?;
    mounts::cut_off()?;
    if !spec.rootfs.lower.is_empty() {
        rootfs::mount_layers(&spec.rootfs, None)?;
        private(&spec.rootfs.target)?;
    }
    for image in spec.mounts.iter().filter_map(|mount| mount.image.as_ref()) {
        rootfs::mount_layers(image, None)?;
    }
    let mut arguments: Vec<String> =
        ["create", "--bundle", &oci.bundle, "--pid-file", &pid_file(oci)].map(str::to_owned).into();
    if spec.process.terminal {
        arguments.extend(["--console-socket".to_owned(), console(oci, status)?]);
    }
    arguments.push(spec.container.clone());
    run(oci, "runtime.log", &arguments, status)
}

/// Runtimes want the root to be a mount of its own, from which nothing spreads.
fn private(target: &str) -> Result<(), LaunchError> {
    mount(None::<&str>, target, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|source| LaunchError::Attributes { target: target.to_owned(), source })
}

/// `start`: lets the container's program begin.
pub(super) fn start(container: &str, oci: &OciRuntime, status: &OwnedFd) -> Result<(), LaunchError> {
    set_streams(&Streams::default(), status, &[])?;
    process::reset()?;
    run(oci, "runtime.log", &["start".to_owned(), container.to_owned()], status)
}

/// `exec`: runs a further process and ends with its exit code.
pub(super) fn exec(
    container: &str,
    oci: &OciRuntime,
    process: &str,
    name: &str,
    streams: &Streams,
    status: &OwnedFd,
) -> Result<(), LaunchError> {
    set_streams(streams, status, &[])?;
    process::reset()?;
    let failed = |source| LaunchError::Open { path: "the process of an exec".into(), source };
    // kept across exec, by whose descriptor the runtime opens it
    let file = memfd_create(c"process.json", MFdFlags::empty()).map_err(failed)?;
    let mut file = std::fs::File::from(file);
    file.write_all(process.as_bytes()).map_err(|error| failed(errno(&error)))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let pid_file = format!("{}/{name}.pid", oci.bundle);
    let arguments = ["exec", "--process", &path, "--pid-file", &pid_file, container].map(str::to_owned);
    run(oci, &format!("{name}.log"), &arguments, status)
}

/// Where `create` writes the number of the container's first process.
pub fn pid_file(oci: &OciRuntime) -> String {
    format!("{}/pid", oci.bundle)
}

fn run(oci: &OciRuntime, log: &str, arguments: &[String], status: &OwnedFd) -> Result<(), LaunchError> {
    umask(Mode::from_bits_truncate(0o022));
    let text = |text: &str| CString::new(text).map_err(|_| LaunchError::ZeroByte { what: "an argument" });
    let program = text(&oci.program)?;
    let log = text(&format!("{}/{log}", oci.bundle))?;
    let mut all = vec![program.clone(), text("--log")?, log, text("--log-format")?, text("json")?];
    for argument in oci.options.iter().chain(arguments) {
        all.push(text(argument)?);
    }
    let failed = |source| LaunchError::Execute { program: oci.program.clone(), source };
    send(status, &Report::Ready, None).map_err(failed)?;
    match execve(program.as_c_str(), &all, &ENVIRONMENT) {
        Ok(never) => match never {},
        Err(source) => Err(failed(source)),
    }
}

/// Has a helper wait for the terminal, and hand it on as launchers do. Says where the socket is: by the descriptor of its
/// directory, since its path may be longer than an address can be.
fn console(oci: &OciRuntime, status: &OwnedFd) -> Result<String, LaunchError> {
    let failed = |source| LaunchError::Open { path: format!("{}/{CONSOLE}", oci.bundle), source };
    let directory = open(oci.bundle.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).map_err(failed)?;
    let path = format!("/proc/self/fd/{}/{CONSOLE}", directory.as_raw_fd());
    // of a start that was cut off
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(|error| failed(errno(&error)))?;
    let runtime = std::process::id().cast_signed();
    if sys::clone_process(0, None).map_err(failed)?.is_none() {
        hand_on(&listener, runtime, status);
        sys::end_now(0);
    }
    // stays open for the runtime
    std::mem::forget(directory);
    Ok(path)
}

/// Waits until the runtime, our parent, has sent a terminal or has ended.
fn hand_on(listener: &UnixListener, runtime: i32, status: &OwnedFd) {
    let Ok(ended) = end_of_parent() else { return };
    loop {
        // one that ended before it was to be told
        let gone = getppid().as_raw() != runtime;
        let mut ready =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, if gone { PollTimeout::ZERO } else { PollTimeout::NONE }) {
            Ok(_) if ready[0].any() == Some(true) => break,
            Ok(_) if !gone => {}
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
    if let Ok((connection, _)) = listener.accept()
        && let Some(terminal) = super::report::receive_descriptor(&connection)
    {
        // without it the container runs on, its output unread: the launcher's report is missing then, and said to be
        let _ = send(status, &Report::Terminal, Some(terminal.as_raw_fd()));
    }
}

/// Readable when the parent has ended: by a signal, since kernel 4.18 has no descriptor of a process.
fn end_of_parent() -> nix::Result<SignalFd> {
    let told = SigSet::from(Signal::SIGTERM);
    told.thread_block()?;
    let descriptor = SignalFd::with_flags(&told, SfdFlags::SFD_CLOEXEC)?;
    set_pdeathsig(Signal::SIGTERM)?;
    Ok(descriptor)
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
