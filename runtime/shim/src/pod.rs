//! The pod: its containers and execs, and what the daemon's calls do to them.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::container::Container;
use crate::context::{Caller, Context, Outbox};
use crate::exec::Exec;
use crate::namespaces::Namespaces;
use crate::output::{Scratch, Which};
use crate::poll::{Number, Poller};
use crate::protocol::{Answer, Call, ErrorKind, PodSetup};
use crate::sys::{self, Ended};

mod shared_pid;
mod start;

use self::shared_pid::Reaper;

/// Shortest pause between two looks at what should be gone any moment.
const RETRY_MIN: Duration = Duration::from_millis(2);

/// Longest pause between two such looks.
const RETRY_MAX: Duration = Duration::from_millis(250);

/// A refusal.
#[derive(Debug)]
pub struct Refusal {
    kind: ErrorKind,
    message: String,
}

impl Refusal {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::new(ErrorKind::System, crate::launch::chain(&error))
    }
}

/// The pod.
#[derive(Debug)]
pub struct Pod {
    poller: Rc<Poller>,
    namespaces: Namespaces,
    containers: Vec<Container>,
    execs: Vec<Exec>,
    /// Cgroups of execs that left something running.
    lingering: Vec<crate::cgroup::Cgroup>,
    /// Ends of processes that nobody knew, while another runtime makes a container.
    orphans: Vec<Ended>,
    reaper: Option<Reaper>,
    next: Number,
    stopping: Option<Vec<Caller>>,
    stopped: bool,
    exiting: bool,
    scratch: Scratch,
    /// Frames to be sent.
    pub outbox: Outbox,
}

impl Pod {
    /// A pod in which nothing has been made yet; `host_net` is the host's network namespace.
    pub fn new(poller: &Rc<Poller>, host_net: OwnedFd) -> Self {
        Self {
            poller: Rc::clone(poller),
            namespaces: Namespaces::new(host_net),
            containers: Vec::new(),
            execs: Vec::new(),
            lingering: Vec::new(),
            orphans: Vec::new(),
            reaper: None,
            next: 0,
            stopping: None,
            stopped: false,
            exiting: false,
            scratch: Scratch::default(),
            outbox: Outbox::default(),
        }
    }

    /// Whether the shim has been asked to end.
    pub fn exiting(&self) -> bool {
        self.exiting
    }

    /// Carries out a call, or begins to.
    pub fn call(&mut self, caller: Caller, call: Call) {
        let answer = match call {
            Call::Setup(setup) => self.set_up(caller, &setup),
            Call::Start(spec) => self.start(caller, &spec).map(|()| None),
            Call::Continue { container } => self.go_on(&container).map(|()| Some(Answer::Done)),
            Call::Signal { container, signal, all } => self.signal(caller, &container, signal, all),
            Call::Exec(spec) => self.exec(caller, &spec).map(|()| None),
            Call::ReopenLog { container } => self.reopen_log(&container).map(|()| Some(Answer::Done)),
            Call::List => {
                Ok(Some(Answer::Containers { containers: self.containers.iter().map(|c| c.state.clone()).collect() }))
            }
            Call::Forget { container } => self.forget(&container).map(|()| Some(Answer::Done)),
            Call::StopPod => self.stop(caller).map(|()| None),
            Call::Exit => self.exit().map(|()| Some(Answer::Done)),
        };
        match answer {
            Ok(Some(answer)) => self.outbox.reply(caller, answer),
            Ok(None) => {}
            Err(refusal) => {
                self.outbox.reply(caller, Answer::Error { kind: refusal.kind, message: refusal.message });
            }
        }
        self.advance();
    }

    fn find(&mut self, id: &str) -> Result<&mut Container, Refusal> {
        let found = self.containers.iter_mut().find(|container| container.state.container == id);
        found.ok_or_else(|| Refusal::new(ErrorKind::NotFound, format!("no container {id}")))
    }

    /// The container with that id, and the parts of the pod it works with.
    fn with(&mut self, id: &str) -> Result<(&mut Container, Context<'_>), Refusal> {
        let found = self.containers.iter_mut().find(|container| container.state.container == id);
        let container = found.ok_or_else(|| Refusal::new(ErrorKind::NotFound, format!("no container {id}")))?;
        let context = Context { poller: &self.poller, outbox: &mut self.outbox, scratch: &mut self.scratch };
        Ok((container, context))
    }

    fn set_up(&mut self, caller: Caller, setup: &PodSetup) -> Result<Option<Answer>, Refusal> {
        if self.stopped {
            return Err(Refusal::new(ErrorKind::WrongState, "the pod has been stopped"));
        }
        self.namespaces.set_up(setup)?;
        if setup.shared_pid {
            return self.share_pid(caller, setup.selinux_label.as_deref()).map(|()| None);
        }
        Ok(Some(Answer::Done))
    }

    fn go_on(&mut self, id: &str) -> Result<(), Refusal> {
        if self.find(id)?.go_on()? {
            return Ok(());
        }
        Err(Refusal::new(ErrorKind::WrongState, format!("container {id} does not wait for its cgroup")))
    }

    fn signal(&mut self, caller: Caller, id: &str, signal: i32, all: bool) -> Result<Option<Answer>, Refusal> {
        if !(1..=64).contains(&signal) {
            return Err(Refusal::new(ErrorKind::Invalid, format!("no signal {signal}")));
        }
        let (container, mut context) = self.with(id)?;
        if all && signal == libc::SIGKILL {
            container.kill(Some(caller), &mut context);
            return Ok(None);
        }
        let Some(pid) = container.process() else {
            return Err(Refusal::new(ErrorKind::WrongState, format!("container {id} has ended")));
        };
        if all && !container.stands_in() {
            container.cgroup.signal(signal);
        } else {
            sys::send_signal(pid, signal)?;
        }
        Ok(Some(Answer::Done))
    }

    fn reopen_log(&mut self, id: &str) -> Result<(), Refusal> {
        let container = self.find(id)?;
        if container.process().is_none() {
            return Err(Refusal::new(ErrorKind::WrongState, format!("container {id} has ended")));
        }
        match container.reopen_log() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::new(ErrorKind::WrongState, format!("container {id} has no log"))),
            Err(error) => Err(Refusal::new(ErrorKind::System, format!("open the log of {id}: {error}"))),
        }
    }

    fn forget(&mut self, id: &str) -> Result<(), Refusal> {
        if !self.find(id)?.exited() {
            return Err(Refusal::new(ErrorKind::WrongState, format!("container {id} has not ended")));
        }
        self.containers.retain(|container| container.state.container != id);
        Ok(())
    }

    fn stop(&mut self, caller: Caller) -> Result<(), Refusal> {
        self.stopping.get_or_insert_default().push(caller);
        self.stopped = true;
        let mut context = Context { poller: &self.poller, outbox: &mut self.outbox, scratch: &mut self.scratch };
        for container in self.containers.iter_mut().filter(|container| !container.exited()) {
            container.kill(None, &mut context);
        }
        for exec in &mut self.execs {
            exec.abandon();
        }
        Ok(())
    }

    fn exit(&mut self) -> Result<(), Refusal> {
        if let Some(container) = self.containers.iter().find(|container| !container.exited()) {
            let message = format!("container {} has not ended", container.state.container);
            return Err(Refusal::new(ErrorKind::WrongState, message));
        }
        if let Some(reaper) = &self.reaper {
            reaper.kill();
        }
        self.exiting = true;
        Ok(())
    }

    /// A launcher has something to say.
    pub fn hear(&mut self, number: Number) {
        let mut context = Context { poller: &self.poller, outbox: &mut self.outbox, scratch: &mut self.scratch };
        if let Some(container) = self.containers.iter_mut().find(|container| container.number == number) {
            container.hear(&mut context);
        } else if let Some(exec) = self.execs.iter_mut().find(|exec| exec.number == number) {
            exec.hear();
        } else if let Some(reaper) = self.reaper.as_mut().filter(|reaper| reaper.number == number) {
            reaper.hear(&mut self.outbox);
        }
    }

    /// Memory has become short in a container.
    pub fn memory_short(&mut self, number: Number) {
        if let Some(container) = self.containers.iter_mut().find(|container| container.number == number) {
            container.memory_short();
        }
    }

    /// A program has something to say.
    pub fn read(&mut self, number: Number, which: Which) {
        if let Some(container) = self.containers.iter_mut().find(|container| container.number == number) {
            container.read(which, &mut self.scratch);
        } else if let Some(exec) = self.execs.iter_mut().find(|exec| exec.number == number) {
            exec.read(which, &mut self.scratch);
        }
    }

    /// Takes the children that ended; those of nobody are orphans that came to us as their subreaper.
    pub fn reap(&mut self) {
        while let Some(ended) = sys::wait_any() {
            self.ended(ended);
        }
        self.advance();
    }

    fn ended(&mut self, ended: Ended) {
        let mut context = Context { poller: &self.poller, outbox: &mut self.outbox, scratch: &mut self.scratch };
        if self.containers.iter_mut().any(|c| c.command_ended(ended, &mut self.orphans, &mut context)) {
            return;
        }
        if let Some(container) = self.containers.iter_mut().find(|c| c.process() == Some(ended.pid)) {
            for exec in self.execs.iter_mut().filter(|exec| exec.container == container.number) {
                exec.abandon();
            }
            container.ended(ended, &mut context);
        } else if let Some(exec) = self.execs.iter_mut().find(|e| e.pid == ended.pid) {
            exec.ended(ended);
        } else if let Some(reaper) = self.reaper.take_if(|reaper| reaper.pid == ended.pid) {
            reaper.ended(ended, self.stopped || self.exiting, &mut self.outbox);
        } else if self.containers.iter().any(Container::expects_orphan) {
            // the process of a container may end before the command that made it
            self.orphans.push(ended);
        } else {
            self.orphans.clear();
        }
    }

    /// Goes on with everything that waits for something that sends no event.
    pub fn advance(&mut self) {
        let mut context = Context { poller: &self.poller, outbox: &mut self.outbox, scratch: &mut self.scratch };
        for container in &mut self.containers {
            container.advance(&mut context);
        }
        let mut done = Vec::new();
        self.execs.retain_mut(|exec| {
            let over = exec.advance(&mut context);
            if over {
                done.extend(exec.cgroup.take());
            }
            !over
        });
        self.lingering.extend(done);
        self.lingering.retain(|cgroup| !cgroup.remove());
        if self.stopping.is_some() && self.execs.is_empty() && self.containers.iter().all(Container::exited) {
            if let Some(reaper) = &self.reaper {
                // its end brings us here again
                return reaper.kill();
            }
            let answer = match self.namespaces.leave() {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Error { kind: ErrorKind::System, message: crate::launch::chain(&error) },
            };
            for caller in self.stopping.take().into_iter().flatten() {
                self.outbox.reply(caller, answer.clone());
            }
        }
    }

    /// How long the loop may wait, in milliseconds; for ever when nothing is due.
    pub fn timeout(&self) -> Option<u16> {
        let since = self.containers.iter().filter_map(Container::waiting);
        let since = since.chain(self.execs.iter().filter_map(Exec::waiting)).max();
        // often at first, for what takes a moment; rarely for what hangs
        let retry = since.map(|since| (since.elapsed() / 4).clamp(RETRY_MIN, RETRY_MAX));
        let due = self.execs.iter().filter_map(Exec::deadline).min();
        let due = due.map(|due| due.saturating_duration_since(Instant::now()));
        let wait = retry.into_iter().chain(due).min();
        // rounded up, or the last millisecond would be spent in circles
        wait.map(|wait| u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX))
    }
}
