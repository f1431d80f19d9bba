//! Stage one: a file as written. Everything is optional, unknown keys are errors.
//!
//! The merged tree decodes into the same types: a merged config is a fragment in which more is filled in.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::decode::from_table;
use super::host::{
    FirewallFragment, HostnameFragment, LimitsFragment, NetworkFragment, RegistryFragment, TimeFragment,
};
use super::init::InitFragment;
use super::join::JoinFragment;
use super::kubernetes::{KubernetesVersion, Taint};
use super::settings::{
    CgroupDriver, DriftPolicy, KubeletMode, PackageSource, RemovedPolicy, Role, RuntimeKind, SelinuxMode, SwapPolicy,
    UnitState, UpdatePolicy,
};
use super::value::{FileMode, HostPath, ModuleName, NodeName, PackageSpec, RepoId, Span, SysctlKey, UnitName, Url};
use crate::plan::ResourceId;

/// One config file of a node.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fragment {
    /// Version of this format; 1.
    pub schema: Option<u32>,
    /// Who the node is in its cluster.
    pub node: NodeFragment,
    /// Kernel modules and parameters.
    pub kernel: KernelFragment,
    /// SELinux mode, now and after a reboot.
    pub selinux: SelinuxFragment,
    /// Swap.
    pub swap: SwapFragment,
    /// Packages.
    pub packages: PackagesFragment,
    /// The kubelet.
    pub kubernetes: KubernetesFragment,
    /// The container runtime.
    pub runtime: RuntimeFragment,
    /// dnf repositories beside Kubernetes' own.
    pub repo: Vec<RepoFragment>,
    /// Files whose whole text, or a marked block of it, is managed.
    pub file: Vec<FileFragment>,
    /// systemd units.
    pub unit: Vec<UnitFragment>,
    /// What happens on drift.
    pub reconcile: ReconcileFragment,
    /// How the node becomes a member of its cluster.
    pub join: JoinFragment,
    /// The first control plane of a cluster.
    pub init: InitFragment,
    /// The clock.
    pub time: TimeFragment,
    /// The host's name.
    pub hostname: HostnameFragment,
    /// NetworkManager.
    pub network: NetworkFragment,
    /// firewalld.
    pub firewall: FirewallFragment,
    /// Limits of the kubelet and the runtime.
    pub limits: LimitsFragment,
    /// Registries, their mirrors and exceptions.
    pub registries: Vec<RegistryFragment>,
}

/// `[node]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeFragment {
    /// worker, control-plane or standalone.
    pub role: Option<Role>,
    /// Name in the cluster; without it the host's name.
    pub name: Option<NodeName>,
    /// Labels that the kubelet registers with.
    pub labels: BTreeMap<String, String>,
    /// Taints that the kubelet registers with: "KEY=VALUE:EFFECT".
    pub taints: Vec<Taint>,
    /// Address that the kubelet reports.
    pub ip: Option<IpAddr>,
    /// Cloud provider's id of the machine.
    pub provider_id: Option<String>,
}

/// `[kernel]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KernelFragment {
    /// Modules to load, now and at boot.
    pub modules: Option<Vec<ModuleName>>,
    /// Parameters: a value, `{ min = N }` or `{ value = V, optional = true }`.
    pub sysctl: BTreeMap<SysctlKey, SysctlFragment>,
}

/// One parameter, in its long form.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema)]
pub struct SysctlFragment {
    /// Exactly this.
    pub value: Option<SysctlValue>,
    /// At least this.
    pub min: Option<i64>,
    /// A kernel without the parameter is fine.
    pub optional: Option<bool>,
}

/// A parameter's value: a number, or text for those that hold several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum SysctlValue {
    /// `1`
    Number(i64),
    /// `"32768 60999"`
    Text(String),
}

impl fmt::Display for SysctlValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SysctlValue::Number(number) => number.fmt(f),
            SysctlValue::Text(text) => text.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for SysctlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SysctlValue, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = SysctlValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer or a string")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<SysctlValue, E> {
                Ok(SysctlValue::Number(number))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SysctlValue, E> {
                if text.contains(['\n', '\0']) || text.trim().is_empty() || text.len() > 1024 {
                    return Err(E::custom("a kernel parameter's value is one line of text, not empty"));
                }
                Ok(SysctlValue::Text(text.trim().to_owned()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

impl<'de> Deserialize<'de> for SysctlFragment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SysctlFragment, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Long {
            value: Option<SysctlValue>,
            min: Option<i64>,
            optional: Option<bool>,
        }

        struct ShortOrLong;
        impl<'de> Visitor<'de> for ShortOrLong {
            type Value = SysctlFragment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer, a string, { min = N } or { value = V, optional = true }")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<SysctlFragment, E> {
                Ok(SysctlFragment { value: Some(SysctlValue::Number(number)), ..SysctlFragment::default() })
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SysctlFragment, E> {
                let text: serde::de::value::StrDeserializer<'_, E> =
                    serde::de::IntoDeserializer::into_deserializer(text);
                Ok(SysctlFragment { value: Some(SysctlValue::deserialize(text)?), ..SysctlFragment::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SysctlFragment, A::Error> {
                let Long { value, min, optional } = from_table(map)?;
                Ok(SysctlFragment { value, min, optional })
            }
        }
        deserializer.deserialize_any(ShortOrLong)
    }
}

/// `[selinux]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SelinuxFragment {
    /// permissive, enforcing or keep.
    pub mode: Option<SelinuxMode>,
    /// Booleans of the policy, now and at boot.
    pub booleans: BTreeMap<String, bool>,
}

/// `[swap]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SwapFragment {
    /// off, limited or keep.
    pub policy: Option<SwapPolicy>,
}

/// `[packages]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PackagesFragment {
    /// dnf or preinstalled.
    pub source: Option<PackageSource>,
    /// Packages beside those that the node needs anyway.
    pub install: Option<Vec<PackageSpec>>,
    /// none, security or all: updates that are installed once, when the node is made.
    pub update: Option<UpdatePolicy>,
    /// The versions of Kubernetes and its runtime are locked against updates (dnf's versionlock plugin).
    pub lock: Option<bool>,
}

/// `[kubernetes]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesFragment {
    /// "1.36" or "1.36.2". Without it the host gets no kubelet.
    pub version: Option<KubernetesVersion>,
    /// kubeadm, agent or external.
    pub kubelet_mode: Option<KubeletMode>,
    /// Package repository; without it pkgs.k8s.io for the minor.
    pub repo_baseurl: Option<Url>,
    /// KubeletConfiguration fields.
    pub kubelet: serde_json::Map<String, serde_json::Value>,
    /// Further flags of the kubelet.
    pub kubelet_args: Option<Vec<String>>,
}

/// `[runtime]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeFragment {
    /// embedded, crio or containerd.
    pub kind: Option<RuntimeKind>,
    /// Package repository of crio or containerd; without it their maintainers'.
    pub repo_baseurl: Option<Url>,
    /// Key of the packages there; without it repodata/repomd.xml.key in it.
    pub repo_gpgkey: Option<Url>,
    /// CRI socket.
    pub socket: Option<HostPath>,
    /// Images and containers.
    pub root: Option<HostPath>,
    /// systemd or cgroupfs; without it the host's.
    pub cgroup_driver: Option<CgroupDriver>,
    /// Image that the kubelet and kubeadm are told to be the pause image.
    pub pause_image: Option<String>,
    /// Answer on CRI-O's socket too, for cAdvisor.
    pub crio_compat_socket: Option<bool>,
    /// How long first boot waits for the socket to answer.
    pub ready_timeout: Option<Span>,
}

/// `[[repo]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepoFragment {
    /// Section and file name; fragments merge by it.
    pub name: RepoId,
    /// Title for people.
    pub title: Option<String>,
    /// Where it is; several are tried in turn.
    #[serde(default)]
    pub baseurl: Option<OneOrMany>,
    /// Keys that packages may be signed with.
    #[serde(default)]
    pub gpgkey: Option<OneOrMany>,
    /// Packages must be signed; true unless said otherwise.
    pub gpgcheck: Option<bool>,
    /// Metadata must be signed.
    pub repo_gpgcheck: Option<bool>,
    /// Used by default.
    pub enabled: Option<bool>,
    /// Packages that are not taken from it; globs allowed.
    pub exclude: Option<Vec<String>>,
    /// 1 to 99; lower wins.
    pub priority: Option<u32>,
}

/// One URL or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(transparent)]
pub struct OneOrMany(pub Vec<Url>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OneOrMany, D::Error> {
        struct Urls;
        impl<'de> Visitor<'de> for Urls {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL or a list of URLs")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                text.parse().map(|url| OneOrMany(vec![url])).map_err(E::custom)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut urls = Vec::new();
                while let Some(url) = seq.next_element()? {
                    urls.push(url);
                }
                Ok(OneOrMany(urls))
            }
        }
        deserializer.deserialize_any(Urls)
    }
}

/// `[[file]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileFragment {
    /// Where; fragments merge by it.
    pub path: HostPath,
    /// Its whole text, or that of the block.
    pub content: Option<String>,
    /// The file's comment sign ("#"): only a block between two marks is ours, and the rest is somebody else's.
    pub block: Option<String>,
    /// Never print the text.
    pub secret: Option<bool>,
    /// Octal digits in quotes; "0644" unless said otherwise, "0600" for a secret.
    pub mode: Option<FileMode>,
    /// Owner, a number.
    pub uid: Option<u32>,
    /// Group, a number.
    pub gid: Option<u32>,
}

/// `[[unit]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnitFragment {
    /// Full name; fragments merge by it.
    pub name: UnitName,
    /// Started at boot.
    pub enabled: Option<bool>,
    /// Cannot be started.
    pub masked: Option<bool>,
    /// running or stopped, now.
    pub state: Option<UnitState>,
}

/// `[reconcile]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReconcileFragment {
    /// repair, report or keep.
    pub policy: Option<DriftPolicy>,
    /// Policy by resource id.
    pub overrides: BTreeMap<ResourceId, DriftPolicy>,
    /// Repairs of one resource within an hour before it is left alone.
    pub max_repairs_per_hour: Option<u32>,
    /// report, undo or keep: what becomes of what was applied for a resource that is no longer in the config.
    pub removed: Option<RemovedPolicy>,
}
