//! A program run beside a container's own, its output collected.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::cgroup::Cgroup;
use crate::context::{Caller, Context};
use crate::launcher::{Failure, Launcher};
use crate::oci;
use crate::output::{Output, Scratch, Which};
use crate::poll::Number;
use crate::protocol::{Answer, OciRuntime};
use crate::sys::{self, Ended};

/// How long the killed get to disappear.
const PATIENCE: Duration = Duration::from_secs(10);

/// Processes of an exec by another runtime that are looked for to be killed.
const MAX_DESCENDANTS: usize = 4096;

/// A running exec.
#[derive(Debug)]
pub struct Exec {
    /// Its number in tokens.
    pub number: Number,
    /// That of its container; 0 is nobody's.
    pub container: Number,
    /// Its first process.
    pub pid: i32,
    launcher: Option<Launcher>,
    output: Output,
    caller: Caller,
    deadline: Option<Instant>,
    timed_out: bool,
    /// When it was killed first, for being late or with the pod.
    killed: Option<Instant>,
    /// A cgroup of its own, so that all it started can be told from the rest.
    pub cgroup: Option<Cgroup>,
    /// Another runtime runs it: that, and the name of the files about it.
    pub oci: Option<(OciRuntime, String)>,
    end: Option<(Result<i32, Failure>, Instant)>,
}

impl Exec {
    /// An exec whose launcher has just been forked.
    pub fn new(number: Number, launcher: Launcher, output: Output, caller: Caller, timeout: Option<Duration>) -> Self {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let pid = launcher.pid;
        let launcher = Some(launcher);
        Self {
            number,
            container: 0,
            pid,
            launcher,
            output,
            caller,
            deadline,
            timed_out: false,
            killed: None,
            cgroup: None,
            oci: None,
            end: None,
        }
    }

    /// When it is to be looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Since when something is being tried again and again, if so.
    pub fn waiting(&self) -> Option<Instant> {
        self.killed
    }

    /// Hears its launcher.
    pub fn hear(&mut self) {
        if let Some(launcher) = &mut self.launcher
            && launcher.hear()
            && launcher.executed()
        {
            self.launcher = None;
        }
    }

    /// Reads its output.
    pub fn read(&mut self, which: Which, scratch: &mut Scratch) {
        self.output.read(which, scratch);
    }

    /// Kills it and what it started. True when nobody is left that can be known of.
    pub fn kill(&self) -> bool {
        let session = || self.oci.as_ref().is_some_and(|(runtime, name)| kill_session(runtime, name));
        // one that only stands in for a process has that killed when it ends itself, and then what that started is nobody's
        let early = self.oci.as_ref().is_some_and(|(runtime, _)| runtime.stand_in) && session();
        if self.end.is_none() {
            // not reaped yet: both numbers are its own. The group is for where there is no cgroup.
            let _ = sys::send_signal(-self.pid, libc::SIGKILL);
            let _ = sys::send_signal(self.pid, libc::SIGKILL);
        }
        let left = early || session();
        self.cgroup.as_ref().is_none_or(Cgroup::kill) && !left
    }

    /// Kills it because its container or the pod has come to its end.
    pub fn abandon(&mut self) {
        self.killed.get_or_insert_with(Instant::now);
        self.kill();
    }

    /// Its first process has ended.
    pub fn ended(&mut self, ended: Ended) {
        self.hear();
        let result = match self.launcher.take() {
            Some(launcher) => Err(launcher.failure(ended.code)),
            None => match &self.oci {
                // the process's own code, unless there never was one
                Some((runtime, name)) if ended.code != 0 && !oci::last_message(&log_of(runtime, name)).is_empty() => {
                    Err(oci::failure(runtime, "exec", &format!("{name}.log"), ended.code))
                }
                _ => Ok(ended.code),
            },
        };
        if self.timed_out {
            // by number once more: the group may have others, and without a leader its number stays taken by them
            let _ = sys::send_signal(-self.pid, libc::SIGKILL);
        }
        self.end = Some((result, Instant::now()));
    }

    /// Goes on with what waits for time to pass. True when it is over and has been answered.
    pub fn advance(&mut self, context: &mut Context<'_>) -> bool {
        if self.end.is_none() && self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.deadline = None;
            self.timed_out = true;
            self.killed.get_or_insert_with(Instant::now);
        }
        let killed = self.killed.is_none() || self.kill();
        let Some((_, since)) = &self.end else { return false };
        if !killed && since.elapsed() < PATIENCE {
            return false;
        }
        if let Some((runtime, name)) = &self.oci {
            for path in [log_of(runtime, name), pid_of(runtime, name)] {
                // they go with the bundle otherwise
                let _ = std::fs::remove_file(path);
            }
        }
        self.output.drain(context.scratch);
        let output = std::mem::replace(&mut self.output, Output::keep(0));
        let (stdout, stderr) = output.kept();
        let answer = match self.end.take() {
            Some((Err(failure), _)) if !self.timed_out => {
                Answer::Error { kind: failure.kind, message: failure.message }
            }
            Some((result, _)) => Answer::Executed {
                exit_code: result.unwrap_or_else(|failure| failure.exit_code),
                stdout: STANDARD.encode(&stdout),
                stderr: STANDARD.encode(&stderr),
                timed_out: self.timed_out,
            },
            None => return false,
        };
        context.outbox.reply(self.caller, answer);
        true
    }
}

fn log_of(runtime: &OciRuntime, name: &str) -> String {
    format!("{}/{name}.log", runtime.bundle)
}

fn pid_of(runtime: &OciRuntime, name: &str) -> String {
    format!("{}/{name}.pid", runtime.bundle)
}

/// Kills the process that a runtime has started, and what that has started. Its parent is the runtime, or with that gone
/// the shim, so that its number is its own until it has been waited for; it is used once. True when somebody was there.
fn kill_session(runtime: &OciRuntime, name: &str) -> bool {
    let path = pid_of(runtime, name);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let Some(pid) = text.trim().parse::<i32>().ok().filter(|pid| *pid > 1) else { return false };
    if std::fs::remove_file(&path).is_err() {
        return false;
    }
    let first = sys::pidfd_open(pid);
    // held by descriptors, then looked for again: a number may have been given to another one meanwhile
    let held: Vec<_> = descendants(pid).into_iter().filter_map(|one| Some((one, sys::pidfd_open(one).ok()?))).collect();
    let still = descendants(pid);
    for (_, process) in held.iter().filter(|(one, _)| still.contains(one)) {
        let _ = sys::pidfd_signal(process, libc::SIGKILL);
    }
    if runtime.stand_in
        && let Ok(first) = &first
    {
        // its parent is another shim, which may take it at any moment, and its number is free then
        return sys::pidfd_signal(first, libc::SIGKILL).is_ok();
    }
    // runtimes give it a session of its own
    let group = sys::send_signal(-pid, libc::SIGKILL).is_ok();
    sys::send_signal(pid, libc::SIGKILL).is_ok() || group
}

/// Children of a process, theirs, and so on.
fn descendants(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied().filter(|_| found.len() < MAX_DESCENDANTS) {
        next += 1;
        let threads = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    found.remove(0);
    found
}
