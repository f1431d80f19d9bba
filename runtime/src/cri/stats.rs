//! What pods and containers use: CPU, memory and swap, from their cgroups; disk space as [`disk`](super::disk) knows it.

use nodeagent_cri_api::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ContainerStatsResponse, CpuUsage,
    LinuxPodSandboxStats, ListContainerStatsRequest, ListContainerStatsResponse, ListPodSandboxStatsRequest,
    ListPodSandboxStatsResponse, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest, PodSandboxStatsResponse, ProcessUsage,
    StreamContainerStatsRequest, StreamContainerStatsResponse, StreamPodSandboxStatsRequest,
    StreamPodSandboxStatsResponse, SwapUsage, UInt64Value,
};
use tonic::Status;

use super::{Batches, Cri, batches, filter, links, status};
use crate::cgroup::{Cgroups, Stats};
use crate::clock;
use crate::container::{ContainerError, ContainerRecord, Phase};
use crate::network;
use crate::sandbox::{ContainerView, PodView};

pub(super) async fn container_stats(
    cri: &Cri,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Status> {
    let (pod, id) = cri.container(&request.container_id)?;
    let view = pod.view();
    let container = view.container(&id).ok_or_else(|| status::container(ContainerError::NotFound { id }))?;
    let mut stats = of_container(&cri.node.cgroups, &container.record).0;
    stats.writable_layer = cri.disk.of_one(&container.record.id, &container.spec.rootfs.upper).await;
    Ok(ContainerStatsResponse { stats: Some(stats) })
}

fn all_containers(cri: &Cri, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
    let filter = filter::Containers::of_stats(filter);
    let views = cri.node.pods.views();
    cri.disk.keep(|id| views.iter().any(|view| view.container(id).is_some()));
    let containers = views.iter().flat_map(|view| &view.containers);
    // what does not run uses nothing; kubelet would count it as running
    let running = containers.filter(|one| one.record.phase == Phase::Running && filter.lets(&one.record));
    running.map(|container| with_disk(cri, container)).collect()
}

fn with_disk(cri: &Cri, container: &ContainerView) -> ContainerStats {
    let mut stats = of_container(&cri.node.cgroups, &container.record).0;
    stats.writable_layer = cri.disk.latest(&container.record.id, &container.spec.rootfs.upper);
    stats
}

pub(super) async fn list_container_stats(
    cri: &Cri,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Status> {
    Ok(ListContainerStatsResponse { stats: all_containers(cri, request.filter) })
}

pub(super) async fn stream_container_stats(
    cri: &Cri,
    request: StreamContainerStatsRequest,
) -> Result<Batches<StreamContainerStatsResponse>, Status> {
    let stats = all_containers(cri, request.filter);
    Ok(batches(stats, |container_stats| StreamContainerStatsResponse { container_stats }))
}

pub(super) async fn pod_sandbox_stats(
    cri: &Cri,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Status> {
    let view = cri.pod(&request.pod_sandbox_id)?.view();
    Ok(PodSandboxStatsResponse { stats: Some(of_pod(cri, &view)) })
}

fn all_pods(cri: &Cri, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
    let filter = filter::Pods::of_stats(filter);
    let views = cri.node.pods.views();
    let ready = views.iter().filter(|view| view.sandbox.ready() && filter.lets(&view.sandbox));
    ready.map(|view| of_pod(cri, view)).collect()
}

pub(super) async fn list_pod_sandbox_stats(
    cri: &Cri,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    Ok(ListPodSandboxStatsResponse { stats: all_pods(cri, request.filter) })
}

pub(super) async fn stream_pod_sandbox_stats(
    cri: &Cri,
    request: StreamPodSandboxStatsRequest,
) -> Result<Batches<StreamPodSandboxStatsResponse>, Status> {
    let stats = all_pods(cri, request.filter);
    Ok(batches(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

/// A container whose cgroup cannot be read has just ended: it used nothing that could be told.
fn of_container(cgroups: &Cgroups, record: &ContainerRecord) -> (ContainerStats, Stats) {
    let used = cgroups.stats(&record.cgroup).unwrap_or_default();
    let attributes = ContainerAttributes {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    };
    let swap = SwapUsage {
        timestamp: clock::now(),
        swap_available_bytes: used
            .swap_limit
            .zip(used.swap_usage)
            .and_then(|(limit, now)| value(limit.saturating_sub(now))),
        swap_usage_bytes: used.swap_usage.and_then(value),
    };
    let stats = ContainerStats {
        attributes: Some(attributes),
        cpu: Some(cpu(&used)),
        memory: Some(memory(&used)),
        writable_layer: None,
        swap: Some(swap),
        io: None,
    };
    (stats, used)
}

fn cpu(used: &Stats) -> CpuUsage {
    CpuUsage { timestamp: clock::now(), usage_core_nano_seconds: value(used.cpu_nanos), ..CpuUsage::default() }
}

fn memory(used: &Stats) -> MemoryUsage {
    MemoryUsage {
        timestamp: clock::now(),
        working_set_bytes: value(used.memory_working_set),
        available_bytes: used.memory_available().and_then(value),
        usage_bytes: value(used.memory_usage),
        rss_bytes: value(used.memory_rss),
        page_faults: value(used.page_faults),
        major_page_faults: value(used.major_page_faults),
        psi: None,
    }
}

/// Over a pod's links; the one that its network made is the one that kubelet's summary is about.
fn network_usage(view: &PodView) -> Option<NetworkUsage> {
    let interfaces: Vec<_> = links::of_pod(view).into_iter().map(interface).collect();
    let default_interface =
        interfaces.iter().find(|link| link.name == network::INTERFACE).or(interfaces.first()).cloned();
    default_interface.is_some().then(|| NetworkUsage { timestamp: clock::now(), default_interface, interfaces })
}

fn interface(link: links::Link) -> NetworkInterfaceUsage {
    NetworkInterfaceUsage {
        name: link.name,
        rx_bytes: value(link.received.bytes),
        rx_errors: value(link.received.errors),
        tx_bytes: value(link.sent.bytes),
        tx_errors: value(link.sent.errors),
    }
}

/// The sum of its containers: the pod's own cgroup is empty.
fn of_pod(cri: &Cri, view: &PodView) -> PodSandboxStats {
    let sandbox = &view.sandbox;
    let running = view.containers.iter().filter(|container| container.record.phase == Phase::Running);
    let mut sum = Stats::default();
    let mut containers = Vec::new();
    for container in running {
        let (mut stats, used) = of_container(&cri.node.cgroups, &container.record);
        stats.writable_layer = cri.disk.latest(&container.record.id, &container.spec.rootfs.upper);
        containers.push(stats);
        sum.add(&used);
    }
    let attributes = PodSandboxAttributes {
        id: sandbox.id.clone(),
        metadata: sandbox.config.metadata.clone(),
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
    };
    let linux = LinuxPodSandboxStats {
        cpu: Some(cpu(&sum)),
        memory: Some(memory(&sum)),
        network: network_usage(view),
        process: Some(ProcessUsage { timestamp: clock::now(), process_count: value(sum.processes) }),
        containers,
        io: None,
    };
    PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None }
}
