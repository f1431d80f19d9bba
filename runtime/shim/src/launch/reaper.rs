//! Making the reaper: process 1 of a shared PID namespace, in an empty root. It becomes nobody itself, because the
//! program may be executed by root alone.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;

use super::error::LaunchError;
use super::process::{self, Labels};
use super::resolve::Root;
use super::{Streams, make_namespace, mounts, pivot, set_streams};
use crate::io::open_path;
use crate::protocol::ProcessSpec;
use crate::{memory_file, sys};

/// Name under which the program is the reaper.
pub const NAME: &str = "nodeagent-reaper";

/// Where the empty root is mounted: a directory that every host has. Only this process sees it.
const PLACE: &str = "/proc";

/// Becomes the reaper; it says itself that it is ready, over `status`.
pub(super) fn become_reaper(selinux_label: Option<&str>, status: &OwnedFd) -> Result<(), LaunchError> {
    let open = |error: std::io::Error| LaunchError::Open {
        path: "/proc/self/exe".into(),
        source: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    };
    let program: OwnedFd = memory_file::own().map_err(open)?.into();
    set_streams(&Streams::default(), status, &[&program])?;
    process::reset()?;
    let spec = ProcessSpec { selinux_label: selinux_label.map(Into::into), ..ProcessSpec::default() };
    let labels = Labels::open(&spec)?;
    make_namespace(CloneFlags::CLONE_NEWNS, "mount")?;
    mounts::cut_off()?;
    let empty = |source| LaunchError::Mount { what: "an empty root".into(), target: PLACE.into(), source };
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, Some("nr_blocks=1,nr_inodes=1")).map_err(empty)?;
    let root = Root::new(open_path(PLACE).map_err(empty)?);
    pivot(&root).map_err(|source| LaunchError::Pivot { source })?;
    process::confine(&labels, status)?;
    sys::cloexec_from(3);
    let failed = |source| LaunchError::Execute { program: NAME.into(), source };
    sys::keep_across_exec(status).map_err(failed)?;
    let argument = |text: String| CString::new(text).map_err(|_| LaunchError::ZeroByte { what: "an argument" });
    let args = [argument(NAME.into())?, argument(status.as_raw_fd().to_string())?];
    memory_file::execute(&program, &args).map_err(failed)
}
