//! The end of a container: asked for politely, then by force, then removed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::member::{Stopping, tell};
use super::{Done, Pod};
use crate::clock;
use crate::container::{self, ContainerError, ContainerRecord, Exit, Phase, Reason};
use crate::events::EventKind;
use crate::sandbox::command::ContainerReply;
use crate::sandbox::{PodView, Shared, Shim};
use crate::telemetry::chain;

/// From SIGKILL to the shim's word that it is over.
const KILLED: Duration = Duration::from_secs(10);

/// Exit code of a process that was killed.
const KILLED_CODE: i32 = 137;

impl Pod {
    pub(super) fn stop_container(&mut self, id: &str, deadline: Instant, reply: ContainerReply) {
        let (environment, shim, view) = (Arc::clone(&self.environment), self.shim.clone(), self.view.subscribe());
        let Some(member) = self.member(id) else {
            let _ = reply.send(Err(Arc::new(ContainerError::NotFound { id: id.to_owned() })));
            return;
        };
        if let Some(stopping) = &mut member.activity.stop {
            stopping.waiters.push(reply);
            stopping.deadline.send_if_modified(|current| {
                let nearer = deadline < *current;
                if nearer {
                    *current = deadline;
                }
                nearer
            });
            return;
        }
        if !member.lives() {
            // never started, or over: nothing to stop
            let _ = reply.send(Ok(()));
            return;
        }
        let (sender, receiver) = watch::channel(deadline);
        member.activity.stop = Some(Stopping { deadline: sender, waiters: vec![reply] });
        let record = Arc::clone(&member.record);
        self.work.spawn(async move {
            let id = record.id.clone();
            let result = stop(&environment, shim, &record, receiver, view).await;
            Done::Stopped { id, result }
        });
    }

    pub(super) fn stopped_container(&mut self, id: &str, result: Result<(), ContainerError>) {
        let waiters = self.member(id).and_then(|member| member.activity.stop.take());
        if result.is_ok() && self.member(id).is_some_and(|member| member.record.phase == Phase::Running) {
            self.bury(id, "killed; the supervisor did not say how it ended");
        }
        tell(waiters.map(|stopping| stopping.waiters).unwrap_or_default(), &result.map_err(Arc::new));
        self.go_on_removing(id);
    }

    /// Records the end of a container that is surely dead, though nobody said so.
    pub(super) fn bury(&mut self, id: &str, message: &str) {
        let exit = Exit { code: KILLED_CODE, reason: Reason::Error, message: message.to_owned(), at: clock::now() };
        self.change_member(id, |record| record.end(exit));
        self.announce(EventKind::Stopped, id);
    }

    /// After the pod was killed: those whose end was not reported.
    pub(super) fn bury_the_killed(&mut self) {
        let running = self.members.iter().filter(|member| member.record.phase == Phase::Running);
        let ids: Vec<String> = running.map(|member| member.record.id.clone()).collect();
        for id in ids {
            self.bury(&id, "killed with its pod");
        }
    }

    pub(super) fn remove_container(&mut self, id: &str, reply: ContainerReply) {
        let Some(member) = self.member(id) else {
            let _ = reply.send(Err(Arc::new(ContainerError::NotFound { id: id.to_owned() })));
            return;
        };
        member.activity.removal.get_or_insert_default().push(reply);
        self.go_on_removing(id);
    }

    /// Takes the next step of a removal that was asked for, when nothing else is being done to the container.
    pub(super) fn go_on_removing(&mut self, id: &str) {
        let Some(member) = self.member(id) else { return };
        let activity = &member.activity;
        if activity.removal.is_none() || activity.erasing || activity.update.is_some() {
            return;
        }
        if member.lives() {
            // also shortens a stop that is under way; its end brings us here again
            let (reply, _nobody) = tokio::sync::oneshot::channel();
            return self.stop_container(id, Instant::now(), reply);
        }
        member.activity.erasing = true;
        let record = Arc::clone(&member.record);
        let (environment, shim) = (Arc::clone(&self.environment), self.shim.clone());
        self.work.spawn(async move {
            let id = record.id.clone();
            Done::Removed { id, result: container::erase(&environment, &record, shim.as_ref()).await }
        });
    }

    pub(super) fn removed_container(&mut self, id: &str, result: Result<(), ContainerError>) {
        let Some(member) = self.member(id) else { return };
        member.activity.erasing = false;
        let waiters = member.activity.removal.take().unwrap_or_default();
        if result.is_ok() {
            self.members.retain(|member| member.record.id != id);
            log::info!(id = id; "container removed");
            self.announce(EventKind::Deleted, id);
        }
        tell(waiters, &result.map_err(Arc::new));
    }
}

/// Brings a container to its end. Returns when the shim reported it, or when the cgroup is empty for sure.
async fn stop(
    environment: &Shared,
    shim: Option<Shim>,
    record: &ContainerRecord,
    mut deadline: watch::Receiver<Instant>,
    mut view: watch::Receiver<Arc<PodView>>,
) -> Result<(), ContainerError> {
    let id = record.id.as_str();
    // one that is just being started gets the signal when it runs; one that hangs there is killed at the deadline
    let runs = until(&mut view, id, |phase| phase != Some(Phase::Created));
    if before(&mut deadline, runs).await {
        if let Some(shim) = &shim
            && view.borrow().phase(id) == Some(Phase::Running)
            && *deadline.borrow() > Instant::now()
            && let Err(error) = shim.signal(id, record.stop_signal).await
        {
            log::debug!(id = id; "the stop signal was not delivered: {}", chain(&error));
        }
        if before(&mut deadline, until(&mut view, id, is_over)).await {
            return Ok(());
        }
    }
    force(environment, shim, record, view).await
}

async fn force(
    environment: &Shared,
    shim: Option<Shim>,
    record: &ContainerRecord,
    mut view: watch::Receiver<Arc<PodView>>,
) -> Result<(), ContainerError> {
    let id = record.id.as_str();
    let by_shim = match shim {
        Some(shim) => shim.kill(id).await.inspect_err(|error| {
            log::warn!(id = id; "stepping over the shim: {}", chain(error));
        }),
        None => Err(crate::sandbox::ShimError::Gone),
    };
    if by_shim.is_ok() && timeout(KILLED, until(&mut view, id, is_over)).await.is_ok() {
        return Ok(());
    }
    let killed = environment.cgroups.kill(&record.cgroup).await;
    killed.map_err(|source| ContainerError::Cgroup { id: id.to_owned(), source })?;
    // the shim may live and report the end a moment later; if not, the task records one
    tokio::select! {
        () = until(&mut view, id, is_over) => {}
        () = sleep(Duration::from_secs(1)) => {}
    }
    Ok(())
}

fn is_over(phase: Option<Phase>) -> bool {
    !matches!(phase, Some(Phase::Created | Phase::Running))
}

/// Waits until the container is in such a phase.
async fn until(view: &mut watch::Receiver<Arc<PodView>>, id: &str, condition: impl Fn(Option<Phase>) -> bool) {
    // an error means that the pod's task is gone, and with it the container
    let _ = view.wait_for(|view| condition(view.phase(id))).await;
}

/// Whether `event` comes before the deadline, which may move nearer meanwhile.
async fn before(deadline: &mut watch::Receiver<Instant>, event: impl Future<Output = ()>) -> bool {
    tokio::pin!(event);
    loop {
        let at = *deadline.borrow_and_update();
        // cancel-safe: the event is pinned outside, the rest is looked at anew
        tokio::select! {
            biased;
            () = &mut event => return true,
            () = sleep_until(at) => return false,
            changed = deadline.changed() => if changed.is_err() {
                // nobody can move it any more
                return tokio::time::timeout_at(at, event).await.is_ok();
            },
        }
    }
}
