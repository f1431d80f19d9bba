//! From a process of the shim to the container's: everything about it that is not a mount.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{Gid, Uid, chdir, fchown, getcwd, setgroups, setresgid, setresuid, setsid};

use super::error::LaunchError;
use super::hooks;
use super::program::Program;
use super::report::{Report, send};
use crate::protocol::{Hooks, ProcessSpec};
use crate::sys;
use crate::user_namespace::UserNamespace;

/// Puts back what a new program should find: a session of its own, no signal blocked or ignored.
pub fn reset() -> Result<(), LaunchError> {
    setsid().map_err(|source| LaunchError::Session { source })?;
    sys::default_signals();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(|source| LaunchError::Session { source })?;
    // modes are given exactly while the container is put together
    umask(Mode::empty());
    Ok(())
}

/// Moves this process into the cgroups.
pub fn attach(cgroups: &[String]) -> Result<(), LaunchError> {
    for dir in cgroups {
        write_file(&format!("{dir}/cgroup.procs"), "0")
            .map_err(|source| LaunchError::Cgroup { dir: dir.clone(), source })?;
    }
    Ok(())
}

/// As [`attach`], for a further process: where a cgroup of its own cannot be (on v2 the container may have made its
/// cgroup a threaded one, or one that only hands out controllers), it goes to where the container's first process is.
pub fn attach_beside(cgroups: &[String], first: Option<&String>) -> Result<(), LaunchError> {
    for dir in cgroups {
        match (attach(std::slice::from_ref(dir)), first) {
            (Err(LaunchError::Cgroup { source: Errno::EBUSY | Errno::EOPNOTSUPP, .. }), Some(first)) => {
                attach(std::slice::from_ref(first))?;
            }
            (result, _) => result?,
        }
    }
    Ok(())
}

fn write_file(path: &str, text: &str) -> nix::Result<()> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Tells of something given up.
pub fn warn<Fd: AsFd>(status: Fd, message: String) {
    // a shim that is gone hears nothing, and then nobody cares
    let _ = send(status, &Report::Warning { message }, None);
}

/// Sets the OOM score. Lower than inherited needs CAP_SYS_RESOURCE; without it the inherited one stays, with a word.
pub fn set_oom_score<Fd: AsFd>(value: i32, status: Fd) -> Result<(), LaunchError> {
    const PATH: &str = "/proc/self/oom_score_adj";
    match write_file(PATH, &value.to_string()) {
        Err(Errno::EACCES) => {
            let kept = fs::read_to_string(PATH).unwrap_or_default();
            warn(status, format!("oom_score_adj {value} is not permitted here; it stays {}", kept.trim()));
            Ok(())
        }
        result => result.map_err(|source| LaunchError::OomScore { value, source }),
    }
}

fn set_rlimits<Fd: AsFd>(process: &ProcessSpec, status: Fd) -> Result<(), LaunchError> {
    for &(resource, soft, hard) in &process.rlimits {
        match sys::set_rlimit(resource, soft, hard) {
            Err(Errno::EPERM) => {
                // the hard limit cannot be raised here: as much as there is
                let kept = sys::rlimit(resource).unwrap_or((soft, soft));
                sys::set_rlimit(resource, soft.min(kept.1), kept.1).map_err(|source| LaunchError::Rlimit {
                    resource,
                    soft,
                    hard,
                    source,
                })?;
                warn(
                    &status,
                    format!(
                        "resource limit {resource}: {soft}:{hard} is not permitted here, hard limit stays {}",
                        kept.1
                    ),
                );
            }
            result => result.map_err(|source| LaunchError::Rlimit { resource, soft, hard, source })?,
        }
    }
    Ok(())
}

/// Files of the host's `/proc` that the labels are written to. Opened before the container's `/proc`, which may be
/// anything, takes its place.
#[derive(Debug)]
pub struct Labels(Vec<(&'static str, String, File)>);

impl Labels {
    /// Opens what the process needs.
    pub fn open(process: &ProcessSpec) -> Result<Self, LaunchError> {
        let mut files = Vec::new();
        if let Some(label) = &process.selinux_label {
            files.push(("SELinux", label.clone(), open_attribute("SELinux", label, &["/proc/self/attr/exec"])?));
        }
        if let Some(profile) = &process.apparmor_profile {
            let paths = ["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"];
            let file = open_attribute("AppArmor", profile, &paths)?;
            files.push(("AppArmor", format!("exec {profile}"), file));
        }
        Ok(Self(files))
    }

    fn write(&self) -> Result<(), LaunchError> {
        for (what, label, file) in &self.0 {
            let mut file = file;
            file.write_all(label.as_bytes()).map_err(|error| LaunchError::Label {
                what,
                label: label.clone(),
                source: errno(error),
            })?;
        }
        Ok(())
    }
}

fn open_attribute(what: &'static str, label: &str, paths: &[&str]) -> Result<File, LaunchError> {
    let mut last = Errno::ENOENT;
    for path in paths {
        match OpenOptions::new().write(true).open(path) {
            Ok(file) => return Ok(file),
            Err(error) => last = errno(error),
        }
    }
    Err(LaunchError::Label { what, label: label.into(), source: last })
}

/// How to enter the pod's user namespace.
#[derive(Debug)]
pub struct Inside<'a> {
    /// The namespace.
    pub user: &'a UserNamespace,
    /// The mount namespace is to belong to it. What was mounted so far, with the rights of the host, is locked together
    /// by the kernel then: nothing of it can be taken off to see what is below.
    pub own_mounts: bool,
}

impl Inside<'_> {
    fn enter(&self) -> Result<(), LaunchError> {
        let failed = |source| LaunchError::UserNamespace { source };
        self.user.enter().map_err(failed)?;
        if self.own_mounts { unshare(CloneFlags::CLONE_NEWNS).map_err(failed) } else { Ok(()) }
    }
}

/// User and group of the process as the host sees them.
pub fn outside(process: &ProcessSpec, user: Option<&UserNamespace>) -> Result<(u32, u32), LaunchError> {
    let Some(ids) = user.map(|user| &user.ids) else { return Ok((process.uid, process.gid)) };
    let uid = ids.uid(process.uid).ok_or(LaunchError::UnmappedId { id: process.uid })?;
    let gid = ids.gid(process.gid).ok_or(LaunchError::UnmappedId { id: process.gid })?;
    Ok((uid, gid))
}

/// Turns this process, already inside the container's other namespaces and root, into the program. Returns only on
/// failure.
pub fn become_program(
    process: &ProcessSpec,
    labels: &Labels,
    inside: Option<&Inside<'_>>,
    hooks: Option<&Hooks>,
    status: &OwnedFd,
) -> Result<(), LaunchError> {
    let program = Program::new(process)?;
    let seccomp = match &process.seccomp {
        Some(text) => Some(STANDARD.decode(text).map_err(|_| LaunchError::Encoding { what: "the seccomp filter" })?),
        None => None,
    };
    own_keyring(status);
    give_streams(outside(process, inside.map(|inside| inside.user))?);
    let cwd = if process.cwd.is_empty() { "/" } else { process.cwd.as_str() };
    let as_root = chdir(cwd);

    // raising them is a right on the host
    set_rlimits(process, status)?;
    if let Some(inside) = inside {
        inside.enter()?;
    }
    let load = |filter: &Option<Vec<u8>>| match filter {
        Some(filter) => sys::load_seccomp(filter).map_err(|source| LaunchError::Seccomp { source }),
        None => Ok(()),
    };
    if !process.no_new_privs {
        // needs CAP_SYS_ADMIN, which is about to go
        load(&seccomp)?;
    }
    become_user(process, status)?;
    if as_root.is_err() {
        // a directory for the user alone, on a file system where root is nobody
        chdir(cwd).map_err(|source| LaunchError::Cwd { path: cwd.into(), source })?;
    }
    // a working directory outside the root would be a way to the host (CVE-2024-21626)
    if !getcwd().is_ok_and(|path| path.is_absolute()) {
        return Err(LaunchError::CwdOutside { path: cwd.into() });
    }
    umask(Mode::from_bits_truncate(process.umask.unwrap_or(0o022)));
    if process.no_new_privs {
        prctl::set_no_new_privs().map_err(|source| LaunchError::NoNewPrivs { source })?;
    }
    let file: CString = program.find()?;
    labels.write()?;
    if let Some(hooks) = hooks {
        hooks::start(hooks)?;
    }
    send(status, &Report::Ready, None).map_err(|source| LaunchError::Placement { source })?;
    sys::cloexec_from(3);
    if process.no_new_privs {
        load(&seccomp)?;
    }
    Err(program.execute(&file))
}

/// Gives up all rights for good, for a program of our own that needs none.
pub fn become_nobody(status: &OwnedFd) -> Result<(), LaunchError> {
    /// `nobody` everywhere; the kernel's overflow id.
    const NOBODY: u32 = 65534;
    become_user(&ProcessSpec { uid: NOBODY, gid: NOBODY, ..ProcessSpec::default() }, status)
}

/// What of a process that is about to execute a program of our own is not about files.
pub fn confine(labels: &Labels, status: &OwnedFd) -> Result<(), LaunchError> {
    own_keyring(status);
    prctl::set_no_new_privs().map_err(|source| LaunchError::NoNewPrivs { source })?;
    labels.write()
}

fn own_keyring(status: &OwnedFd) {
    match sys::new_session_keyring() {
        // ENOSYS: no keyrings; EPERM: a filter around us
        Ok(()) | Err(Errno::ENOSYS | Errno::EPERM) => {}
        Err(error) => warn(status, format!("no session keyring of its own: {error}")),
    }
}

/// Pipes belong to the container's user, so that opening `/dev/stdout` works.
fn give_streams((uid, gid): (u32, u32)) {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let pipe =
            fstat(stream).is_ok_and(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO);
        if pipe {
            // writing to the inherited descriptor works without it
            let _ = fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
    }
}

fn become_user(process: &ProcessSpec, status: &OwnedFd) -> Result<(), LaunchError> {
    let capabilities = |source| LaunchError::Capabilities { source };
    let user = |source| LaunchError::User { uid: process.uid, gid: process.gid, source };
    let mut want = process.capabilities;
    let have = sys::permitted_capabilities().map_err(capabilities)?;
    let known = (1 << (sys::last_capability() + 1)) - 1;
    let missing = (want.permitted | want.effective | want.inheritable) & known & !have;
    if missing != 0 {
        warn(status, format!("capabilities {missing:#x} are not permitted here"));
    }
    want.permitted &= have;
    want.effective &= want.permitted;
    want.inheritable &= have;
    want.ambient &= want.permitted & want.inheritable;

    sys::drop_bounding(want.bounding).map_err(capabilities)?;
    prctl::set_keepcaps(true).map_err(capabilities)?;
    let groups: Vec<Gid> = process.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(user)?;
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    setresgid(gid, gid, gid).map_err(user)?;
    setresuid(uid, uid, uid).map_err(user)?;
    prctl::set_keepcaps(false).map_err(capabilities)?;
    sys::set_capabilities(want.effective, want.permitted, want.inheritable).map_err(capabilities)?;
    // needs SETPCAP neither here nor there: ambient is bounded by the two sets just set
    sys::raise_ambient(want.ambient).map_err(capabilities)
}
