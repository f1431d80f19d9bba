//! What the daemon knows against what the shim knows, after the connection was lost.

use nodeagent_shim::protocol::ContainerState;
use tokio::sync::mpsc;

use super::lifecycle::end_of;
use super::{Done, Pod};
use crate::clock;
use crate::container::{ContainerRecord, Exit, Phase, Reason, UNSEEN_EXIT};
use crate::events::EventKind;
use crate::sandbox::Shim;
use crate::sandbox::shim::ShimEvent;
use crate::telemetry::chain;

impl Pod {
    /// The connection is closed: tried again at once, since a shim closes it only by ending.
    pub(super) fn shim_gone(&mut self) {
        self.shim = None;
        self.shim_events = None;
        self.publish();
        if self.removing {
            return;
        }
        let (socket, id) = (self.environment.paths.socket(&self.record.id), self.record.id.clone());
        self.work.spawn(async move { Done::Reconnected { found: meet(&socket, &id).await } });
    }

    pub(super) fn reconnected(&mut self, found: Option<(Shim, mpsc::Receiver<ShimEvent>, Vec<ContainerState>)>) {
        if let Some((shim, events, states)) = found {
            self.shim = Some(shim);
            self.shim_events = Some(events);
            for state in states {
                let Some(member) = self.member(&state.container) else { continue };
                let mut record = (*member.record).clone();
                if reconcile(&mut record, Some(&state)) {
                    let (id, over) = (record.id.clone(), record.phase == Phase::Exited);
                    self.change_member(&id, |current| *current = record);
                    self.announce(if over { EventKind::Stopped } else { EventKind::Started }, &id);
                }
            }
            self.publish();
        } else if !self.removing {
            self.shim_lost();
        }
    }

    /// Without its supervisor nobody reaps, logs or reports: what still runs is killed.
    fn shim_lost(&mut self) {
        log::error!(id = self.record.id.as_str(); "the supervisor is lost: killing the pod");
        // not ready before anybody sees an end; kills by cgroup, takes the network down
        self.stop();
        let living = self.members.iter().filter(|member| member.record.phase == Phase::Running);
        let ids: Vec<String> = living.map(|member| member.record.id.clone()).collect();
        for id in ids {
            self.change_member(&id, |record| {
                reconcile(record, None);
            });
            self.announce(EventKind::Stopped, &id);
        }
    }
}

/// Connects again and asks for everything.
pub(in crate::sandbox) async fn meet(
    socket: &std::path::Path,
    id: &str,
) -> Option<(Shim, mpsc::Receiver<ShimEvent>, Vec<ContainerState>)> {
    let met = async {
        let (shim, events) = Shim::connect(socket, id).await?;
        let states = shim.list().await?;
        Ok::<_, crate::sandbox::ShimError>((shim, events, states))
    };
    met.await.inspect_err(|error| log::warn!(id = id; "no supervisor: {}", chain(error))).ok()
}

/// Brings a record up to what its shim says; without a shim's word, what ran has ended unseen. True when it changed.
pub(in crate::sandbox) fn reconcile(record: &mut ContainerRecord, state: Option<&ContainerState>) -> bool {
    let before = record.clone();
    match (record.phase, state) {
        (Phase::Exited | Phase::Creating, _) | (Phase::Created, None) => {}
        (_, Some(state)) if state.exit_code.is_some() => {
            record.started_at = state.started_at;
            record.end(end_of(state));
        }
        (_, Some(state)) => {
            if let Some(pid) = state.pid {
                record.phase = Phase::Running;
                record.pid = pid;
                record.started_at = state.started_at;
            }
        }
        (Phase::Running, None) => {
            let message = "the pod's supervisor is gone, and with it the end of this container".to_owned();
            record.end(Exit { code: UNSEEN_EXIT, reason: Reason::ShimLost, message, at: clock::now() });
        }
    }
    *record != before
}

/// A record of an earlier boot: nothing of it runs.
pub(in crate::sandbox) fn end_with_boot(record: &mut ContainerRecord) {
    if matches!(record.phase, Phase::Created | Phase::Running) {
        let message = "the host was started anew".to_owned();
        record.end(Exit { code: UNSEEN_EXIT, reason: Reason::HostRestarted, message, at: clock::now() });
    }
}
