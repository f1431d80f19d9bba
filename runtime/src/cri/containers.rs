//! Containers made, started, stopped, removed.

use std::time::Duration;

use nodeagent_cri_api::{
    CreateContainerRequest, CreateContainerResponse, RemoveContainerRequest, RemoveContainerResponse,
    StartContainerRequest, StartContainerResponse, StopContainerRequest, StopContainerResponse,
};
use tonic::Status;

use super::{Cri, status};

pub(super) async fn create_container(
    cri: &Cri,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| status::missing("config"))?;
    let pod = cri.pod(&request.pod_sandbox_id)?;
    let made = cri.node.pods.create_container(&pod, config).await;
    Ok(CreateContainerResponse { container_id: made.map_err(status::container)? })
}

pub(super) async fn start_container(
    cri: &Cri,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Status> {
    let (pod, id) = cri.container(&request.container_id)?;
    pod.start(&id).await.map_err(status::container)?;
    Ok(StartContainerResponse {})
}

/// An unknown container is a stopped one.
pub(super) async fn stop_container(cri: &Cri, request: StopContainerRequest) -> Result<StopContainerResponse, Status> {
    // less than nothing means now
    let grace = Duration::from_secs(request.timeout.try_into().unwrap_or(0));
    if let Some((pod, id)) = cri.node.pods.find_container(&request.container_id) {
        pod.stop(&id, grace).await.map_err(status::container)?;
    }
    Ok(StopContainerResponse {})
}

/// An unknown container is a removed one.
pub(super) async fn remove_container(
    cri: &Cri,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Status> {
    if let Some((pod, id)) = cri.node.pods.find_container(&request.container_id) {
        pod.remove(&id).await.map_err(status::container)?;
    }
    Ok(RemoveContainerResponse {})
}
