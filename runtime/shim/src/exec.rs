//! A program run beside a container's own, its output collected.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::cgroup::Cgroup;
use crate::container::Context;
use crate::launcher::{Failure, Launcher};
use crate::output::{Output, Scratch, Which};
use crate::pod::Caller;
use crate::poll::Number;
use crate::protocol::Answer;
use crate::sys::{self, Ended};

/// How long the killed get to disappear.
const PATIENCE: Duration = Duration::from_secs(10);

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
        if self.end.is_none() {
            // not reaped yet: both numbers are its own. The group is for where there is no cgroup.
            let _ = sys::send_signal(-self.pid, libc::SIGKILL);
            let _ = sys::send_signal(self.pid, libc::SIGKILL);
        }
        self.cgroup.as_ref().is_none_or(Cgroup::kill)
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
            None => Ok(ended.code),
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
