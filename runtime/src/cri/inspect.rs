//! CRI-O's inspection dialect, filled from what the node knows: the names and labels behind cgroups, for cAdvisor.

use std::collections::HashMap;

use super::Cri;
use crate::sandbox::{ContainerView, PodView};
use crate::server::{ContainerJson, CrioInspect, InfoJson};

const CONTAINER_NAME: &str = "io.kubernetes.container.name";

impl CrioInspect for Cri {
    fn info(&self) -> InfoJson {
        let root = self.node.config.root.to_string_lossy().into_owned();
        InfoJson { storage_driver: "overlay".to_owned(), storage_root: root, storage_image: String::new() }
    }

    fn container(&self, id: &str) -> Option<ContainerJson> {
        if let Some(pod) = self.node.pods.find(id).map(|pod| pod.view()).filter(|view| view.sandbox.id == id) {
            return Some(of_sandbox(&pod));
        }
        let (pod, full) = self.node.pods.find_container(id)?;
        let view = pod.view();
        view.container(&full).filter(|_| full == id).map(|container| of_container(&view, container))
    }
}

/// cAdvisor looks for the network of a pod in the container named `POD`: the supervisor is in the pod's namespace.
fn of_sandbox(view: &PodView) -> ContainerJson {
    let sandbox = &view.sandbox;
    let mut json = common(view, &sandbox.config.labels, &sandbox.config.annotations);
    json.name = name(view, "POD", sandbox.config.metadata.as_ref().map_or(0, |metadata| metadata.attempt));
    json.labels.insert(CONTAINER_NAME.to_owned(), "POD".to_owned());
    json.pid = if view.shim.is_some() { sandbox.shim_pid } else { 0 };
    json.created_time = sandbox.created_at;
    json
}

fn of_container(view: &PodView, container: &ContainerView) -> ContainerJson {
    let record = &container.record;
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let asked = record.config.image.clone().unwrap_or_default();
    let mut json = common(view, &record.config.labels, &record.config.annotations);
    json.name = name(view, &metadata.name, metadata.attempt);
    json.pid = record.pid;
    json.image = if asked.user_specified_image.is_empty() { asked.image } else { asked.user_specified_image };
    json.image_ref.clone_from(&record.image_ref);
    json.created_time = record.created_at;
    json.log_path.clone_from(&record.log_path);
    // what the container wrote is what its disk use is about
    json.root.clone_from(&container.spec.rootfs.upper);
    json
}

fn common(view: &PodView, labels: &HashMap<String, String>, annotations: &HashMap<String, String>) -> ContainerJson {
    let sandbox = &view.sandbox;
    let ips: Vec<String> = sandbox.ips.iter().map(ToString::to_string).collect();
    ContainerJson {
        labels: labels.clone().into_iter().collect(),
        annotations: annotations.clone().into_iter().collect(),
        sandbox: sandbox.id.clone(),
        ip_address: ips.first().cloned().unwrap_or_default(),
        ip_addresses: ips,
        host_network: sandbox.host_network(),
        ..ContainerJson::default()
    }
}

fn name(view: &PodView, container: &str, attempt: u32) -> String {
    let metadata = view.sandbox.config.metadata.clone().unwrap_or_default();
    format!("k8s_{container}_{}_{}_{}_{attempt}", metadata.name, metadata.namespace, metadata.uid)
}
