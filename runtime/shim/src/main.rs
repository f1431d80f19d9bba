//! `nodeagent-shim --sandbox <id>`: supervisor of one pod, started by the daemon with a listening socket as descriptor
//! 3. It makes the pod's namespaces, launches its containers, owns their output, logs and exit codes, and outlives the
//! daemon. One thread, one epoll loop; nothing in it waits for anything else.

mod cgroup;
mod connection;
mod container;
mod context;
mod exec;
mod io;
mod launch;
mod launcher;
mod log;
mod memory_file;
mod namespaces;
mod oci;
mod output;
mod pod;
mod poll;
mod reaper;
mod server;
mod sys;
mod task;
mod user_namespace;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nodeagent_shim::protocol;

use crate::reaper::ReaperError;
use crate::server::{ServeError, Server};

/// Number of the listening socket.
const LISTENER: i32 = 3;

/// What can keep the shim from starting, or end it early.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error("usage: nodeagent-shim --sandbox <id>, with a listening socket as descriptor 3")]
    Usage,
    #[error("use descriptor 3 as listening socket")]
    Listener { source: nix::errno::Errno },
    #[error("open the host's network namespace")]
    HostNet { source: std::io::Error },
    #[error("set up the process")]
    Process { source: nix::errno::Errno },
    #[error("be the reaper")]
    Reaper { source: ReaperError },
    #[error("serve")]
    Serve { source: ServeError },
}

fn main() -> ExitCode {
    if let Some(code) = task::run(std::env::args_os()) {
        return code;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            io::complain(&launch::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), MainError> {
    if is_sole_reaper(std::env::args_os()) {
        return reaper::run_alone().map_err(|source| MainError::Reaper { source });
    }
    if let Some(socket) = reapers_socket(std::env::args_os()) {
        return reaper::run(socket).map_err(|source| MainError::Reaper { source });
    }
    let sandbox = sandbox_of(std::env::args_os().skip(1)).ok_or(MainError::Usage)?;
    if let Err(error) = memory_file::ensure() {
        io::complain(&format!("runs from a file that can be written: {error}"));
    }
    let listener = sys::inherited(LISTENER).map_err(|source| MainError::Listener { source })?;
    sys::close_all_except(&[LISTENER]);
    let signals = become_supervisor().map_err(|source| MainError::Process { source })?;
    let host_net: OwnedFd = File::open("/proc/self/ns/net").map_err(|source| MainError::HostNet { source })?.into();
    let server = Server::new(listener, signals, host_net, sandbox).map_err(|source| MainError::Serve { source })?;
    server.serve().map_err(|source| MainError::Serve { source })
}

fn sandbox_of(mut args: impl Iterator<Item = OsString>) -> Option<String> {
    let (flag, id) = (args.next()?, args.next()?.into_string().ok()?);
    (flag == "--sandbox" && !id.is_empty() && args.next().is_none()).then_some(id)
}

/// Whether this program is the first process of a pod that another runtime has made.
fn is_sole_reaper(mut args: impl Iterator<Item = OsString>) -> bool {
    let name = args.next();
    name.is_some_and(|name| name.to_str() == Some(reaper::PATH)) && args.next().is_none()
}

/// Number of the socket, if this program was executed as the reaper.
fn reapers_socket(mut args: impl Iterator<Item = OsString>) -> Option<i32> {
    if args.next()? != launch::REAPER {
        return None;
    }
    args.next()?.to_str()?.parse().ok()
}

fn become_supervisor() -> nix::Result<SignalFd> {
    // a session leader already: fine
    let _ = nix::unistd::setsid();
    prctl::set_child_subreaper(true)?;
    // no process of a container may look into this one
    prctl::set_dumpable(false)?;
    // the daemon wants none for itself, and passes that on; containers get what the host gives
    let _ = prctl::set_thp_disable(false);
    sys::default_signals();
    // directories of logs are for all to read, whatever the service's umask
    umask(Mode::from_bits_truncate(0o022));
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    SignalFd::with_flags(&all, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}
