//! Running containers changed: their limits, their logs.

use nodeagent_cri_api::{
    ReopenContainerLogRequest, ReopenContainerLogResponse, UpdateContainerResourcesRequest,
    UpdateContainerResourcesResponse,
};
use tonic::Status;

use super::{Cri, status};
use crate::container;

pub(super) async fn update_container_resources(
    cri: &Cri,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Status> {
    let (pod, id) = cri.container(&request.container_id)?;
    let limits = request.linux.ok_or_else(|| status::missing("linux"))?;
    pod.update(&id, limits).await.map_err(status::container)?;
    Ok(UpdateContainerResourcesResponse {})
}

pub(super) async fn reopen_container_log(
    cri: &Cri,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Status> {
    let (pod, id) = cri.container(&request.container_id)?;
    container::reopen_log(&pod, &id).await.map_err(status::container)?;
    Ok(ReopenContainerLogResponse {})
}
