//! Small pieces about descriptors.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;

/// Makes reads and writes return instead of wait.
pub fn set_nonblocking<Fd: AsFd>(fd: Fd) -> nix::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// A pipe whose reading side does not block.
pub fn pipe_to_read() -> nix::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&read)?;
    Ok((read, write))
}

/// Opens a path as a place only.
pub fn open_path(path: &str) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// A line for the journal; a reader that is gone is no reason to stop.
pub fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "<4>nodeagent-shim: {message}");
}
