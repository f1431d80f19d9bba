//! Pods as they are.

use std::collections::HashMap;

use nodeagent_cri_api::{
    LinuxContainerResources, ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter,
    PodSandboxStatusRequest, PodSandboxStatusResponse, StreamPodSandboxesRequest, StreamPodSandboxesResponse,
};
use serde_json::json;
use tonic::Status;

use super::{Batches, Cri, batches, convert, filter};
use crate::clock;
use crate::sandbox::PodView;

pub(super) async fn pod_sandbox_status(
    cri: &Cri,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Status> {
    let view = cri.pod(&request.pod_sandbox_id)?.view();
    Ok(PodSandboxStatusResponse {
        status: Some(convert::sandbox_status(&view.sandbox)),
        info: if request.verbose { info(&view) } else { HashMap::new() },
        containers_statuses: convert::container_statuses(&view),
        timestamp: clock::now(),
    })
}

fn info(view: &PodView) -> HashMap<String, String> {
    let sandbox = &view.sandbox;
    let (overhead, resources) = sandbox.resources();
    let shown = json!({
        "sandboxID": sandbox.id,
        "pid": sandbox.shim_pid,
        "netns": sandbox.netns,
        "cgroup": sandbox.cgroup.to_string(),
        "supervisorConnected": view.shim.is_some(),
        "networkRemovalOwed": sandbox.network_owed && !sandbox.ready(),
        "overhead": overhead.map(limits),
        "resources": resources.map(limits),
        "containers": view.containers.iter().map(|container| &container.record.id).collect::<Vec<_>>(),
    });
    HashMap::from([("info".to_owned(), shown.to_string())])
}

/// Limits under the names that the protocol gives them, without those that were not said.
fn limits(of: &LinuxContainerResources) -> serde_json::Value {
    let numbers = [
        ("cpu_period", of.cpu_period),
        ("cpu_quota", of.cpu_quota),
        ("cpu_shares", of.cpu_shares),
        ("memory_limit_in_bytes", of.memory_limit_in_bytes),
        ("memory_swap_limit_in_bytes", of.memory_swap_limit_in_bytes),
    ];
    numbers.into_iter().filter(|(_, value)| *value != 0).map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

fn list(cri: &Cri, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
    let filter = filter::Pods::new(filter);
    let views = cri.node.pods.views();
    views.iter().filter(|view| filter.lets(&view.sandbox)).map(|view| convert::sandbox(&view.sandbox)).collect()
}

pub(super) async fn list_pod_sandbox(
    cri: &Cri,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Status> {
    Ok(ListPodSandboxResponse { items: list(cri, request.filter) })
}

pub(super) async fn stream_pod_sandboxes(
    cri: &Cri,
    request: StreamPodSandboxesRequest,
) -> Result<Batches<StreamPodSandboxesResponse>, Status> {
    Ok(batches(list(cri, request.filter), |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}
