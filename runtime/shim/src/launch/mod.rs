//! The launcher: what a forked copy of the shim does until it is the container's program.
//!
//! ```text
//! shim ── clone ──► launcher: streams, session, cgroup ─ mount namespace ─ layers, mounts, devices, masks ─ pivot_root
//!   ▲                          ─ user, capabilities, seccomp ─ exec
//!   └───── reports (warnings, terminal, ready, failed) over a packet socket that exec closes
//! ```
//! The shim never waits for it. It decides nothing: all of it is in the [`LaunchSpec`].

mod devices;
mod error;
mod hooks;
mod idmap;
mod mounts;
mod oci;
mod process;
mod program;
mod reaper;
pub mod report;
mod resolve;
mod restrict;
mod rootfs;
mod terminal;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, fchdir, pivot_root};

pub use self::error::LaunchError;
pub use self::error::chain;
pub use self::oci::pid_file;
pub use self::process::become_nobody;
use self::process::{Inside, Labels};
pub use self::reaper::NAME as REAPER;
use self::report::{Report, send, wait_for_release};
use self::resolve::{Make, Root};
use crate::protocol::{LaunchSpec, OciRuntime, Placement, ProcessSpec};
use crate::sys;
use crate::user_namespace::UserNamespace;

/// The program's ends of its standard streams; what is not there is the null device.
#[derive(Debug, Default)]
pub struct Streams {
    /// To read from.
    pub stdin: Option<OwnedFd>,
    /// To write to.
    pub stdout: Option<OwnedFd>,
    /// To write to.
    pub stderr: Option<OwnedFd>,
}

/// A namespace to join.
#[derive(Debug)]
pub struct Join {
    /// Open file of the namespace.
    pub fd: OwnedFd,
    /// Its kind.
    pub kind: CloneFlags,
    /// Its name, for errors.
    pub name: &'static str,
}

/// Becomes the first process of a container. `placed`: it was cloned into its cgroup.
pub fn container(
    spec: &LaunchSpec,
    user: Option<&UserNamespace>,
    streams: &Streams,
    status: &OwnedFd,
    placed: bool,
) -> ! {
    let result = start(spec, user, streams, status, placed);
    give_up(&result, status)
}

/// Where a further process of a container belongs.
#[derive(Debug)]
pub struct Place {
    /// Its cgroups, one for v2 or one per controller for v1.
    pub cgroups: Vec<String>,
    /// On v2 the cgroup that the container's first process is in.
    pub first: Option<String>,
    /// The container's namespaces.
    pub join: [Join; 2],
}

/// Becomes a further process of a running container. `placed`: it was cloned into its cgroup.
pub fn exec(
    spec: &ProcessSpec,
    user: Option<&UserNamespace>,
    place: &Place,
    streams: &Streams,
    status: &OwnedFd,
    placed: bool,
) -> ! {
    let result = enter(spec, user, place, streams, status, placed);
    give_up(&result, status)
}

/// Becomes the command of another runtime that creates a container.
pub fn oci_create(spec: &LaunchSpec, oci: &OciRuntime, streams: &Streams, status: &OwnedFd) -> ! {
    let result = oci::create(spec, oci, streams, status);
    give_up(&result, status)
}

/// Becomes the command of another runtime that starts a container.
pub fn oci_start(container: &str, oci: &OciRuntime, status: &OwnedFd) -> ! {
    let result = oci::start(container, oci, status);
    give_up(&result, status)
}

/// Becomes the command of another runtime that runs a further process. `name` is that of its files.
pub fn oci_exec(
    container: &str,
    oci: &OciRuntime,
    process: &str,
    name: &str,
    streams: &Streams,
    status: &OwnedFd,
) -> ! {
    let result = oci::exec(container, oci, process, name, streams, status);
    give_up(&result, status)
}

/// Becomes process 1 of a PID namespace for all of the pod.
pub fn reaper(selinux_label: Option<&str>, status: &OwnedFd) -> ! {
    let result = reaper::become_reaper(selinux_label, status);
    give_up(&result, status)
}

fn give_up(result: &Result<(), LaunchError>, status: &OwnedFd) -> ! {
    let mut code = 128;
    if let Err(error) = result {
        let (kind, exit_code) = error.class();
        code = exit_code;
        // when even that fails, the shim sees an end without `Ready`
        let _ = send(status, &Report::Failed { kind, exit_code, message: chain(error) }, None);
    }
    sys::end_now(code)
}

fn start(
    spec: &LaunchSpec,
    user: Option<&UserNamespace>,
    streams: &Streams,
    status: &OwnedFd,
    placed: bool,
) -> Result<(), LaunchError> {
    let process = &spec.process;
    let kept: Vec<&OwnedFd> = user.iter().map(|user| &user.fd).collect();
    set_streams(streams, status, &kept)?;
    let owner = process::outside(process, user)?;
    process::reset()?;
    match spec.placement {
        Placement::Wait => wait_for_release(status).map_err(|source| LaunchError::Placement { source })?,
        Placement::Attach if !placed => process::attach(&spec.cgroups)?,
        Placement::Attach => {}
    }
    process::set_oom_score(process.oom_score_adj.unwrap_or(0), status)?;
    if spec.new_cgroup_namespace {
        // after the attach: its root is the cgroup one is in
        make_namespace(CloneFlags::CLONE_NEWCGROUP, "cgroup")?;
    }
    make_namespace(CloneFlags::CLONE_NEWNS, "mount")?;
    let labels = Labels::open(process)?;
    let shared = mounts::take_shared(&spec.mounts)?;
    mounts::cut_off()?;
    let root = rootfs::mount_layers(&spec.rootfs, user)?;
    let label = spec.rootfs.context.as_deref();
    mounts::mount_all(&root, &spec.mounts, shared, user, label)?;
    devices::make_all(&root, &spec.devices)?;
    devices::default_links(&root, &spec.mounts)?;
    if let Some(hooks) = &spec.hooks {
        // what they change must not be read-only yet
        hooks::create(hooks, &spec.rootfs.target, status)?;
    }
    if !process.cwd.is_empty() {
        root.make(&process.cwd, Make::Directory)
            .map_err(|source| LaunchError::Cwd { path: process.cwd.clone(), source })?;
    }
    restrict::mask(&root, &spec.masked_paths, label)?;
    restrict::make_readonly(&root, &spec.readonly_paths)?;
    if spec.readonly_rootfs {
        let (readonly, path) = (MsFlags::MS_RDONLY, String::from("/"));
        mounts::restrict(&root, readonly, false).map_err(|source| LaunchError::Readonly { path, source })?;
    }
    pivot(&root).map_err(|source| LaunchError::Pivot { source })?;
    if process.terminal {
        terminal::set_up(owner.0, owner.1, devices::own_dev(&spec.mounts), status)?;
    }
    let inside = user.map(|user| Inside { user, own_mounts: true });
    process::become_program(process, &labels, inside.as_ref(), spec.hooks.as_deref(), status)
}

fn enter(
    spec: &ProcessSpec,
    user: Option<&UserNamespace>,
    place: &Place,
    streams: &Streams,
    status: &OwnedFd,
    placed: bool,
) -> Result<(), LaunchError> {
    let mut keep: Vec<_> = place.join.iter().map(|namespace| &namespace.fd).collect();
    keep.extend(user.map(|user| &user.fd));
    set_streams(streams, status, &keep)?;
    process::reset()?;
    if !placed {
        process::attach_beside(&place.cgroups, place.first.as_ref())?;
    }
    if let Some(value) = spec.oom_score_adj {
        process::set_oom_score(value, status)?;
    }
    let labels = Labels::open(spec)?;
    for namespace in &place.join {
        setns(&namespace.fd, namespace.kind)
            .map_err(|source| LaunchError::Namespace { what: namespace.name, source })?;
    }
    let inside = user.map(|user| Inside { user, own_mounts: false });
    process::become_program(spec, &labels, inside.as_ref(), None, status)
}

fn make_namespace(kind: CloneFlags, what: &'static str) -> Result<(), LaunchError> {
    unshare(kind).map_err(|source| LaunchError::Namespace { what, source })
}

/// Puts the streams in place and closes everything else: what this copy of the shim holds is not the container's.
fn set_streams(streams: &Streams, status: &OwnedFd, others: &[&OwnedFd]) -> Result<(), LaunchError> {
    let mut keep = vec![status.as_raw_fd()];
    keep.extend([&streams.stdin, &streams.stdout, &streams.stderr].into_iter().flatten().map(AsRawFd::as_raw_fd));
    keep.extend(others.iter().map(|fd| fd.as_raw_fd()));
    sys::close_all_except(&keep);
    let failed = |number| move |source| LaunchError::Stdio { number, source };
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(0))?;
    let or_null = |stream| Option::as_ref(stream).map_or(null.as_fd(), OwnedFd::as_fd);
    dup2_stdin(or_null(&streams.stdin)).map_err(failed(0))?;
    dup2_stdout(or_null(&streams.stdout)).map_err(failed(1))?;
    dup2_stderr(or_null(&streams.stderr)).map_err(failed(2))
}

/// Makes the container's root the root and lets go of the host's.
fn pivot(root: &Root) -> nix::Result<()> {
    fchdir(root)?;
    // with both the same, the old root is mounted over the new one and can be detached: no directory is needed
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}
