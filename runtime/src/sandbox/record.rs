//! What is known of a pod.

use std::net::IpAddr;

use nodeagent_cri_api::{
    LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig, SeLinuxOption,
    UpdatePodSandboxResourcesRequest,
};
use nodeagent_shim::protocol::IdMaps;
use serde::{Deserialize, Serialize};

use super::id_maps;
use crate::cgroup::CgroupPath;
use crate::state::as_base64;

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Being made; nobody was told its id yet, so a new daemon undoes it.
    Creating,
    /// Has its network, takes containers.
    Ready,
    /// Stopped, or its supervisor is gone.
    NotReady,
}

/// What kubelet means by "the same pod".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    namespace: String,
    name: String,
    uid: String,
    attempt: u32,
}

impl Key {
    /// None when the configuration lacks name, namespace or uid: two such pods could not be told apart.
    pub fn of(config: &PodSandboxConfig) -> Option<Self> {
        let metadata = config.metadata.as_ref()?;
        let whole = [&metadata.name, &metadata.namespace, &metadata.uid].iter().all(|part| !part.is_empty());
        whole.then(|| Key {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            attempt: metadata.attempt,
        })
    }
}

/// What is known of a pod, in memory and on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// 64 lower-case hex digits.
    pub id: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where it is in its life.
    pub state: SandboxState,
    /// As it was asked for.
    #[serde(with = "as_base64")]
    pub config: PodSandboxConfig,
    /// As it was asked for.
    pub runtime_handler: String,
    /// Its own, empty cgroup; containers are its siblings.
    pub cgroup: CgroupPath,
    /// The parent did not exist before this pod.
    #[serde(default)]
    pub made_parent: bool,
    /// The supervisor's process.
    #[serde(default)]
    pub shim_pid: i32,
    /// The first process of a pod that another runtime makes.
    #[serde(default)]
    pub first_pid: i32,
    /// What tells its processes and files from those of other pods, where SELinux is on.
    #[serde(default)]
    pub selinux_level: String,
    /// Where the network namespace is bound; none on the host's network.
    #[serde(default)]
    pub netns: Option<String>,
    /// The network was, or may have been, attached: its removal is owed.
    #[serde(default)]
    pub network_owed: bool,
    /// Addresses, the primary one first.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The limits it was given later; those of its configuration stay there.
    #[serde(default, with = "as_base64")]
    pub resized: UpdatePodSandboxResourcesRequest,
}

impl SandboxRecord {
    /// The namespaces asked for; what is not said is the protocol's zero value, `POD`.
    pub fn namespaces(&self) -> NamespaceOption {
        namespaces(&self.config)
    }

    /// The SELinux label asked for, or parts of it.
    pub fn selinux_options(&self) -> Option<&SeLinuxOption> {
        self.config.linux.as_ref()?.security_context.as_ref()?.selinux_options.as_ref()
    }

    /// Whether the pod uses the host's network.
    pub fn host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }

    /// The ids of its user namespace, if it has one. Checked when the pod was made.
    pub fn id_maps(&self) -> Option<IdMaps> {
        id_maps(self.namespaces().userns_options.as_ref()).ok().flatten()
    }

    /// Where its containers' cgroups go.
    pub fn cgroup_parent(&self) -> &str {
        self.config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str())
    }

    /// What it takes beside its containers, and what these may use together, as last said.
    pub fn resources(&self) -> (Option<&LinuxContainerResources>, Option<&LinuxContainerResources>) {
        let linux = self.config.linux.as_ref();
        let first = (linux.and_then(|linux| linux.overhead.as_ref()), linux.and_then(|linux| linux.resources.as_ref()));
        (self.resized.overhead.as_ref().or(first.0), self.resized.resources.as_ref().or(first.1))
    }

    /// Whether containers may be made in it.
    pub fn ready(&self) -> bool {
        self.state == SandboxState::Ready
    }
}

/// The namespaces a configuration asks for.
pub fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}
