//! Containers as they are.

use std::collections::HashMap;

use nodeagent_cri_api::{
    Container, ContainerFilter, ContainerStatusRequest, ContainerStatusResponse, ListContainersRequest,
    ListContainersResponse, StreamContainersRequest, StreamContainersResponse,
};
use serde_json::json;
use tonic::Status;

use super::{Batches, Cri, batches, convert, filter, status};
use crate::container::ContainerError;
use crate::sandbox::ContainerView;

pub(super) async fn container_status(
    cri: &Cri,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Status> {
    let (pod, id) = cri.container(&request.container_id)?;
    let view = pod.view();
    let container = view.container(&id).ok_or_else(|| status::container(ContainerError::NotFound { id }))?;
    Ok(ContainerStatusResponse {
        status: Some(convert::container_status(&container.record)),
        info: if request.verbose { info(container) } else { HashMap::new() },
    })
}

fn info(container: &ContainerView) -> HashMap<String, String> {
    let record = &container.record;
    let mut launch = (*container.spec).clone();
    // environments hold secrets, and this is for people to look at
    launch.process.env.clear();
    let shown = json!({
        "sandboxID": record.sandbox,
        "pid": record.pid,
        "cgroup": record.cgroup.to_string(),
        "launchSpec": launch,
    });
    HashMap::from([("info".to_owned(), shown.to_string())])
}

fn list(cri: &Cri, filter: Option<ContainerFilter>) -> Vec<Container> {
    let filter = filter::Containers::new(filter);
    let views = cri.node.pods.views();
    let all = views.iter().flat_map(|view| &view.containers);
    let mut found: Vec<Container> =
        all.filter(|container| filter.lets(&container.record)).map(|one| convert::container(&one.record)).collect();
    found.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    found
}

pub(super) async fn list_containers(
    cri: &Cri,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Status> {
    Ok(ListContainersResponse { containers: list(cri, request.filter) })
}

pub(super) async fn stream_containers(
    cri: &Cri,
    request: StreamContainersRequest,
) -> Result<Batches<StreamContainersResponse>, Status> {
    Ok(batches(list(cri, request.filter), |containers| StreamContainersResponse { containers }))
}
