//! Processes: making, signalling, waiting.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::SigSet;

use super::check;

/// libc's constant of that name has 32 bits and overflows.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes a process: `Some(pid)` in the parent, `None` in the child.
///
/// A plain copy as by fork(2), with the namespaces of `flags` and, when `cgroup` is given (`CLONE_INTO_CGROUP`, 5.7),
/// placed in that v2 cgroup from its first instant. Only for a process without threads: the child may then go on
/// using the allocator and everything else.
pub fn clone_process(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> nix::Result<Option<i32>> {
    let pid = match cgroup {
        None => {
            let flags = libc::c_long::from(flags | libc::SIGCHLD);
            // SAFETY: no CLONE_VM: the child has its own copy of all memory, including this stack (null = keep it).
            // The shim has one thread, so no lock can be held by a thread that the child lacks.
            check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?
        }
        Some(cgroup) => {
            // SAFETY: clone_args is a plain structure of integers; all zeroes is its documented default.
            let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
            args.flags = u64::from(flags.unsigned_abs()) | CLONE_INTO_CGROUP;
            args.exit_signal = libc::SIGCHLD.unsigned_abs().into();
            args.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
            // SAFETY: as above; the structure and its size are passed.
            check(unsafe { libc::syscall(libc::SYS_clone3, &args, std::mem::size_of_val(&args)) })?
        }
    };
    Ok(if pid == 0 { None } else { Some(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?) })
}

/// Ends the process without running anything of the parent's that was copied along.
pub fn end_now(code: i32) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// A child that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its id, free for reuse from now on.
    pub pid: i32,
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// Takes one ended child, if there is one. (nix knows no real-time signals and fails on a child that died of one.)
pub fn wait_any() -> Option<Ended> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes one int.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
        if pid > 0 {
            if libc::WIFSIGNALED(status) {
                let signal = libc::WTERMSIG(status);
                return Some(Ended { pid, code: 128 + signal, signal: Some(signal) });
            }
            return Some(Ended { pid, code: libc::WEXITSTATUS(status), signal: None });
        }
        if pid == 0 || Errno::last() != Errno::EINTR {
            return None;
        }
    }
}

/// Sends any signal number.
pub fn send_signal(pid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: two numbers.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Has a signal sent to this process when its parent ends.
pub fn signal_at_end_of_parent(signal: i32) -> nix::Result<()> {
    // SAFETY: a number; no memory is passed.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) }.into()).map(drop)
}

/// A descriptor for a process (5.3).
pub fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: two numbers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made it, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to exactly that process.
pub fn pidfd_signal<Fd: AsFd>(pidfd: Fd, signal: i32) -> nix::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo means that of kill(2).
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, 0, 0) }).map(drop)
}

/// Gives every signal its default disposition: what is ignored stays so across exec otherwise.
pub fn default_signals() {
    // the kernel's own structure: handler, flags, restorer, mask; all zero is SIG_DFL. Not by the C library, which
    // hides the two signals it uses itself, and those are inherited as ignored too.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads one structure and, with a null pointer, writes none. Numbers that may not be
        // changed give EINVAL, which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, 8) };
    }
}

/// Sets a resource limit by its number.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: prlimit64 reads one structure and, with a null pointer, writes nothing.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &limit, 0) }).map(drop)
}

/// Leaves the inherited session keyring for an empty one: keys of the host are none of the container's.
pub fn new_session_keyring() -> nix::Result<()> {
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0) }).map(drop)
}

/// A resource limit by its number: soft, hard.
pub fn rlimit(resource: u32) -> nix::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: prlimit64 writes one structure and, with a null pointer, reads nothing.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, 0, &mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Waits for one of these signals, which must be blocked: its number, and its sender's process id (0 for one that has
/// none in this PID namespace). None when something else interrupted.
pub fn wait_signal(signals: &SigSet) -> Option<(i32, i32)> {
    // SAFETY: siginfo_t is a plain structure, all zeroes is valid for it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: sigwaitinfo reads the set and writes the structure.
    let signal = unsafe { libc::sigwaitinfo(signals.as_ref(), &mut info) };
    // SAFETY: both signals that are waited for carry the sender's id.
    (signal > 0).then(|| (signal, unsafe { info.si_pid() }))
}
