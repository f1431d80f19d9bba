//! One container: from its launcher's fork to the record of its end.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use crate::cgroup::Cgroup;
use crate::context::{Caller, Context, Outbox};
use crate::launch;
use crate::launcher::{Birth, Failure, Launcher};
use crate::log::now;
use crate::oci;
use crate::output::{Output, Scratch, Which};
use crate::poll::{Number, Token, Watched};
use crate::protocol::{Answer, ContainerState, Event};
use crate::sys::Ended;

/// How long the killed get to disappear after the first process has.
const PATIENCE: Duration = Duration::from_secs(10);

/// A killed process that has not ended after that long hangs.
const HANGS: Duration = Duration::from_millis(50);

/// How long one that stands in for a container elsewhere gets to have that killed.
const ELSEWHERE: Duration = Duration::from_secs(8);

/// Where a container is in its life.
///
/// ```text
/// Held ──Continue──► Launching ──exec──► Running ──end──► Ending ──cgroup empty──► Exited
///   └──────────────────────┴────────────────end────────────►
/// ```
#[derive(Debug)]
enum Phase {
    /// Its launcher waits to be let go on, or is at work.
    Launching { launcher: Launcher, held: Option<Held> },
    /// Its program runs.
    Running,
    /// Its first process has ended, others may be left.
    Ending { failure: Option<Failure>, since: Instant },
    /// All over.
    Exited,
}

/// What a launcher waits for.
#[derive(Debug, Clone, Copy)]
pub enum Held {
    /// Its cgroup.
    Placement,
    /// Programs outside, which look at what it has made.
    Hooks,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its number in tokens.
    pub number: Number,
    /// What is told about it.
    pub state: ContainerState,
    /// Its cgroups.
    pub cgroup: Cgroup,
    /// Score for further processes that come without one.
    pub oom_score_adj: Option<i32>,
    /// Its first process is process 1 of a namespace: with it the kernel has ended all others.
    pub alone: bool,
    /// It runs in the pod's user namespace.
    pub user_namespace: bool,
    /// Another runtime makes it.
    pub oci: Option<oci::State>,
    phase: Phase,
    pid: i32,
    output: Output,
    /// Kept open so that the program does not see the end of its input.
    stdin: Option<OwnedFd>,
    starters: Vec<Caller>,
    killers: Vec<Caller>,
    /// Heard of at once: systemd removes a cgroup that has become empty, and the numbers with it.
    memory: Option<Watched>,
    /// When that was asked for first.
    killed: Option<Instant>,
}

impl Container {
    /// A container whose launcher has just been forked.
    pub fn new(
        number: Number,
        id: String,
        cgroup: Cgroup,
        launcher: Launcher,
        output: Output,
        held: Option<Held>,
    ) -> Self {
        let state = ContainerState {
            container: id,
            pid: None,
            started_at: 0,
            finished_at: 0,
            exit_code: None,
            oom_killed: false,
            message: String::new(),
        };
        Self {
            number,
            state,
            cgroup,
            oom_score_adj: None,
            alone: false,
            user_namespace: false,
            oci: None,
            pid: launcher.pid,
            phase: Phase::Launching { launcher, held },
            output,
            stdin: None,
            starters: Vec::new(),
            killers: Vec::new(),
            memory: None,
            killed: None,
        }
    }

    /// Answers a start: when its program runs or has failed to, at once if it does. False when it has ended.
    pub fn started_by(&mut self, caller: Caller, outbox: &mut Outbox) -> bool {
        match &self.phase {
            Phase::Launching { held, launcher } => {
                self.starters.push(caller);
                let (container, pid) = (self.state.container.clone(), launcher.pid);
                match held {
                    Some(Held::Placement) => outbox.event(Event::Launched { container, pid }),
                    Some(Held::Hooks) => outbox.event(Event::Made { container, pid }),
                    None => {}
                }
                true
            }
            Phase::Running => {
                let (pid, started_at) = (self.pid, self.state.started_at);
                outbox.reply(caller, Answer::Started { pid, started_at, warnings: Vec::new() });
                true
            }
            Phase::Ending { .. } | Phase::Exited => false,
        }
    }

    /// Holds the writing end of its input.
    pub fn hold_stdin(&mut self, stdin: Option<OwnedFd>) {
        self.stdin = stdin;
    }

    /// The process, while there is one to be signalled: it is not reaped yet, so the number is its own.
    pub fn process(&self) -> Option<i32> {
        let reaped = self.oci.as_ref().is_some_and(oci::State::is_reaped);
        (!reaped && matches!(self.phase, Phase::Launching { .. } | Phase::Running)).then_some(self.pid)
    }

    /// Whether its program runs.
    pub fn running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// Whether its process stands in for it: there are no others of it that need be on this host.
    pub fn stands_in(&self) -> bool {
        let created = |state: &&oci::State| !matches!(state.stage, oci::Stage::Creating);
        self.oci.as_ref().filter(created).is_some_and(|state| state.runtime.stand_in)
    }

    /// Whether it is all over.
    pub fn exited(&self) -> bool {
        matches!(self.phase, Phase::Exited)
    }

    /// Since when something is being tried again and again, if so.
    pub fn waiting(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Ending { since, .. } => Some(*since),
            Phase::Launching { .. } | Phase::Running => self.killed,
            Phase::Exited => None,
        }
    }

    /// Lets its launcher go on. False when it is not held.
    pub fn go_on(&mut self) -> nix::Result<bool> {
        match &mut self.phase {
            Phase::Launching { launcher, held } if held.is_some() => {
                launcher.release()?;
                *held = None;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Hears its launcher.
    pub fn hear(&mut self, context: &mut Context<'_>) {
        let Phase::Launching { launcher, held } = &mut self.phase else { return };
        let ended = launcher.hear();
        if std::mem::take(&mut launcher.made) {
            *held = Some(Held::Hooks);
            let (container, pid) = (self.state.container.clone(), launcher.pid);
            context.outbox.event(Event::Made { container, pid });
        }
        if let Some(terminal) = launcher.terminal.take() {
            let attached = crate::io::set_nonblocking(&terminal)
                .and_then(|()| self.output.attach(context.poller, self.number, Which::Stdout, terminal));
            if let Err(error) = attached {
                crate::io::complain(&format!("terminal of {}: {error}", self.state.container));
            }
        }
        // with another runtime the exec was that of its command
        if ended && launcher.executed() && self.oci.is_none() {
            let warnings = std::mem::take(&mut launcher.warnings);
            self.runs(warnings, context);
        }
        // an end without exec is the launcher's death: the wait that follows tells how
    }

    /// Its program has been executed.
    fn runs(&mut self, warnings: Vec<String>, context: &mut Context<'_>) {
        self.phase = Phase::Running;
        // without it the numbers are still read at the end
        self.memory = self
            .cgroup
            .memory_events()
            .and_then(|file| context.poller.watch(file, Token::Memory(self.number), EpollFlags::EPOLLPRI).ok());
        self.state.pid = Some(self.pid);
        self.state.started_at = now();
        let answer = Answer::Started { pid: self.pid, started_at: self.state.started_at, warnings };
        for caller in self.starters.drain(..) {
            context.outbox.reply(caller, answer.clone());
        }
    }

    /// Takes the end of a process of another runtime that is not the container's own. False when it is none of these.
    pub fn command_ended(&mut self, ended: Ended, orphans: &mut Vec<Ended>, context: &mut Context<'_>) -> bool {
        match self.oci.as_ref().map(|state| &state.stage) {
            Some(oci::Stage::Creating) if self.process() == Some(ended.pid) => {
                self.created(ended, orphans, context);
                true
            }
            Some(oci::Stage::Starting { command, .. }) if *command == ended.pid => {
                self.start_ended(ended, context);
                true
            }
            _ => false,
        }
    }

    /// Whether a process whose end nobody else knows may turn out to be its own.
    pub fn expects_orphan(&self) -> bool {
        self.process().is_some() && self.oci.as_ref().is_some_and(|state| matches!(state.stage, oci::Stage::Creating))
    }

    /// `create` has ended: with the number of the container's process, or without a container.
    fn created(&mut self, ended: Ended, orphans: &mut Vec<Ended>, context: &mut Context<'_>) {
        self.hear(context);
        let Some(state) = &mut self.oci else { return };
        let Phase::Launching { launcher, .. } = &mut self.phase else { return };
        let executed = launcher.executed();
        let number = self.number;
        let made = match launcher.failure.take() {
            Some(failure) => Err(failure),
            None if executed && ended.code == 0 && self.killed.is_none() => state.created(),
            None if executed => Err(state.failure("create", ended.code)),
            None => Err(Failure {
                kind: crate::protocol::ErrorKind::System,
                exit_code: ended.code,
                message: format!("the launcher was ended with code {}", ended.code),
            }),
        };
        let started = made.and_then(|pid| {
            self.pid = pid;
            let (runtime, id) = (state.runtime.clone(), self.state.container.clone());
            Launcher::fork(context.poller, number, &Birth::default(), |status, _| {
                launch::oci_start(&id, &runtime, status)
            })
            .map_err(|error| Failure {
                kind: crate::protocol::ErrorKind::System,
                exit_code: 128,
                message: format!("make a process: {error}"),
            })
        });
        match started {
            Ok(starter) => {
                let place = orphans.iter().position(|orphan| orphan.pid == self.pid);
                let early = place.map(|place| orphans.swap_remove(place));
                state.stage = oci::Stage::Starting { command: starter.pid, early };
                *launcher = starter;
            }
            Err(failure) => {
                // whatever it has left in the cgroup is ended with what follows
                state.stage = oci::Stage::Started;
                self.phase = Phase::Running;
                self.fail(ended, failure, context);
            }
        }
    }

    /// `start` has ended: the program runs, or has run.
    fn start_ended(&mut self, ended: Ended, context: &mut Context<'_>) {
        self.hear(context);
        let Some(state) = &mut self.oci else { return };
        let oci::Stage::Starting { early, .. } = std::mem::replace(&mut state.stage, oci::Stage::Started) else {
            return;
        };
        let said = match &mut self.phase {
            Phase::Launching { launcher, .. } => launcher.failure.take(),
            _ => None,
        };
        if ended.code == 0 && said.is_none() {
            self.runs(Vec::new(), context);
            if let Some(early) = early {
                self.ended(early, context);
            }
            return;
        }
        let failure = said.unwrap_or_else(|| state.failure("start", ended.code));
        match early {
            Some(early) => self.fail(early, failure, context),
            None => {
                state.failure = Some(failure);
                self.killed.get_or_insert_with(Instant::now);
                self.kill_once();
            }
        }
    }

    /// It could not be started, and has no process any more.
    fn fail(&mut self, ended: Ended, failure: Failure, context: &mut Context<'_>) {
        if let Some(state) = &mut self.oci {
            state.failure = Some(failure);
        }
        self.ended(ended, context);
    }

    /// Memory has become short in it.
    pub fn memory_short(&mut self) {
        match self.memory.as_ref().map(Cgroup::events_of_kills) {
            Some(Some(killed)) => self.state.oom_killed |= killed,
            // what is gone would be reported for ever
            _ => self.memory = None,
        }
    }

    /// Reads its output.
    pub fn read(&mut self, which: Which, scratch: &mut Scratch) {
        self.output.read(which, scratch);
    }

    /// Opens its log anew.
    pub fn reopen_log(&mut self) -> std::io::Result<bool> {
        self.output.log_file().map_or(Ok(false), |log| log.reopen().map(|()| true))
    }

    /// Wants it dead, all of it; `caller` is answered when it is.
    pub fn kill(&mut self, caller: Option<Caller>, context: &mut Context<'_>) {
        if self.exited() {
            if let Some(caller) = caller {
                context.outbox.reply(caller, Answer::Done);
            }
            return;
        }
        self.killers.extend(caller);
        self.killed.get_or_insert_with(Instant::now);
        self.kill_once();
    }

    fn kill_once(&self) {
        let patient = self.killed.is_none_or(|since| since.elapsed() < ELSEWHERE);
        if let (Some(pid), true, true) = (self.process(), patient, self.stands_in()) {
            // the container's own processes are not ours to end: what they wrote last would be lost
            let _ = crate::sys::send_signal(pid, crate::task::KILL);
            return;
        }
        if let Some(pid) = self.process() {
            // one that died this instant is a zombie: no error, and if it were, nothing to be done
            let _ = crate::sys::send_signal(pid, libc::SIGKILL);
        }
        // with process 1 of a namespace all go, unless it hangs in the kernel
        if !self.alone || self.killed.is_some_and(|since| since.elapsed() > HANGS) {
            self.cgroup.kill();
        }
    }

    /// Its first process has ended.
    pub fn ended(&mut self, ended: Ended, context: &mut Context<'_>) {
        self.hear(context);
        if let Some(state) = &mut self.oci
            && let oci::Stage::Starting { early, .. } = &mut state.stage
        {
            // told when it is known whether it was ever started
            *early = Some(ended);
            return;
        }
        self.state.finished_at = now();
        self.state.pid = None;
        // now: the daemon removes the cgroup as soon as it hears of the end
        self.state.oom_killed |= self.cgroup.oom_killed() || self.oci.as_ref().is_some_and(oci::State::oom);
        self.memory = None;
        let failure = match (std::mem::replace(&mut self.phase, Phase::Exited), &mut self.oci) {
            (_, Some(state)) => state.failure.take(),
            (Phase::Launching { launcher, .. }, None) => Some(launcher.failure(ended.code)),
            _ => None,
        };
        self.state.exit_code = Some(failure.as_ref().map_or(ended.code, |failure| failure.exit_code));
        if let Some(failure) = &failure {
            self.state.message.clone_from(&failure.message);
        }
        self.phase = Phase::Ending { failure, since: Instant::now() };
        self.advance(context);
    }

    /// Goes on with what takes several tries.
    pub fn advance(&mut self, context: &mut Context<'_>) {
        match &self.phase {
            // what hangs in the kernel for longer is no reason to keep the end of the container a secret
            Phase::Ending { since, .. } if self.alone || self.cgroup.kill() || since.elapsed() > PATIENCE => {
                self.finish(context)
            }
            Phase::Launching { .. } | Phase::Running if self.killed.is_some() => self.kill_once(),
            _ => {}
        }
    }

    /// The first process has ended and nobody is left: last output, then the news.
    fn finish(&mut self, context: &mut Context<'_>) {
        self.output.drain(context.scratch);
        self.stdin = None;
        let Phase::Ending { failure, .. } = std::mem::replace(&mut self.phase, Phase::Exited) else { return };
        context.outbox.event(Event::Exited { state: self.state.clone() });
        if let Some(failure) = failure {
            let answer = Answer::Error { kind: failure.kind, message: failure.message };
            for caller in self.starters.drain(..) {
                context.outbox.reply(caller, answer.clone());
            }
        }
        for caller in self.killers.drain(..) {
            context.outbox.reply(caller, Answer::Done);
        }
    }
}
