//! Metrics of pods and containers, as kubelet hands them on.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;

use crate::handlers::INSTALLED;
use crate::node::{Node, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("metrics: what is listed is described, with a value for each label", described);
    suite.add("metrics: a container's use, limits and names are its own, the network is the pod's", values);
    suite.add_own_with("metrics: what containers of other runtimes use is told as of ours", INSTALLED.settings, others);
}

type Shared = Arc<Node>;

async fn all(node: &Node) -> Result<(HashMap<String, Vec<String>>, Vec<PodSandboxMetrics>)> {
    let mut runtime = node.cri().runtime;
    let described = runtime.list_metric_descriptors(ListMetricDescriptorsRequest {}).await?.into_inner().descriptors;
    let keys = described.into_iter().map(|one| (one.name, one.label_keys)).collect();
    let metrics = runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await?.into_inner().pod_metrics;
    Ok((keys, metrics))
}

async fn busy(node: &Node, name: &str, handler: &str) -> Result<(String, String)> {
    let config = node.pod(name);
    let (image, pod) = (node.busybox().await?, node.run_by(&config, handler).await?);
    let mut wanted = script("worker", &image, "i=0; while :; do i=$((i+1)); done & wait");
    if let Some(linux) = wanted.linux.as_mut() {
        linux.resources = Some(LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        });
    }
    let id = node.launch(&pod, &config, &wanted).await?;
    Ok((pod, id))
}

async fn described(node: Shared) -> Result<()> {
    let (pod, _) = busy(&node, "described", "").await?;
    let (keys, metrics) = all(&node).await?;
    let own = metrics.iter().find(|one| one.pod_sandbox_id == pod).context("no metrics of the pod")?;
    let containers = own.container_metrics.iter().flat_map(|container| &container.metrics);
    let mut count = 0;
    for metric in own.metrics.iter().chain(containers) {
        let labels = keys.get(&metric.name).with_context(|| format!("{} is not described", metric.name))?;
        ensure!(labels.len() == metric.label_values.len(), "{labels:?} and {:?}", metric.label_values);
        count += 1;
    }
    ensure!(count > 40, "{count} metrics");
    Ok(())
}

async fn values(node: Shared) -> Result<()> {
    let (pod, id) = busy(&node, "values", "").await?;
    told(&node, &pod, &id, "values").await
}

async fn others(node: Shared) -> Result<()> {
    for handler in &INSTALLED.names {
        let (pod, id) = busy(&node, &format!("values-{handler}"), handler).await?;
        told(&node, &pod, &id, &format!("values-{handler}")).await.with_context(|| format!("metrics by {handler}"))?;
        stats(&node, &pod, &id).await.with_context(|| format!("stats by {handler}"))?;
        node.remove_pod(&pod).await?;
    }
    Ok(())
}

/// The same by the calls for statistics.
async fn stats(node: &Node, pod: &str, id: &str) -> Result<()> {
    let mut runtime = node.cri().runtime;
    let request = ContainerStatsRequest { container_id: id.into() };
    let one = runtime.container_stats(request).await?.into_inner().stats.context("ContainerStats without any")?;
    let all = runtime.list_container_stats(ListContainerStatsRequest::default()).await?.into_inner().stats;
    let listed = all.into_iter().find(|stats| stats.attributes.as_ref().is_some_and(|of| of.id == id));
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.into() };
    let whole = runtime.pod_sandbox_stats(request).await?.into_inner().stats.and_then(|stats| stats.linux);
    let whole = whole.context("PodSandboxStats without any")?;
    let within = whole.containers.iter().find(|stats| stats.attributes.as_ref().is_some_and(|of| of.id == id));
    for stats in [&one, &listed.context("not in ListContainerStats")?, within.context("not in PodSandboxStats")?] {
        let cpu = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |value| value.value);
        let memory = stats.memory.as_ref().and_then(|memory| memory.usage_bytes).map_or(0, |value| value.value);
        ensure!(cpu > 1_000_000 && (4096..64 << 20).contains(&memory), "{cpu} ns, {memory} bytes: {stats:?}");
    }
    ensure!(one.writable_layer.is_some_and(|layer| layer.used_bytes.is_some()), "no writable layer");
    let processes = whole.process.and_then(|process| process.process_count).map_or(0, |count| count.value);
    ensure!(processes >= 2, "{processes} processes");
    Ok(())
}

async fn told(node: &Node, pod: &str, id: &str, name: &str) -> Result<()> {
    // something for the network to count
    let ask = "wget -q -T 1 -O - http://10.255.255.1/ 2>/dev/null; sleep 1; true";
    node.output(id, &["sh", "-c", ask]).await?;
    let (keys, metrics) = all(node).await?;
    let own = metrics.iter().find(|one| one.pod_sandbox_id == pod).context("no metrics of the pod")?;
    let container = own.container_metrics.iter().find(|one| one.container_id == id).context("nor of the container")?;
    let value = |name: &str| -> Result<u64> {
        let found = container.metrics.iter().find(|metric| metric.name == name);
        let found = found.with_context(|| format!("no {name}"))?;
        Ok(found.value.context("no value")?.value)
    };
    ensure!(value("container_spec_memory_limit_bytes")? == 64 << 20, "memory limit");
    ensure!(value("container_spec_cpu_quota")? == 50_000 && value("container_spec_cpu_shares")? == 512, "CPU limits");
    ensure!(value("container_processes")? >= 2, "{} processes", value("container_processes")?);
    ensure!(value("container_file_descriptors")? >= 3, "{} descriptors", value("container_file_descriptors")?);
    ensure!(value("container_cpu_cfs_periods_total")? > 0, "no period of the quota has passed");
    ensure!(value("container_memory_usage_bytes")? > 0, "no memory");
    let any = container.metrics.first().context("no metric")?;
    let keys = keys.get(&any.name).context("not described")?;
    let label = |key: &str| keys.iter().position(|one| one == key).and_then(|at| any.label_values.get(at)).cloned();
    ensure!(label("container").as_deref() == Some("worker"), "{:?}", label("container"));
    ensure!(label("pod").as_deref() == Some(name), "{:?}", label("pod"));
    ensure!(label("id").is_some_and(|cgroup| cgroup.contains(id)), "{:?}", label("id"));
    let sent = own.metrics.iter().find(|metric| metric.name == "container_network_transmit_packets_total");
    let sent = sent.context("no network")?;
    ensure!(sent.label_values.iter().any(|value| value == "eth0"), "{sent:?}");
    ensure!(sent.value.is_some_and(|sent| sent.value > 0), "nothing was sent: {sent:?}");
    Ok(())
}
