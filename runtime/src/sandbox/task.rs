//! The life of a pod: one task that owns its state. Nothing in here waits for the outside; what takes time runs beside
//! and comes back as [`Done`].

use std::sync::Arc;
use std::time::Duration;

use nodeagent_cri_api::UpdatePodSandboxResourcesRequest;
use nodeagent_shim::protocol::{ContainerState, Event, LaunchSpec};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::command::{Command, PodHandle, PodReply, QUEUE};
use super::pods::Table;
use super::shim::ShimEvent;
use super::{PodError, PodView, SandboxRecord, SandboxState, Shared, Shim, Started, resize, setup, teardown};
use crate::cgroup::CgroupPath;
use crate::container::{ContainerError, ContainerRecord};
use crate::events::EventKind;
use crate::telemetry::chain;

mod lifecycle;
mod member;
mod reconcile;
mod stop;

use member::Member;
pub(super) use reconcile::{end_with_boot, meet, reconcile};

/// Between attempts to take down a network that would not go.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What a task begins with: a new pod, or one that an earlier daemon left.
pub(super) struct Beginning {
    pub record: SandboxRecord,
    pub containers: Vec<(ContainerRecord, LaunchSpec)>,
    pub shim: Option<Shim>,
    pub shim_events: Option<mpsc::Receiver<ShimEvent>>,
}

/// What came of something that took time.
enum Done {
    /// A launcher that waited goes on, or not.
    Placed { id: String, result: Result<(), ContainerError> },
    /// The shim launched a container, or failed to.
    Started { id: String, result: Result<Started, ContainerError> },
    /// A container was brought to its end. `seen` says whether the shim reported it.
    Stopped { id: String, result: Result<(), ContainerError> },
    /// A container is gone.
    Removed { id: String, result: Result<(), ContainerError> },
    /// A container has other limits.
    Updated { id: String, result: Result<member::Updated, ContainerError> },
    /// The pod has other limits, or not.
    Resized { asked: Box<UpdatePodSandboxResourcesRequest>, result: Result<(), PodError> },
    /// The pod's processes are dead and its network is down, or not.
    PodStopped { network: Result<(), PodError> },
    /// Another attempt at its network.
    NetworkRetried { network: Result<(), PodError>, pause: Duration },
    /// Everything of the pod is gone, or not.
    PodRemoved { result: Result<(), PodError> },
    /// The connection to the shim broke: here is another, or the proof that there is nobody.
    Reconnected { found: Option<(Shim, mpsc::Receiver<ShimEvent>, Vec<ContainerState>)> },
}

struct Pod {
    environment: Shared,
    table: Arc<Table>,
    record: Arc<SandboxRecord>,
    members: Vec<Member>,
    shim: Option<Shim>,
    shim_events: Option<mpsc::Receiver<ShimEvent>>,
    view: watch::Sender<Arc<PodView>>,
    work: JoinSet<Done>,
    resizing: Option<PodReply>,
    stopping: bool,
    stop_waiters: Vec<PodReply>,
    removing: bool,
    removal_waiters: Vec<PodReply>,
}

/// Starts the task of a pod.
pub(super) fn spawn(environment: Shared, table: Arc<Table>, beginning: Beginning) -> PodHandle {
    let Beginning { record, containers, shim, shim_events } = beginning;
    let record = Arc::new(record);
    let members: Vec<Member> = containers.into_iter().map(|(record, spec)| Member::new(record, spec)).collect();
    let first = PodView {
        sandbox: Arc::clone(&record),
        containers: members.iter().map(Member::view).collect(),
        shim: shim.clone(),
    };
    let (view, seen) = watch::channel(Arc::new(first));
    let (commands, queue) = mpsc::channel(QUEUE);
    let pod = Pod {
        environment,
        table,
        record,
        members,
        shim,
        shim_events,
        view,
        work: JoinSet::new(),
        resizing: None,
        stopping: false,
        stop_waiters: Vec::new(),
        removing: false,
        removal_waiters: Vec::new(),
    };
    tokio::spawn(pod.run(queue));
    PodHandle { commands, view: seen }
}

/// What the shim says next; never, without a shim.
async fn next(events: &mut Option<mpsc::Receiver<ShimEvent>>) -> ShimEvent {
    match events {
        Some(events) => events.recv().await.unwrap_or(ShimEvent::Gone),
        None => std::future::pending().await,
    }
}

impl Pod {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.begin();
        loop {
            // cancel-safe: each arm takes one whole message or none
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    // nobody can reach this pod any more: the daemon is going down
                    None => return,
                },
                event = next(&mut self.shim_events) => self.hear(event),
                Some(done) = self.work.join_next(), if !self.work.is_empty() => match done {
                    Ok(Done::PodRemoved { result }) => {
                        if self.removed(result) {
                            return;
                        }
                    }
                    Ok(done) => self.finish(done),
                    Err(error) => log::error!(id = self.record.id.as_str(); "work on the sandbox broke off: {error}"),
                },
            }
        }
    }

    /// A new pod is announced; one that was met again may have something left to do.
    fn begin(&mut self) {
        if self.record.ready() {
            self.announce(EventKind::Started, &self.record.id.clone());
        } else if self.record.network_owed {
            self.retry_network(FIRST_RETRY);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add { record, spec, reply } => {
                let result = self.add(*record, *spec).map_err(Arc::new);
                let _ = reply.send(result);
            }
            Command::Start { id, reply } => self.start(&id, reply),
            Command::Stop { id, deadline, reply } => self.stop_container(&id, deadline, reply),
            Command::Remove { id, reply } => self.remove_container(&id, reply),
            Command::Update { id, resources, reply } => self.update(&id, *resources, reply),
            Command::Resize { asked, reply } => self.resize(*asked, reply),
            Command::StopPod { reply } => {
                self.stop_waiters.push(reply);
                self.stop();
            }
            Command::RemovePod { reply } => {
                self.removal_waiters.push(reply);
                self.remove();
            }
        }
    }

    fn hear(&mut self, event: ShimEvent) {
        match event {
            ShimEvent::Said(Event::Exited { state }) => self.exited(&state),
            ShimEvent::Said(Event::Launched { container, pid }) => self.launched(&container, pid),
            ShimEvent::Said(Event::Made { container, pid }) => self.made(&container, pid),
            ShimEvent::Gone => self.shim_gone(),
        }
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Placed { id, result } => self.placed(&id, result),
            Done::Started { id, result } => self.started(&id, result),
            Done::Stopped { id, result } => self.stopped_container(&id, result),
            Done::Removed { id, result } => self.removed_container(&id, result),
            Done::Updated { id, result } => self.updated(&id, result),
            Done::Resized { asked, result } => self.resized(*asked, result),
            Done::PodStopped { network } => self.stopped(network),
            Done::NetworkRetried { network, pause } => {
                self.network_retried(network, pause);
                self.publish();
            }
            Done::Reconnected { found } => self.reconnected(found),
            // taken by the loop, which ends with it
            Done::PodRemoved { .. } => {}
        }
    }

    /// Lets everybody see the present state.
    fn publish(&self) -> Arc<PodView> {
        let view = Arc::new(PodView {
            sandbox: Arc::clone(&self.record),
            containers: self.members.iter().map(Member::view).collect(),
            shim: self.shim.clone(),
        });
        self.view.send_replace(Arc::clone(&view));
        view
    }

    fn announce(&self, kind: EventKind, id: &str) {
        let view = self.publish();
        self.environment.events.publish(kind, id, &view);
    }

    /// Changes the pod's record, in memory and on disk.
    fn change(&mut self, change: impl FnOnce(&mut SandboxRecord)) {
        change(Arc::make_mut(&mut self.record));
        if let Err(error) = setup::save(&self.environment, &self.record) {
            // memory is right; a daemon started now would find out from the shim
            log::error!(id = self.record.id.as_str(); "{}", chain(&error));
        }
    }

    fn resize(&mut self, asked: UpdatePodSandboxResourcesRequest, reply: PodReply) {
        let id = || self.record.id.clone();
        let refused = match () {
            () if !self.record.ready() => PodError::NotReady { id: id() },
            () if self.resizing.is_some() => PodError::Busy { id: id() },
            () => {
                self.resizing = Some(reply);
                let (environment, record) = (Arc::clone(&self.environment), Arc::clone(&self.record));
                self.work.spawn(async move {
                    let result = resize::resize(&environment, &record, &asked).await;
                    Done::Resized { asked: Box::new(asked), result }
                });
                return;
            }
        };
        let _ = reply.send(Err(Arc::new(refused)));
    }

    fn resized(&mut self, asked: UpdatePodSandboxResourcesRequest, result: Result<(), PodError>) {
        if result.is_ok() {
            self.change(|record| record.resized = asked);
            self.publish();
        }
        if let Some(waiter) = self.resizing.take() {
            let _ = waiter.send(result.map_err(Arc::new));
        }
    }

    /// Stops the pod unless that is done or under way; whoever waits is told at the end.
    fn stop(&mut self) {
        if self.stopping {
            return;
        }
        if !self.record.ready() && !self.record.network_owed && !self.members.iter().any(Member::lives) {
            return self.tell_stopped();
        }
        self.stopping = true;
        if self.record.ready() {
            self.change(|record| record.state = SandboxState::NotReady);
            self.announce(EventKind::Stopped, &self.record.id.clone());
        }
        let (environment, record, shim) = (Arc::clone(&self.environment), Arc::clone(&self.record), self.shim.clone());
        let cgroups: Vec<CgroupPath> = self.members.iter().map(|member| member.record.cgroup.clone()).collect();
        self.work.spawn(async move {
            teardown::kill(&environment, &record, shim.as_ref(), &cgroups).await;
            Done::PodStopped { network: teardown::disconnect(&environment, &record).await }
        });
    }

    /// The pod is stopped also when its network would not go: that is tried again, without anybody waiting.
    fn stopped(&mut self, network: Result<(), PodError>) {
        self.stopping = false;
        self.bury_the_killed();
        self.network_retried(network, FIRST_RETRY);
        self.publish();
        self.tell_stopped();
        if self.removing {
            self.erase();
        }
    }

    fn tell_stopped(&mut self) {
        for waiter in self.stop_waiters.drain(..) {
            let _ = waiter.send(Ok(()));
        }
    }

    fn network_retried(&mut self, network: Result<(), PodError>, pause: Duration) {
        match network {
            Ok(()) => {
                if self.record.network_owed {
                    self.change(|record| record.network_owed = false);
                }
            }
            Err(error) => {
                log::warn!(id = self.record.id.as_str(), seconds = pause.as_secs(); "trying again: {}", chain(&error));
                self.retry_network(pause);
            }
        }
    }

    fn retry_network(&mut self, pause: Duration) {
        let (environment, record) = (Arc::clone(&self.environment), Arc::clone(&self.record));
        self.work.spawn(async move {
            tokio::time::sleep(pause).await;
            let network = teardown::disconnect(&environment, &record).await;
            Done::NetworkRetried { network, pause: (pause * 2).min(LAST_RETRY) }
        });
    }

    /// Removes the pod: stopped first, then everything of it.
    fn remove(&mut self) {
        if self.removing {
            return;
        }
        self.removing = true;
        if !self.stopping {
            self.stop();
        }
        if !self.stopping {
            self.erase();
        }
    }

    fn erase(&mut self) {
        let (environment, record, shim) = (Arc::clone(&self.environment), Arc::clone(&self.record), self.shim.clone());
        let members: Vec<ContainerRecord> = self.members.iter().map(|member| (*member.record).clone()).collect();
        self.work.spawn(async move {
            let erased = async {
                for member in members {
                    let container = member.id.clone();
                    let removed = crate::container::erase(&environment, &member, None).await;
                    removed.map_err(|source| PodError::Container {
                        container,
                        id: record.id.clone(),
                        source: Box::new(source),
                    })?;
                }
                teardown::erase(&environment, &record, shim).await
            };
            Done::PodRemoved { result: erased.await }
        });
    }

    /// True when nothing is left and the task can end.
    fn removed(&mut self, result: Result<(), PodError>) -> bool {
        self.removing = false;
        let result = result.map_err(Arc::new);
        let gone = result.is_ok();
        if gone {
            self.table.remove(&self.record.id);
            log::info!(id = self.record.id.as_str(); "sandbox removed");
            for member in std::mem::take(&mut self.members) {
                self.announce(EventKind::Deleted, &member.record.id);
            }
            self.announce(EventKind::Deleted, &self.record.id);
        }
        for waiter in self.removal_waiters.drain(..) {
            let _ = waiter.send(result.clone());
        }
        self.tell_stopped();
        gone
    }
}
