//! What pods and containers use, as kubelet's summary asks for it; and lists that come as streams.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use tonic::{Code, Streaming};

use crate::containers::pod;
use crate::node::{Node, refused, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("stats: a container's use is its own, by id and in the list of its pod", of_container);
    suite.add("stats: a pod's use is that of its containers and its network", of_pod);
    suite.add("stats: lists that come as streams have what the lists have", streams);
}

type Shared = Arc<Node>;

/// A container that has used the processor, has 8 MB of memory and has written a megabyte.
async fn busy(node: &Node, name: &str) -> Result<(String, String)> {
    let (pod, config, image) = pod(node, name).await?;
    let text = "head -c 1000000 /dev/zero > /written; v=$(head -c 8000000 /dev/zero | tr '\\0' x); \
                i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; sleep 1000 & wait $!";
    let id = node.launch(&pod, &config, &script("busy", &image, text)).await?;
    node.log_with(&node.status(&id).await?.log_path, "ready").await?;
    Ok((pod, id))
}

fn value(value: Option<UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

fn check(stats: &ContainerStats, id: &str) -> Result<()> {
    let attributes = stats.attributes.as_ref().context("no attributes")?;
    ensure!(attributes.id == id, "of {}", attributes.id);
    ensure!(attributes.metadata.as_ref().is_some_and(|metadata| metadata.name == "busy"), "{attributes:?}");
    let cpu = stats.cpu.as_ref().context("no cpu")?;
    ensure!(cpu.timestamp > 0 && value(cpu.usage_core_nano_seconds) > 1_000_000, "{cpu:?}");
    let memory = stats.memory.as_ref().context("no memory")?;
    ensure!(memory.timestamp > 0 && value(memory.working_set_bytes) > 8_000_000, "{memory:?}");
    Ok(())
}

async fn of_container(node: Shared) -> Result<()> {
    let (pod, id) = busy(&node, "one").await?;
    let (_, other) = busy(&node, "two").await?;
    let mut runtime = node.cri().runtime;
    let one = runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await?.into_inner();
    let one = one.stats.context("no stats")?;
    check(&one, &id)?;
    let layer = one.writable_layer.context("nothing of what it wrote")?;
    ensure!(value(layer.used_bytes) >= 1_000_000 && value(layer.inodes_used) > 0, "{layer:?}");
    let filters = [
        ContainerStatsFilter { pod_sandbox_id: pod.clone(), ..Default::default() },
        ContainerStatsFilter { id: id.clone(), ..Default::default() },
    ];
    for filter in filters {
        let request = ListContainerStatsRequest { filter: Some(filter.clone()) };
        let list = runtime.list_container_stats(request).await?.into_inner().stats;
        ensure!(list.len() == 1, "{filter:?} gives {list:?}");
        check(&list[0], &id)?;
    }
    let all = runtime.list_container_stats(ListContainerStatsRequest::default()).await?.into_inner().stats;
    let ids: Vec<&str> = all.iter().filter_map(|stats| stats.attributes.as_ref()).map(|one| one.id.as_str()).collect();
    ensure!(ids.contains(&id.as_str()) && ids.contains(&other.as_str()), "{ids:?}");
    let unknown = ContainerStatsRequest { container_id: "c".repeat(64) };
    refused(runtime.container_stats(unknown).await, Code::NotFound)?;
    Ok(())
}

async fn of_pod(node: Shared) -> Result<()> {
    let (pod, id) = busy(&node, "pod").await?;
    let mut runtime = node.cri().runtime;
    let one = runtime.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: pod.clone() }).await?.into_inner();
    let by_id = one.stats.context("no stats")?;
    let filter = PodSandboxStatsFilter { id: pod.clone(), label_selector: HashMap::new() };
    let request = ListPodSandboxStatsRequest { filter: Some(filter) };
    let list = runtime.list_pod_sandbox_stats(request).await?.into_inner().stats;
    ensure!(list.len() == 1, "{list:?}");
    for stats in [&by_id, &list[0]] {
        ensure!(stats.attributes.as_ref().is_some_and(|attributes| attributes.id == pod), "{stats:?}");
        let linux = stats.linux.as_ref().context("no linux part")?;
        check(linux.containers.first().context("no container")?, &id)?;
        let cpu = linux.cpu.as_ref().context("no cpu")?;
        ensure!(value(cpu.usage_core_nano_seconds) > 1_000_000, "{cpu:?}");
        let memory = linux.memory.as_ref().context("no memory")?;
        ensure!(value(memory.working_set_bytes) > 8_000_000, "{memory:?}");
        let processes = linux.process.as_ref().context("no processes")?;
        ensure!(value(processes.process_count) >= 2, "{processes:?}");
        let network = linux.network.as_ref().and_then(|network| network.default_interface.as_ref());
        ensure!(network.is_some_and(|link| link.name == "eth0"), "{network:?}");
    }
    let unknown = PodSandboxStatsRequest { pod_sandbox_id: "c".repeat(64) };
    refused(runtime.pod_sandbox_stats(unknown).await, Code::NotFound)?;
    Ok(())
}

/// Everything that a stream brings.
async fn collect<T>(stream: tonic::Response<Streaming<T>>) -> Result<Vec<T>> {
    let mut stream = stream.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await? {
        all.push(message);
    }
    Ok(all)
}

async fn streams(node: Shared) -> Result<()> {
    let (pod, id) = busy(&node, "streamed").await?;
    let (mut runtime, mut images) = (node.cri().runtime, node.cri().images);
    let pods = collect(runtime.stream_pod_sandboxes(StreamPodSandboxesRequest::default()).await?).await?;
    ensure!(pods.iter().flat_map(|batch| &batch.pod_sandboxes).any(|one| one.id == pod), "{pods:?}");
    let containers = collect(runtime.stream_containers(StreamContainersRequest::default()).await?).await?;
    ensure!(containers.iter().flat_map(|batch| &batch.containers).any(|one| one.id == id), "{containers:?}");
    let stats = collect(runtime.stream_container_stats(StreamContainerStatsRequest::default()).await?).await?;
    let stats = stats.iter().flat_map(|batch| &batch.container_stats);
    ensure!(stats.filter_map(|one| one.attributes.as_ref()).any(|one| one.id == id), "no stats of the container");
    let stats = collect(runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest::default()).await?).await?;
    let stats = stats.iter().flat_map(|batch| &batch.pod_sandbox_stats);
    ensure!(stats.filter_map(|one| one.attributes.as_ref()).any(|one| one.id == pod), "no stats of the pod");
    let metrics = collect(runtime.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest::default()).await?).await?;
    let mut metrics = metrics.iter().flat_map(|batch| &batch.pod_sandbox_metrics);
    ensure!(metrics.any(|one| one.pod_sandbox_id == pod), "no metrics of the pod");
    let image = node.busybox().await?;
    let streamed = collect(images.stream_images(StreamImagesRequest::default()).await?).await?;
    ensure!(streamed.iter().flat_map(|batch| &batch.images).any(|one| one.id == image), "{streamed:?}");
    Ok(())
}
