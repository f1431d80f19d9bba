//! A container in the hands of its pod's task.

use std::sync::Arc;

use nodeagent_cri_api::LinuxContainerResources;
use nodeagent_shim::protocol::LaunchSpec;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::container::{ContainerError, ContainerRecord, Phase};
use crate::sandbox::ContainerView;
use crate::sandbox::command::ContainerReply;

/// What is being done to a container.
#[derive(Default)]
pub(super) struct Activity {
    /// Being started; who waits for it.
    pub start: Option<Vec<ContainerReply>>,
    /// Why its launcher could not go on, and was killed.
    pub misplaced: Option<ContainerError>,
    /// Being stopped.
    pub stop: Option<Stopping>,
    /// To be removed, as soon as it does not run; who waits for it.
    pub removal: Option<Vec<ContainerReply>>,
    /// Its removal is under way.
    pub erasing: bool,
    /// Its limits are being changed; who waits for it.
    pub update: Option<ContainerReply>,
}

/// A stop under way: its deadline can come nearer.
pub(super) struct Stopping {
    pub deadline: watch::Sender<Instant>,
    pub waiters: Vec<ContainerReply>,
}

/// New limits, once they hold.
pub(super) struct Updated {
    pub resources: LinuxContainerResources,
}

/// A container and what is being done to it.
pub(super) struct Member {
    pub record: Arc<ContainerRecord>,
    pub spec: Arc<LaunchSpec>,
    pub activity: Activity,
}

impl Member {
    pub fn new(record: ContainerRecord, spec: LaunchSpec) -> Self {
        Member { record: Arc::new(record), spec: Arc::new(spec), activity: Activity::default() }
    }

    pub fn view(&self) -> ContainerView {
        ContainerView { record: Arc::clone(&self.record), spec: Arc::clone(&self.spec) }
    }

    /// Whether there is, or may be, a process.
    pub fn lives(&self) -> bool {
        self.record.phase == Phase::Running || self.activity.start.is_some()
    }

    /// Refuses what its phase does not allow.
    pub fn wrong_phase(&self, action: &'static str) -> Arc<ContainerError> {
        Arc::new(ContainerError::WrongPhase { id: self.record.id.clone(), phase: self.record.phase, action })
    }
}

/// Tells everybody.
pub(super) fn tell(waiters: Vec<ContainerReply>, result: &Result<(), Arc<ContainerError>>) {
    for waiter in waiters {
        // whoever asked may have left
        let _ = waiter.send(result.clone());
    }
}
