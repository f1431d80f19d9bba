//! Pods made, stopped, removed.

use nodeagent_cri_api::{
    RemovePodSandboxRequest, RemovePodSandboxResponse, RunPodSandboxRequest, RunPodSandboxResponse,
    StopPodSandboxRequest, StopPodSandboxResponse, UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse,
};
use tonic::Status;

use super::{Cri, status};

pub(super) async fn run_pod_sandbox(cri: &Cri, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
    let config = request.config.ok_or_else(|| status::missing("config"))?;
    let made = cri.node.pods.run(config, request.runtime_handler).await;
    Ok(RunPodSandboxResponse { pod_sandbox_id: made.map_err(status::pod)? })
}

/// An unknown pod is a stopped one.
pub(super) async fn stop_pod_sandbox(
    cri: &Cri,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Status> {
    if let Some(pod) = cri.node.pods.find(&request.pod_sandbox_id) {
        pod.stop_pod().await.map_err(status::pod)?;
    }
    Ok(StopPodSandboxResponse {})
}

/// An unknown pod is a removed one.
pub(super) async fn remove_pod_sandbox(
    cri: &Cri,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Status> {
    if let Some(pod) = cri.node.pods.find(&request.pod_sandbox_id) {
        pod.remove_pod().await.map_err(status::pod)?;
    }
    Ok(RemovePodSandboxResponse {})
}

/// Kubelet resizes a pod in place: it has sized the pod's cgroup itself, and tells what it comes to.
pub(super) async fn update_pod_sandbox_resources(
    cri: &Cri,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Status> {
    let pod = cri.pod(&request.pod_sandbox_id)?;
    pod.resize(request).await.map_err(status::pod)?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
