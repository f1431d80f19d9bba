//! How others talk to a pod's task.

use std::sync::Arc;
use std::time::Duration;

use nodeagent_cri_api::{LinuxContainerResources, UpdatePodSandboxResourcesRequest};
use nodeagent_shim::protocol::LaunchSpec;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::{PodError, PodView};
use crate::container::{ContainerError, ContainerRecord};

/// Commands that may wait for a pod; more make their callers wait.
pub(super) const QUEUE: usize = 32;

pub(super) type PodReply = oneshot::Sender<Result<(), Arc<PodError>>>;
pub(super) type ContainerReply = oneshot::Sender<Result<(), Arc<ContainerError>>>;

/// What a pod can be told.
pub(super) enum Command {
    /// Take a container that was made.
    Add { record: Box<ContainerRecord>, spec: Box<LaunchSpec>, reply: ContainerReply },
    /// Start one.
    Start { id: String, reply: ContainerReply },
    /// Stop one: politely, and at the deadline by force.
    Stop { id: String, deadline: Instant, reply: ContainerReply },
    /// Remove one, whatever it does.
    Remove { id: String, reply: ContainerReply },
    /// Change one's limits.
    Update { id: String, resources: Box<LinuxContainerResources>, reply: ContainerReply },
    /// Change the limits of the whole.
    Resize { asked: Box<UpdatePodSandboxResourcesRequest>, reply: PodReply },
    /// Stop all, leave the network.
    StopPod { reply: PodReply },
    /// Stop, and remove everything.
    RemovePod { reply: PodReply },
}

/// A pod, for those who are not its task. Cheap to clone.
#[derive(Clone)]
pub struct PodHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) view: watch::Receiver<Arc<PodView>>,
}

impl PodHandle {
    /// The pod as it is now.
    pub fn view(&self) -> Arc<PodView> {
        Arc::clone(&self.view.borrow())
    }

    /// Takes a container that was made; refused when the pod is not ready any more.
    pub async fn add(&self, record: ContainerRecord, spec: LaunchSpec) -> Result<(), ContainerError> {
        let (record, spec) = (Box::new(record), Box::new(spec));
        self.container(|reply| Command::Add { record, spec, reply }, None).await
    }

    /// Starts a container. The start goes on when the caller leaves.
    pub async fn start(&self, id: &str) -> Result<(), ContainerError> {
        self.container(|reply| Command::Start { id: id.to_owned(), reply }, Some(id)).await
    }

    /// Stops a container; one that does not run, or is gone, is stopped. A second call can only shorten the wait.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), ContainerError> {
        let deadline = Instant::now() + grace;
        gone_is_fine(self.container(|reply| Command::Stop { id: id.to_owned(), deadline, reply }, None).await)
    }

    /// Removes a container; one that is gone is removed.
    pub async fn remove(&self, id: &str) -> Result<(), ContainerError> {
        gone_is_fine(self.container(|reply| Command::Remove { id: id.to_owned(), reply }, None).await)
    }

    /// Changes a container's limits.
    pub async fn update(&self, id: &str, resources: LinuxContainerResources) -> Result<(), ContainerError> {
        let resources = Box::new(resources);
        self.container(|reply| Command::Update { id: id.to_owned(), resources, reply }, Some(id)).await
    }

    /// Changes the limits of the whole pod.
    pub async fn resize(&self, asked: UpdatePodSandboxResourcesRequest) -> Result<(), PodError> {
        let id = asked.pod_sandbox_id.clone();
        let (reply, answer) = oneshot::channel();
        let gone = || PodError::NotFound { id: id.clone() };
        let command = Command::Resize { asked: Box::new(asked), reply };
        self.commands.send(command).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(PodError::Shared)
    }

    /// Stops the pod.
    pub async fn stop_pod(&self) -> Result<(), PodError> {
        self.pod(|reply| Command::StopPod { reply }).await
    }

    /// Removes the pod and all its containers.
    pub async fn remove_pod(&self) -> Result<(), PodError> {
        self.pod(|reply| Command::RemovePod { reply }).await
    }

    async fn pod(&self, command: impl FnOnce(PodReply) -> Command) -> Result<(), PodError> {
        let (reply, answer) = oneshot::channel();
        // a task that is gone has removed its pod, which is as stopped as can be
        if self.commands.send(command(reply)).await.is_err() {
            return Ok(());
        }
        match answer.await {
            Ok(result) => result.map_err(PodError::Shared),
            Err(_) => Ok(()),
        }
    }

    /// A pod that is gone took the container along: an error for those who name it in `needed`.
    async fn container(
        &self,
        command: impl FnOnce(ContainerReply) -> Command,
        needed: Option<&str>,
    ) -> Result<(), ContainerError> {
        let (reply, answer) = oneshot::channel();
        let gone = || ContainerError::NotFound { id: needed.unwrap_or_default().to_owned() };
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(ContainerError::Shared)
    }
}

fn gone_is_fine(result: Result<(), ContainerError>) -> Result<(), ContainerError> {
    match result {
        Err(ContainerError::NotFound { .. }) => Ok(()),
        Err(ContainerError::Shared(error)) if matches!(*error, ContainerError::NotFound { .. }) => Ok(()),
        other => other,
    }
}
