//! Programs that run while a container is made: those of the hooks of the OCI runtime specification that belong into the
//! container's namespaces. A GPU's driver makes links and a cache of its libraries so.
//!
//! Each reads the container's state, is bounded in time, and what it says is told when it fails.

use std::ffi::CString;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2, read, setsid};
use serde_json::{Map, Value};

use super::error::LaunchError;
use super::report::{Report, send, wait_for_release};
use crate::protocol::{Hook, Hooks};
use crate::sys;

/// How much of what a hook says is kept.
const SAID: usize = 2000;

/// How often is looked whether one has ended, where the kernel cannot tell (before 5.3).
const LOOK: Duration = Duration::from_millis(10);

/// How long one that was killed may take to be gone.
const KILLED: Duration = Duration::from_secs(2);

/// Programs of the host, when everything is mounted at `root` and the root is still the host's.
pub(super) fn create(hooks: &Hooks, root: &str, status: &OwnedFd) -> Result<(), LaunchError> {
    if hooks.outside {
        let failed = |source| LaunchError::Placement { source };
        send(status, &Report::Made, None).map_err(failed)?;
        wait_for_release(status).map_err(failed)?;
    }
    run("createContainer", "creating", &hooks.create, &hooks.state, root)
}

/// Programs of the container, right before its own.
pub(super) fn start(hooks: &Hooks) -> Result<(), LaunchError> {
    run("startContainer", "created", &hooks.start, &hooks.state, "/")
}

fn run(stage: &'static str, status: &str, hooks: &[Hook], state: &str, directory: &str) -> Result<(), LaunchError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let mut state: Map<String, Value> =
        serde_json::from_str(state).map_err(|_| LaunchError::Encoding { what: "the state for hooks" })?;
    state.insert("status".to_owned(), status.into());
    // as the container sees it
    state.insert("pid".to_owned(), std::process::id().into());
    let state = Value::Object(state).to_string();
    hooks.iter().try_for_each(|hook| one(stage, hook, &state, directory))
}

fn one(stage: &'static str, hook: &Hook, state: &str, directory: &str) -> Result<(), LaunchError> {
    let failed = |source| LaunchError::RunHook { stage, path: hook.path.clone(), source };
    let command = Command::new(hook)?;
    let mut input = std::fs::File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC).map_err(failed)?);
    let filled = input.write_all(state.as_bytes()).and_then(|()| input.rewind());
    filled.map_err(|error| failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    crate::io::set_nonblocking(&ours).map_err(failed)?;
    let Some(pid) = sys::clone_process(0, None).map_err(failed)? else {
        let source = command.become_it(&input.into(), &theirs, directory);
        let _ = nix::unistd::write(&theirs, source.desc().as_bytes());
        sys::end_now(127);
    };
    drop(theirs);
    let limit = Duration::from_millis(hook.timeout_ms);
    let (how, said) = wait(pid, &ours, limit);
    let text = String::from_utf8_lossy(&said);
    let said = if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) };
    let how = match how {
        Some(ended) if ended.code == 0 => return Ok(()),
        Some(sys::Ended { signal: Some(signal), .. }) => format!("ended by signal {signal}{said}"),
        Some(ended) => format!("exit code {}{said}", ended.code),
        None => format!("no end within {} ms{said}", limit.as_millis()),
    };
    Err(LaunchError::Hook { stage, path: hook.path.clone(), how })
}

/// What is executed, with nothing left to allocate.
struct Command {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Command {
    fn new(hook: &Hook) -> Result<Self, LaunchError> {
        let text = |text: &String| CString::new(text.as_str()).map_err(|_| LaunchError::ZeroByte { what: "a hook" });
        let args = if hook.args.is_empty() { std::slice::from_ref(&hook.path) } else { &hook.args };
        Ok(Self {
            path: text(&hook.path)?,
            args: args.iter().map(text).collect::<Result<_, _>>()?,
            env: hook.env.iter().map(text).collect::<Result<_, _>>()?,
        })
    }

    /// Returns only when that is not possible.
    fn become_it(&self, input: &OwnedFd, output: &OwnedFd, directory: &str) -> Errno {
        let become_it = || {
            // so that all of it can be ended, and is when its parent ends
            setsid()?;
            sys::signal_at_end_of_parent(libc::SIGKILL)?;
            umask(Mode::from_bits_truncate(0o022));
            chdir(directory)?;
            dup2_stdin(input)?;
            dup2_stdout(output)?;
            dup2_stderr(output)?;
            // a program of the image may be the one that runs: nothing of the host may be open in it
            sys::cloexec_from(3);
            execve(self.path.as_c_str(), &self.args, &self.env)
        };
        match become_it() {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }
}

/// Waits for its end, or has it come to one; gives what it said.
fn wait(pid: i32, output: &OwnedFd, limit: Duration) -> (Option<sys::Ended>, Vec<u8>) {
    let (mut said, mut open) = (Vec::new(), true);
    let end = sys::pidfd_open(pid).ok();
    let began = Instant::now();
    loop {
        open = open && take(output, &mut said);
        if let Some(ended) = reap(pid) {
            // what it wrote last; children that it left behind may hold the other end for ever
            take(output, &mut said);
            return (Some(ended), said);
        }
        let Some(left) = limit.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) else { break };
        pause(left, end.as_ref(), open.then_some(output));
    }
    // its session, hence also what it has started
    let _ = sys::send_signal(-pid, libc::SIGKILL);
    let killed = Instant::now();
    while reap(pid).is_none() {
        let Some(left) = KILLED.checked_sub(killed.elapsed()) else { break };
        pause(left, end.as_ref(), None);
    }
    (None, said)
}

/// Sleeps until it has ended or there is something to read.
fn pause(time: Duration, end: Option<&OwnedFd>, output: Option<&OwnedFd>) {
    let time = if end.is_some() { time } else { time.min(LOOK) };
    let mut ready: Vec<PollFd<'_>> =
        end.into_iter().chain(output).map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    // interrupted: then it is looked at earlier
    let _ = poll(&mut ready, PollTimeout::try_from(time.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX));
}

/// Reads what there is; beyond the bound it is forgotten. False at its end.
fn take(output: &OwnedFd, said: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match read(output, &mut buffer) {
            Ok(0) => return false,
            Ok(length) => {
                let room = SAID.saturating_sub(said.len()).min(length);
                said.extend_from_slice(&buffer[..room]);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return true,
            Err(_) => return false,
        }
    }
}

/// Its end, if it has come; orphans whose parent we have become are taken along.
fn reap(pid: i32) -> Option<sys::Ended> {
    while let Some(ended) = sys::wait_any() {
        if ended.pid == pid {
            return Some(ended);
        }
    }
    None
}
