//! `ListMetricDescriptors` and `ListPodSandboxMetrics`: what cAdvisor used to tell of containers, with labels.
//!
//! [`table`] has each metric once; [`container`] and [`pod`] find the values in cgroups, `/proc` and the pod's network.

mod container;
mod pod;
mod table;

use nodeagent_cri_api::{
    ContainerMetrics, ListMetricDescriptorsResponse, ListPodSandboxMetricsResponse, Metric, MetricDescriptor,
    PodSandboxMetrics, StreamPodSandboxMetricsResponse, UInt64Value,
};
use tonic::Status;

use super::{Batches, Cri, batches};
use crate::container::Phase;
use crate::sandbox::PodView;
use table::{LABELS, METRICS};

/// Name, further labels, value.
type Sample = (&'static str, Vec<String>, u64);

pub(super) async fn list_metric_descriptors() -> Result<ListMetricDescriptorsResponse, Status> {
    let descriptors = METRICS.iter().map(|metric| MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: LABELS.iter().chain(metric.labels).map(|key| (*key).to_owned()).collect(),
    });
    Ok(ListMetricDescriptorsResponse { descriptors: descriptors.collect() })
}

pub(super) async fn list_pod_sandbox_metrics(cri: &Cri) -> Result<ListPodSandboxMetricsResponse, Status> {
    Ok(ListPodSandboxMetricsResponse { pod_metrics: all(cri).await? })
}

pub(super) async fn stream_pod_sandbox_metrics(cri: &Cri) -> Result<Batches<StreamPodSandboxMetricsResponse>, Status> {
    Ok(batches(all(cri).await?, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
}

async fn all(cri: &Cri) -> Result<Vec<PodSandboxMetrics>, Status> {
    let node = cri.node.clone();
    // many small files
    let work = move || {
        let views = node.pods.views();
        let ready = views.iter().filter(|view| view.sandbox.ready());
        ready.map(|view| of_pod(&node.cgroups, view)).collect()
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Status::unavailable("the daemon is stopping"))
}

fn of_pod(cgroups: &crate::cgroup::Cgroups, view: &PodView) -> PodSandboxMetrics {
    let sandbox = &view.sandbox;
    let metadata = sandbox.config.metadata.clone().unwrap_or_default();
    let labels = |cgroup: String, image: &str, container: &str| {
        vec![cgroup, image.to_owned(), metadata.namespace.clone(), metadata.name.clone(), container.to_owned()]
    };
    let running = view.containers.iter().filter(|container| container.record.phase == Phase::Running);
    let container_metrics = running.map(|container| {
        let record = &container.record;
        let name = record.config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        let labels = labels(record.cgroup.to_string(), &record.image_ref, name);
        let samples = container::samples(cgroups, container);
        ContainerMetrics { container_id: record.id.clone(), metrics: messages(&labels, samples) }
    });
    PodSandboxMetrics {
        pod_sandbox_id: sandbox.id.clone(),
        // the name by which dashboards know what is the pod's and no container's
        metrics: messages(&labels(sandbox.cgroup.to_string(), "", "POD"), pod::samples(view)),
        container_metrics: container_metrics.collect(),
    }
}

fn messages(labels: &[String], samples: Vec<Sample>) -> Vec<Metric> {
    let message = |(name, further, value): Sample| {
        // a name that is not in the table would have no description
        let metric = METRICS.iter().find(|metric| metric.name == name && metric.labels.len() == further.len())?;
        Some(Metric {
            name: name.to_owned(),
            timestamp: 0,
            metric_type: metric.kind.into(),
            label_values: labels.iter().cloned().chain(further).collect(),
            value: Some(UInt64Value { value }),
        })
    };
    samples.into_iter().filter_map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_as_many_labels_as_its_description_has_keys() {
        let labels: Vec<String> = LABELS.iter().map(|key| format!("a {key}")).collect();
        let samples = vec![
            ("container_processes", Vec::new(), 3),
            ("container_fs_reads_total", vec!["/dev/vda".to_owned()], 4),
            ("container_fs_reads_total", Vec::new(), 5),
            ("container_unheard_of", Vec::new(), 6),
        ];
        let messages = messages(&labels, samples);
        let seen: Vec<_> = messages.iter().map(|one| (one.name.as_str(), one.label_values.len())).collect();
        assert_eq!(seen, [("container_processes", 5), ("container_fs_reads_total", 6)]);
    }

    #[tokio::test]
    async fn every_metric_is_described_once() {
        let described = list_metric_descriptors().await.unwrap().descriptors;
        assert_eq!(described.len(), 56);
        let mut names: Vec<_> = described.iter().map(|one| one.name.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 56);
        assert!(described.iter().all(|one| !one.help.is_empty() && one.label_keys.len() >= 5));
    }
}
