//! A pod as others see it: a value that does not change under their eyes.

use std::sync::Arc;

use nodeagent_shim::protocol::LaunchSpec;

use super::{SandboxRecord, Shim};
use crate::container::{ContainerRecord, Phase};

/// A container with what it was launched from.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// What is known of it.
    pub record: Arc<ContainerRecord>,
    /// What the shim was, or is to be, told.
    pub spec: Arc<LaunchSpec>,
}

/// A pod and its containers at one moment.
#[derive(Debug, Clone)]
pub struct PodView {
    /// What is known of the pod.
    pub sandbox: Arc<SandboxRecord>,
    /// Its containers, in the order of their creation.
    pub containers: Vec<ContainerView>,
    /// Its supervisor, while there is a connection.
    pub shim: Option<Shim>,
}

impl PodView {
    /// One of its containers.
    pub fn container(&self, id: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|container| container.record.id == id)
    }

    /// Where a container is in its life; none when it is gone.
    pub fn phase(&self, id: &str) -> Option<Phase> {
        self.container(id).map(|container| container.record.phase)
    }
}
