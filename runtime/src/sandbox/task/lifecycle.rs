//! Containers of a pod: added, started, changed, ended.

use std::sync::Arc;

use nodeagent_cri_api::LinuxContainerResources;
use nodeagent_shim::protocol::{ContainerState, ErrorKind, LaunchSpec};

use super::member::{Member, Updated, tell};
use super::{Done, Pod};
use crate::clock;
use crate::container::{self, ContainerError, ContainerRecord, Exit, Phase, Reason, hooks};
use crate::events::EventKind;
use crate::handler::Handler;
use crate::sandbox::command::ContainerReply;
use crate::sandbox::{PodError, ShimError, Started};
use crate::state::Kind;
use crate::telemetry::chain;

/// Exit codes of a shell for a program that is not there, or cannot be executed for another reason.
const NOT_FOUND: i32 = 127;
const CANNOT_START: i32 = 128;

impl Pod {
    pub(super) fn member(&mut self, id: &str) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.record.id == id)
    }

    /// Changes a container's record, in memory and on disk.
    pub(super) fn change_member(&mut self, id: &str, change: impl FnOnce(&mut ContainerRecord)) {
        let store = self.environment.store.clone();
        let Some(member) = self.member(id) else { return };
        change(Arc::make_mut(&mut member.record));
        if let Err(error) = store.write(Kind::Container, id, &*member.record) {
            // memory is right; a daemon started now would find out from the shim
            log::error!(id = id; "{}", chain(&error));
        }
    }

    pub(super) fn add(&mut self, record: ContainerRecord, spec: LaunchSpec) -> Result<(), ContainerError> {
        if !self.record.ready() {
            return Err(PodError::NotReady { id: self.record.id.clone() }.into());
        }
        let id = record.id.clone();
        self.members.push(Member::new(record, spec));
        self.announce(EventKind::Created, &id);
        Ok(())
    }

    pub(super) fn start(&mut self, id: &str, reply: ContainerReply) {
        let not_ready = (!self.record.ready())
            .then(|| Arc::new(ContainerError::from(PodError::NotReady { id: self.record.id.clone() })));
        let shim = self.shim.clone();
        let Some(member) = self.member(id) else {
            let _ = reply.send(Err(Arc::new(ContainerError::NotFound { id: id.to_owned() })));
            return;
        };
        if let Some(waiters) = &mut member.activity.start {
            return waiters.push(reply);
        }
        if member.record.phase != Phase::Created || member.activity.removal.is_some() {
            let _ = reply.send(Err(member.wrong_phase("start")));
            return;
        }
        if let Some(error) = not_ready {
            let _ = reply.send(Err(error));
            return;
        }
        member.activity.start = Some(vec![reply]);
        let (record, spec) = (Arc::clone(&member.record), (*member.spec).clone());
        self.work.spawn(async move {
            let id = record.id.clone();
            let failed = |source| ContainerError::Shim { action: "start", id: id.clone(), source };
            let result = match shim {
                Some(shim) if spec.hooks.is_some() && !shim.knows_hooks() => {
                    Err(ContainerError::NoHooks { id: id.clone() })
                }
                Some(shim) => shim.start(spec).await.map_err(failed),
                None => Err(failed(ShimError::Gone)),
            };
            if let Ok(started) = &result {
                hooks::after_start(&record, started.pid).await;
            }
            Done::Started { result, id }
        });
    }

    /// A launcher waits for its cgroup.
    pub(super) fn launched(&mut self, id: &str, pid: i32) {
        let Some(record) = self.member(id).map(|member| Arc::clone(&member.record)) else { return };
        let environment = Arc::clone(&self.environment);
        self.go_on_after(id, async move { container::place(&environment, &record, pid).await });
    }

    /// A launcher has mounted everything, and waits for programs that are to see it.
    pub(super) fn made(&mut self, id: &str, pid: i32) {
        let Some(record) = self.member(id).map(|member| Arc::clone(&member.record)) else { return };
        self.go_on_after(id, async move { hooks::before_start(&record, pid).await });
    }

    fn go_on_after(&mut self, id: &str, work: impl Future<Output = Result<(), ContainerError>> + Send + 'static) {
        let Some(shim) = self.shim.clone() else { return };
        let id = id.to_owned();
        self.work.spawn(async move {
            let placed = async {
                work.await?;
                let failed = |source| ContainerError::Shim { action: "go on with", id: id.clone(), source };
                shim.go_on(&id).await.map_err(failed)
            };
            Done::Placed { result: placed.await, id }
        });
    }

    /// One that cannot go on is killed, and the answer to its start says why.
    pub(super) fn placed(&mut self, id: &str, result: Result<(), ContainerError>) {
        let (Err(error), Some(shim)) = (result, self.shim.clone()) else { return };
        let Some(member) = self.member(id) else { return };
        member.activity.misplaced = Some(error);
        let id = id.to_owned();
        // its end is heard of as any other
        tokio::spawn(async move {
            if let Err(error) = shim.kill(&id).await {
                log::warn!(id = id.as_str(); "{}", chain(&error));
            }
        });
    }

    pub(super) fn started(&mut self, id: &str, result: Result<Started, ContainerError>) {
        let misplaced = self.member(id).and_then(|member| member.activity.misplaced.take());
        let result = result.map_err(|error| misplaced.unwrap_or(error));
        let waiters = self.member(id).and_then(|member| member.activity.start.take()).unwrap_or_default();
        let phase = self.member(id).map(|member| member.record.phase);
        match &result {
            // its end may have been heard before the answer to its start
            Ok(started) if phase == Some(Phase::Created) => {
                let (pid, at) = (started.pid, started.at);
                self.change_member(id, |record| {
                    record.phase = Phase::Running;
                    record.pid = pid;
                    record.started_at = at;
                });
                log::info!(id = id, pid = pid; "container started");
                self.announce(EventKind::Started, id);
            }
            Ok(_) => {}
            Err(error) => self.failed_to_start(id, error),
        }
        if let Ok(started) = &result {
            for warning in &started.warnings {
                log::warn!(id = id; "{warning}");
            }
        }
        tell(waiters, &result.map(drop).map_err(Arc::new));
        self.go_on_removing(id);
    }

    /// A container that could not be started has ended, and says why.
    fn failed_to_start(&mut self, id: &str, error: &ContainerError) {
        let gone = matches!(error, ContainerError::Shim { source, .. } if source.is_gone());
        let kind = match error {
            ContainerError::Shim { source, .. } => source.kind(),
            _ => None,
        };
        let code = if kind == Some(ErrorKind::CannotExecute) { NOT_FOUND } else { CANNOT_START };
        let message = chain(error);
        log::warn!(id = id; "{message}");
        // without a shim the end of its pod is told elsewhere
        if gone {
            return;
        }
        self.change_member(id, |record| {
            let heard = record.exit.take();
            let code = heard.as_ref().map_or(code, |exit| exit.code);
            let at = heard.map_or_else(clock::now, |exit| exit.at);
            record.end(Exit { code, reason: Reason::StartError, message, at });
        });
        self.announce(EventKind::Stopped, id);
    }

    /// The shim says that a container ended.
    pub(super) fn exited(&mut self, state: &ContainerState) {
        let id = state.container.as_str();
        let of_pod = self.record.id == id;
        let Some(member) = self.member(id) else {
            match of_pod {
                true if !self.record.ready() => {}
                true => {
                    log::error!(id = id; "the first container of the sandbox has ended, and what shared its processes");
                    let handlers = &self.environment.host.handlers;
                    if handlers.find(&self.record.runtime_handler).is_some_and(Handler::stands_in) {
                        // its shim, or its machine, is gone: kubelet makes another pod of one that is not ready
                        self.stop();
                    }
                }
                false => log::warn!(id = id; "an unknown container ended"),
            }
            return;
        };
        let before = member.record.exit.as_ref().map(|exit| exit.reason);
        if before == Some(Reason::StartError) {
            // the answer to its start was heard first; only the shim knows the code
            if let Some(code) = state.exit_code {
                self.change_member(id, |record| {
                    if let Some(exit) = &mut record.exit {
                        exit.code = code;
                    }
                });
                self.publish();
            }
            return;
        }
        let exit = end_of(state);
        log::info!(id = id, code = exit.code, reason = exit.reason.as_str(); "container ended");
        self.change_member(id, |record| {
            record.started_at = state.started_at;
            record.end(exit);
        });
        self.announce(EventKind::Stopped, id);
        self.go_on_removing(id);
    }

    pub(super) fn update(&mut self, id: &str, resources: LinuxContainerResources, reply: ContainerReply) {
        let environment = Arc::clone(&self.environment);
        let Some(member) = self.member(id) else {
            let _ = reply.send(Err(Arc::new(ContainerError::NotFound { id: id.to_owned() })));
            return;
        };
        let changeable = matches!(member.record.phase, Phase::Created | Phase::Running);
        if !changeable || member.activity.update.is_some() || member.activity.removal.is_some() {
            let _ = reply.send(Err(member.wrong_phase("update")));
            return;
        }
        member.activity.update = Some(reply);
        let (id, record) = (id.to_owned(), Arc::clone(&member.record));
        self.work.spawn(async move {
            let result = container::update(environment, record, resources).await;
            Done::Updated { id, result: result.map(|resources| Updated { resources }) }
        });
    }

    pub(super) fn updated(&mut self, id: &str, result: Result<Updated, ContainerError>) {
        let waiter = self.member(id).and_then(|member| member.activity.update.take());
        let result = result.map(|updated| {
            self.change_member(id, |record| record.resources = updated.resources);
            self.publish();
        });
        tell(waiter.into_iter().collect(), &result.map_err(Arc::new));
        self.go_on_removing(id);
    }
}

/// The end of a container as its shim tells it.
pub(super) fn end_of(state: &ContainerState) -> Exit {
    let code = state.exit_code.unwrap_or(container::UNSEEN_EXIT);
    let reason = match (state.oom_killed, state.started_at, code) {
        (true, ..) => Reason::OOMKilled,
        (false, 0, _) => Reason::StartError,
        (false, _, 0) => Reason::Completed,
        _ => Reason::Error,
    };
    Exit { code, reason, message: state.message.clone(), at: state.finished_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(started_at: i64, exit_code: Option<i32>, oom_killed: bool) -> ContainerState {
        ContainerState {
            container: "c".into(),
            pid: None,
            started_at,
            finished_at: 9,
            exit_code,
            oom_killed,
            message: String::new(),
        }
    }

    #[test]
    fn an_end_has_its_reason() {
        let table = [
            (state(1, Some(0), false), 0, Reason::Completed),
            (state(1, Some(3), false), 3, Reason::Error),
            (state(1, Some(137), true), 137, Reason::OOMKilled),
            // an init container whose child was killed counts too, whatever its own code
            (state(1, Some(0), true), 0, Reason::OOMKilled),
            (state(0, Some(127), false), 127, Reason::StartError),
            (state(1, None, false), 255, Reason::Error),
        ];
        for (state, code, reason) in table {
            let exit = end_of(&state);
            assert_eq!((exit.code, exit.reason, exit.at), (code, reason, 9), "{state:?}");
        }
    }
}
