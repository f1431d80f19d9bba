//! Stage three of the config: validated and typed. The only config that the rest of the agent sees.
//!
//! A key is defined here when something in the agent acts on it; an unknown key is an error, so nothing that is
//! accepted is silently without effect.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::HostSettings;
use super::init::InitSettings;
use super::join::JoinSettings;
use super::kubernetes::{KubernetesVersion, Taint};
use super::value::{
    FileMode, HostPath, ModuleName, NodeName, PackageSpec, RepoId, Secret, Span, SysctlKey, UnitName, Url,
};
use crate::plan::ResourceId;

/// Everything a node is asked to be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// `[node]`
    pub node: NodeSettings,
    /// `[kernel]`
    pub kernel: KernelSettings,
    /// `[selinux]`
    pub selinux: SelinuxMode,
    /// `[selinux] booleans`
    pub selinux_booleans: BTreeMap<String, bool>,
    /// `[swap]`
    pub swap: SwapPolicy,
    /// `[packages]`
    pub packages: PackageSettings,
    /// `[kubernetes]`; none where the host is prepared but gets no kubelet from us.
    pub kubernetes: Option<KubernetesSettings>,
    /// `[runtime]`
    pub runtime: RuntimeSettings,
    /// `[join]`; none where somebody else does it.
    pub join: Option<JoinSettings>,
    /// `[init]`; none where this is not the first control plane, or somebody else makes it.
    pub init: Option<InitSettings>,
    /// `[time]`, `[hostname]`, `[network]`, `[firewall]`, `[limits]`, `[[registries]]`
    pub host: HostSettings,
    /// `[[repo]]`, sorted by id
    pub repos: Vec<RepoSettings>,
    /// `[[file]]`, sorted by path
    pub files: Vec<FileSettings>,
    /// `[[unit]]`, sorted by name
    pub units: Vec<UnitSettings>,
    /// `[reconcile]`
    pub reconcile: ReconcileSettings,
}

/// Who this node is in its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeSettings {
    /// What it is there for.
    pub role: Role,
    /// Name in the cluster; none is the host's name.
    pub name: Option<NodeName>,
    /// Labels that the kubelet registers with.
    pub labels: BTreeMap<String, String>,
    /// Taints that the kubelet registers with.
    pub taints: Vec<Taint>,
    /// Address that the kubelet reports.
    pub ip: Option<IpAddr>,
    /// Cloud provider's id of the machine.
    pub provider_id: Option<String>,
}

/// What a node is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Runs pods of a cluster.
    Worker,
    /// Runs the cluster itself.
    ControlPlane,
    /// Runs static pods, without a cluster.
    Standalone,
}

/// What the kernel must offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelSettings {
    /// Modules, in the order of loading.
    pub modules: Vec<ModuleName>,
    /// Parameters.
    pub sysctl: BTreeMap<SysctlKey, SysctlRule>,
}

/// What is asked of one kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SysctlRule {
    /// The demand.
    pub want: SysctlWant,
    /// A kernel without the parameter is fine.
    pub optional: bool,
}

/// A demand on a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SysctlWant {
    /// Exactly this.
    Value(String),
    /// At least this.
    Min(i64),
}

/// `selinux.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SelinuxMode {
    /// Violations are logged only.
    Permissive,
    /// Violations are refused.
    Enforcing,
    /// As the host has it.
    Keep,
}

/// `swap.policy`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SwapPolicy {
    /// No swap, now and after a reboot.
    Off,
    /// Burstable pods may swap within limits; the host's swap stays as it is.
    Limited,
    /// As the host has it.
    Keep,
}

/// Where software comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageSettings {
    /// `packages.source`
    pub source: PackageSource,
    /// Packages beside those that the node needs anyway.
    pub install: Vec<PackageSpec>,
    /// `packages.update`
    pub update: UpdatePolicy,
    /// Versions of Kubernetes and its runtime are locked.
    pub lock: bool,
}

/// `packages.source`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PackageSource {
    /// From repositories, by dnf.
    Dnf,
    /// The image has them; only checked.
    Preinstalled,
}

/// `packages.update`: what is installed once, when the node is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpdatePolicy {
    /// No updates.
    #[default]
    None,
    /// What closes a known hole.
    Security,
    /// Everything.
    All,
}

/// The kubelet and what belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KubernetesSettings {
    /// Which Kubernetes.
    pub version: KubernetesVersion,
    /// Who writes the kubelet's config.
    pub kubelet_mode: KubeletMode,
    /// Package repository; none is pkgs.k8s.io for the minor.
    pub repo_baseurl: Option<Url>,
    /// KubeletConfiguration fields of the user, over ours.
    pub kubelet: serde_json::Map<String, serde_json::Value>,
    /// Further flags of the kubelet, each as it stands on the command line.
    pub kubelet_args: Vec<String>,
}

/// `kubernetes.kubelet_mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KubeletMode {
    /// kubeadm writes the config; ours is a drop-in directory over it.
    Kubeadm,
    /// All of it is ours.
    Agent,
    /// Somebody else's; we do not touch it.
    External,
}

/// The container runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuntimeSettings {
    /// Which one.
    pub kind: RuntimeKind,
    /// Package repository of a runtime that is not ours; none is its maintainers'.
    pub repo_baseurl: Option<Url>,
    /// Key of the packages there.
    pub repo_gpgkey: Option<Url>,
    /// CRI socket.
    pub socket: HostPath,
    /// Images and containers.
    pub root: HostPath,
    /// Who makes the containers' cgroups; none follows the host.
    pub cgroup_driver: Option<CgroupDriver>,
    /// What the kubelet and kubeadm are told to be the pause image.
    pub pause_image: String,
    /// Answer on CRI-O's socket too, for cAdvisor.
    pub crio_compat_socket: bool,
    /// How long first boot waits for the socket to answer.
    pub ready_timeout: Span,
}

/// `runtime.kind`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    /// nodeagent-runtime.
    Embedded,
    /// CRI-O, of the same minor as Kubernetes.
    Crio,
    /// containerd.
    Containerd,
}

impl RuntimeKind {
    /// Its systemd unit.
    pub fn unit(self) -> &'static str {
        match self {
            RuntimeKind::Embedded => "nodeagent-runtime.service",
            RuntimeKind::Crio => "crio.service",
            RuntimeKind::Containerd => "containerd.service",
        }
    }

    /// Where it listens unless told otherwise. CRI-O's is the one place in which cAdvisor looks for it.
    pub fn socket(self) -> &'static str {
        match self {
            RuntimeKind::Embedded => "/run/nodeagent/cri.sock",
            RuntimeKind::Crio => "/var/run/crio/crio.sock",
            RuntimeKind::Containerd => "/run/containerd/containerd.sock",
        }
    }
}

/// `runtime.cgroup_driver`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CgroupDriver {
    /// systemd makes a scope for each container.
    Systemd,
    /// The runtime makes directories.
    Cgroupfs,
}

/// `[[repo]]`: one dnf repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepoSettings {
    /// Section and file name.
    pub name: RepoId,
    /// Title for people.
    pub title: String,
    /// Where it is.
    pub baseurl: Vec<Url>,
    /// Keys that packages may be signed with.
    pub gpgkey: Vec<Url>,
    /// Packages must be signed.
    pub gpgcheck: bool,
    /// Metadata must be signed.
    pub repo_gpgcheck: bool,
    /// Used by default.
    pub enabled: bool,
    /// Packages that are not taken from it.
    pub exclude: Vec<String>,
    /// Lower wins.
    pub priority: Option<u32>,
}

/// `[[file]]`: one file whose text is ours, whole or as a marked block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSettings {
    /// Where.
    pub path: HostPath,
    /// Its text, or the block's.
    pub content: Secret,
    /// The comment sign of a file of which only a block is ours.
    pub block: Option<String>,
    /// Never print the text.
    pub secret: bool,
    /// Permission bits.
    pub mode: FileMode,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// `[[unit]]`: one systemd unit. What is none stays as the host has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnitSettings {
    /// Full name.
    pub name: UnitName,
    /// Started at boot.
    pub enabled: Option<bool>,
    /// Cannot be started.
    pub masked: Option<bool>,
    /// Running now.
    pub state: Option<UnitState>,
}

/// `unit.state`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UnitState {
    /// Active.
    Running,
    /// Inactive.
    Stopped,
}

/// What `agent reconcile` may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReconcileSettings {
    /// For every resource without a policy of its own.
    pub policy: DriftPolicy,
    /// By resource id.
    pub overrides: BTreeMap<ResourceId, DriftPolicy>,
    /// Repairs of one resource within an hour before it is left alone.
    pub max_repairs_per_hour: u32,
    /// What becomes of a resource that has left the config.
    pub removed: RemovedPolicy,
}

impl ReconcileSettings {
    /// What may be done about drift of this resource.
    pub fn policy_of(&self, id: &ResourceId) -> DriftPolicy {
        self.overrides.get(id).copied().unwrap_or(self.policy)
    }
}

/// `reconcile.removed`: what becomes of what was applied for a resource that is no longer in the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RemovedPolicy {
    /// It stays, and every run says so.
    Report,
    /// It is taken back, unless somebody else has changed it since.
    Undo,
    /// It stays, and is not the agent's any more.
    Keep,
}

/// What is done about drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DriftPolicy {
    /// Put it right.
    Repair,
    /// Say so.
    Report,
    /// What somebody else has made of it since it was applied stays, until the config wants something else of it.
    Keep,
}
