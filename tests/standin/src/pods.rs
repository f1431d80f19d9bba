//! Brings pods to run over the CRI, in the order of calls that a kubelet makes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nodeagent_cri_api as cri;

use crate::cri::Client;
use crate::manifest::{Container, Pod, PullPolicy};

/// Runs pods on a runtime.
pub struct Pods {
    client: Client,
    /// `systemd` or `cgroupfs`.
    cgroup_driver: String,
    node: String,
}

/// A container that the runtime knows.
struct Known {
    id: String,
    state: i32,
    attempt: u32,
}

impl Pods {
    pub fn new(client: Client, cgroup_driver: String, node: String) -> Pods {
        Pods { client, cgroup_driver, node }
    }

    /// One round: each pod has a ready sandbox and running containers afterwards, or says why not. Returns what it did.
    pub async fn sync(&self, pod: &Pod) -> anyhow::Result<Vec<String>> {
        let mut did = Vec::new();
        let mut sandbox_config = self.sandbox_config(pod);
        let sandbox = match self.ready_sandbox(pod).await? {
            Some((id, attempt)) => {
                sandbox_config.metadata.get_or_insert_default().attempt = attempt;
                id
            }
            None => {
                let attempt = self.next_sandbox_attempt(pod).await?;
                sandbox_config.metadata.get_or_insert_default().attempt = attempt;
                self.make_pod_cgroup(pod)?;
                let request =
                    cri::RunPodSandboxRequest { config: Some(sandbox_config.clone()), runtime_handler: String::new() };
                let answer: cri::RunPodSandboxResponse = self.client.runtime("RunPodSandbox", request).await?;
                let status = self.sandbox_status(&answer.pod_sandbox_id).await?;
                let ip = status.network.map(|network| network.ip).unwrap_or_default();
                did.push(format!("sandbox {} ip {ip}", &answer.pod_sandbox_id[..12]));
                answer.pod_sandbox_id
            }
        };
        for container in &pod.spec.containers {
            self.sync_container(pod, container, &sandbox, &sandbox_config, &mut did)
                .await
                .with_context(|| format!("container {}", container.name))?;
        }
        Ok(did)
    }

    async fn sync_container(
        &self,
        pod: &Pod,
        container: &Container,
        sandbox: &str,
        sandbox_config: &cri::PodSandboxConfig,
        did: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let newest = self.newest_container(sandbox, &container.name).await?;
        let attempt = match &newest {
            Some(known) if known.state == cri::ContainerState::ContainerRunning as i32 => return Ok(()),
            Some(known) if known.state == cri::ContainerState::ContainerCreated as i32 => {
                return self.start(&known.id, &container.name, did).await;
            }
            Some(known) => known.attempt + 1,
            None => 0,
        };
        let image = self.image(container, sandbox_config).await?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(container_config(pod, container, attempt, image)),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let created: cri::CreateContainerResponse = self.client.runtime("CreateContainer", request).await?;
        self.start(&created.container_id, &container.name, did).await?;
        // the kubelet keeps the newest dead one
        if let Some(old) = newest {
            let request = cri::RemoveContainerRequest { container_id: old.id };
            let _: cri::RemoveContainerResponse = self.client.runtime("RemoveContainer", request).await?;
        }
        Ok(())
    }

    async fn start(&self, id: &str, name: &str, did: &mut Vec<String>) -> anyhow::Result<()> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        let _: cri::StartContainerResponse = self.client.runtime("StartContainer", request).await?;
        did.push(format!("container {name} started as {}", id.get(..12).unwrap_or(id)));
        Ok(())
    }

    async fn image(&self, container: &Container, config: &cri::PodSandboxConfig) -> anyhow::Result<cri::ImageSpec> {
        let named = cri::ImageSpec {
            image: container.image.clone(),
            user_specified_image: container.image.clone(),
            ..Default::default()
        };
        let request = cri::ImageStatusRequest { image: Some(named.clone()), verbose: false };
        let there: cri::ImageStatusResponse = self.client.image("ImageStatus", request).await?;
        let id = match (there.image, container.image_pull_policy) {
            (Some(image), PullPolicy::IfNotPresent | PullPolicy::Never) => image.id,
            (None, PullPolicy::Never) => anyhow::bail!("image {} is not there, and is never pulled", container.image),
            _ => {
                let request = cri::PullImageRequest {
                    image: Some(named.clone()),
                    auth: None,
                    sandbox_config: Some(config.clone()),
                };
                let pulled: cri::PullImageResponse = self.client.image("PullImage", request).await?;
                pulled.image_ref
            }
        };
        Ok(cri::ImageSpec { image: id, ..named })
    }

    async fn ready_sandbox(&self, pod: &Pod) -> anyhow::Result<Option<(String, u32)>> {
        let ready = cri::PodSandboxState::SandboxReady as i32;
        let sandboxes = self.sandboxes(pod).await?;
        Ok(sandboxes.into_iter().find(|s| s.state == ready).map(|s| (s.id, s.metadata.unwrap_or_default().attempt)))
    }

    async fn next_sandbox_attempt(&self, pod: &Pod) -> anyhow::Result<u32> {
        let attempts = self.sandboxes(pod).await?.into_iter().map(|s| s.metadata.unwrap_or_default().attempt + 1);
        Ok(attempts.max().unwrap_or(0))
    }

    async fn sandboxes(&self, pod: &Pod) -> anyhow::Result<Vec<cri::PodSandbox>> {
        let filter = cri::PodSandboxFilter {
            label_selector: HashMap::from([("io.kubernetes.pod.uid".to_owned(), pod.uid.clone())]),
            ..Default::default()
        };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let answer: cri::ListPodSandboxResponse = self.client.runtime("ListPodSandbox", request).await?;
        Ok(answer.items)
    }

    async fn sandbox_status(&self, id: &str) -> anyhow::Result<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer: cri::PodSandboxStatusResponse = self.client.runtime("PodSandboxStatus", request).await?;
        answer.status.context("PodSandboxStatus without a status")
    }

    async fn newest_container(&self, sandbox: &str, name: &str) -> anyhow::Result<Option<Known>> {
        let filter = cri::ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let answer: cri::ListContainersResponse = self.client.runtime("ListContainers", request).await?;
        let known = answer.containers.into_iter().filter_map(|container| {
            let metadata = container.metadata?;
            (metadata.name == name).then_some(Known {
                id: container.id,
                state: container.state,
                attempt: metadata.attempt,
            })
        });
        Ok(known.max_by_key(|known| known.attempt))
    }

    fn sandbox_config(&self, pod: &Pod) -> cri::PodSandboxConfig {
        let namespace = match pod.spec.host_network {
            true => cri::NamespaceMode::Node,
            false => cri::NamespaceMode::Pod,
        };
        let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: format!("{}-{}", pod.metadata.name, self.node),
                uid: pod.uid.clone(),
                namespace: pod.metadata.namespace.clone(),
                attempt: 0,
            }),
            hostname: pod.metadata.name.clone(),
            log_directory: log_directory(pod, &self.node).to_string_lossy().into_owned(),
            port_mappings: ports
                .filter(|port| port.host_port != 0)
                .map(|port| cri::PortMapping {
                    container_port: i32::from(port.container_port),
                    host_port: i32::from(port.host_port),
                    ..Default::default()
                })
                .collect(),
            labels: labels(pod, &self.node).into_iter().chain(pod.metadata.labels.clone()).collect(),
            annotations: HashMap::from([("kubernetes.io/config.source".to_owned(), "file".to_owned())]),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent(pod),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(cri::NamespaceOption {
                        network: namespace as i32,
                        pid: cri::NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// The pod's cgroup, named as a kubelet names that of a best-effort pod.
    fn cgroup_parent(&self, pod: &Pod) -> String {
        match self.cgroup_driver.as_str() {
            "systemd" => format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice", pod.uid),
            _ => format!("/kubepods/besteffort/pod{}", pod.uid),
        }
    }

    /// A kubelet makes the pod's cgroup before it asks for the sandbox. systemd makes a slice when a scope names it.
    fn make_pod_cgroup(&self, pod: &Pod) -> anyhow::Result<()> {
        let root = Path::new("/sys/fs/cgroup");
        if self.cgroup_driver == "systemd" || !root.join("cgroup.controllers").exists() {
            return Ok(());
        }
        let mut place = root.to_owned();
        for part in self.cgroup_parent(pod).trim_start_matches('/').split('/') {
            // a cgroup's children get the controllers that it hands on
            let controllers = std::fs::read_to_string(place.join("cgroup.controllers"))?;
            for controller in controllers.split_whitespace() {
                let hand_on = place.join("cgroup.subtree_control");
                std::fs::write(&hand_on, format!("+{controller}"))
                    .with_context(|| format!("write +{controller} to {}", hand_on.display()))?;
            }
            place.push(part);
            if !place.exists() {
                std::fs::create_dir(&place).with_context(|| format!("create {}", place.display()))?;
            }
        }
        Ok(())
    }
}

fn labels(pod: &Pod, node: &str) -> HashMap<String, String> {
    HashMap::from([
        ("io.kubernetes.pod.name".to_owned(), format!("{}-{node}", pod.metadata.name)),
        ("io.kubernetes.pod.namespace".to_owned(), pod.metadata.namespace.clone()),
        ("io.kubernetes.pod.uid".to_owned(), pod.uid.clone()),
    ])
}

fn log_directory(pod: &Pod, node: &str) -> PathBuf {
    let name = format!("{}_{}-{node}_{}", pod.metadata.namespace, pod.metadata.name, pod.uid);
    Path::new("/var/log/pods").join(name)
}

fn container_config(pod: &Pod, container: &Container, attempt: u32, image: cri::ImageSpec) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(image),
        command: container.command.clone(),
        args: container.args.clone(),
        envs: container
            .env
            .iter()
            .map(|env| cri::KeyValue { key: env.name.clone(), value: env.value.clone().into() })
            .collect(),
        labels: HashMap::from([
            ("io.kubernetes.container.name".to_owned(), container.name.clone()),
            ("io.kubernetes.pod.name".to_owned(), pod.metadata.name.clone()),
            ("io.kubernetes.pod.namespace".to_owned(), pod.metadata.namespace.clone()),
            ("io.kubernetes.pod.uid".to_owned(), pod.uid.clone()),
        ]),
        annotations: HashMap::from([("io.kubernetes.container.restartCount".to_owned(), attempt.to_string())]),
        log_path: format!("{}/{attempt}.log", container.name),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources { cpu_shares: 2, oom_score_adj: 1000, ..Default::default() }),
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container as i32,
                    network: match pod.spec.host_network {
                        true => cri::NamespaceMode::Node as i32,
                        false => cri::NamespaceMode::Pod as i32,
                    },
                    ..Default::default()
                }),
                masked_paths: ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]
                    .map(str::to_owned)
                    .to_vec(),
                readonly_paths: ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
                    .map(str::to_owned)
                    .to_vec(),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}
