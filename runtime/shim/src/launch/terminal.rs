//! A terminal of the container's own devpts.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, fstat, major, makedev};
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown};

use super::error::LaunchError;
use super::report::{Report, send};
use crate::sys;

/// First major number of terminals below `/dev/pts`; there are eight.
const PTS_MAJOR: u64 = 136;

/// Opens a terminal, shows it as `/dev/console` if asked, makes it the three standard streams and sends its master side to the shim.
pub fn set_up(uid: u32, gid: u32, console: bool, status: &OwnedFd) -> Result<(), LaunchError> {
    set_up_inner(uid, gid, console, status).map_err(|source| LaunchError::Terminal { source })
}

fn set_up_inner(uid: u32, gid: u32, console: bool, status: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let master = open("/dev/ptmx", flags, Mode::empty())?;
    if fstat(&master)?.st_rdev != makedev(5, 2) {
        return Err(Errno::ENODEV);
    }
    sys::unlock_pty(&master)?;
    let path = format!("/dev/pts/{}", sys::pty_number(&master)?);
    let slave = open(path.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?;
    if !(PTS_MAJOR..PTS_MAJOR + 8).contains(&major(fstat(&slave)?.st_rdev)) {
        return Err(Errno::ENODEV);
    }
    if console {
        let flags = OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        open("/dev/console", flags, Mode::from_bits_truncate(0o600))?;
        mount(Some(path.as_str()), "/dev/console", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    sys::make_controlling_terminal(&slave)?;
    dup2_stdin(&slave)?;
    dup2_stdout(&slave)?;
    dup2_stderr(&slave)?;
    send(status, &Report::Terminal, Some(master.as_raw_fd()))
}
