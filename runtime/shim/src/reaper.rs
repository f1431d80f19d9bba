//! Process 1 of a PID namespace that the containers of a pod share.
//!
//! It does what process 1 must: takes in orphans and lets them go. It is the shim's program under another name, made
//! harmless by its launcher (an empty read-only root) and by itself: it is nobody, has no capability, is not dumpable,
//! and all system calls but the few below are closed to it.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

use crate::launch::report::Report;
use crate::launch::{LaunchError, become_nobody};
use crate::sys;

/// Under which it is in the root of a pod that another runtime makes.
pub const PATH: &str = "/nodeagent-reaper";

/// What a reaper needs: to wait, to say once that it does, to end.
const ALLOWED: [libc::c_long; 8] = [
    libc::SYS_rt_sigtimedwait,
    libc::SYS_wait4,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
];

/// What can keep it from beginning.
#[derive(Debug, thiserror::Error)]
pub enum ReaperError {
    #[error("take over the socket")]
    Socket { source: Errno },
    #[error("give up all rights")]
    Rights { source: LaunchError },
    #[error("set up the process")]
    Process { source: Errno },
    #[error("load the seccomp filter")]
    Seccomp { source: Errno },
    #[error("say that it is ready")]
    Ready { source: Errno },
}

/// Never returns but with an error from before it began. `socket` is the number of that where the shim waits for it.
pub fn run(socket: i32) -> Result<(), ReaperError> {
    let process = |source| ReaperError::Process { source };
    let socket = sys::inherited(socket).map_err(|source| ReaperError::Socket { source })?;
    become_nobody(&socket).map_err(|source| ReaperError::Rights { source })?;
    let ready = serde_json::to_vec(&Report::Ready).map_err(|_| process(Errno::EINVAL))?;
    let wanted = close_off()?;
    nix::unistd::write(&socket, &ready).map_err(|source| ReaperError::Ready { source })?;
    drop(socket);
    reap(&wanted)
}

/// As the first process of a pod that another runtime has made: that one has given it its user and taken its rights.
pub fn run_alone() -> Result<(), ReaperError> {
    let wanted = close_off()?;
    reap(&wanted)
}

/// Closes everything to itself that it does not need; the signals that it waits for.
fn close_off() -> Result<SigSet, ReaperError> {
    let process = |source| ReaperError::Process { source };
    // after the change of user, which sets it anew
    prctl::set_dumpable(false).map_err(process)?;
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).map_err(process)?;
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    wanted.add(Signal::SIGTERM);
    sys::load_seccomp(&filter()).map_err(|source| ReaperError::Seccomp { source })?;
    Ok(wanted)
}

fn reap(wanted: &SigSet) -> ! {
    loop {
        match sys::wait_signal(wanted) {
            // a sender outside of the namespace has no number in it; those inside have no say
            Some((libc::SIGTERM, 0)) => sys::end_now(0),
            // whatever woke us: a signal that came while another was handled is not reported twice
            _ => while sys::wait_any().is_some() {},
        }
    }
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// The filter, as bytes of `struct sock_filter[]`.
fn filter() -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const ERRNO: u32 = 0x0005_0000;
    let mut program = Vec::new();
    let mut add = |code: u16, jump_true: u8, jump_false: u8, value: u32| {
        program.extend_from_slice(&code.to_ne_bytes());
        program.extend_from_slice(&[jump_true, jump_false]);
        program.extend_from_slice(&value.to_ne_bytes());
    };
    add(LOAD, 0, 0, 4);
    add(JUMP_EQUAL, 1, 0, ARCHITECTURE);
    add(RETURN, 0, 0, KILL_PROCESS);
    add(LOAD, 0, 0, 0);
    for number in ALLOWED {
        add(JUMP_EQUAL, 0, 1, u32::try_from(number).unwrap_or(u32::MAX));
        add(RETURN, 0, 0, ALLOW);
    }
    add(RETURN, 0, 0, ERRNO | libc::EPERM.unsigned_abs());
    program
}
