//! File descriptors: what was inherited, and what must not be.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::check;

/// Takes over a descriptor that the parent process has left open under a known number.
pub fn inherited(number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD reads nothing but the flags; a number that is not open gives EBADF.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) }.into())?;
    // SAFETY: it is open, as just seen, and this is called once, at the start, before anything else opens a file.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Closes everything from descriptor 3 on but those named. Whoever owns a descriptor that this closes must never use
/// or drop it: meant for the start of the program and for a forked child, which leaves by exec or `_exit`.
pub fn close_all_except(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0);
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX, 0);
}

/// Marks every descriptor from `first` on as to be closed by exec.
pub fn cloexec_from(first: u32) {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) {
    // SAFETY: no memory is passed. What is closed is the caller's promise, see close_all_except.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return;
    }
    // kernels before 5.9 (5.11 with a flag)
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for fd in open {
        if !u32::try_from(fd).is_ok_and(|fd| (first..=last).contains(&fd)) {
            continue;
        }
        // SAFETY: plain numbers; a descriptor that is gone meanwhile (that of the directory) gives EBADF.
        unsafe {
            if flags & libc::CLOSE_RANGE_CLOEXEC == 0 {
                libc::close(fd);
            } else {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
}

/// Lets the other side of a terminal be opened.
pub fn unlock_pty<Fd: AsFd>(master: Fd) -> nix::Result<()> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK as _, &unlock) }.into()).map(drop)
}

/// Number of the terminal below `/dev/pts`.
pub fn pty_number<Fd: AsFd>(master: Fd) -> nix::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int.
    check(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTN as _, &mut number) }.into())?;
    Ok(number)
}

/// Makes a terminal the controlling one of this session.
pub fn make_controlling_terminal<Fd: AsFd>(terminal: Fd) -> Result<(), Errno> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY as _, 0) }.into()).map(drop)
}

/// Takes a descriptor that came with a message of `recvmsg`.
pub fn received(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has installed it for that message just now; the caller takes each number once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Lets a descriptor be open in the next program too.
pub fn keep_across_exec<Fd: AsFd>(fd: Fd) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)
}
