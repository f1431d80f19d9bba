//! What plugins are told about a pod.

use super::{conf::Plugin, conf::is_name};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

/// The pod's interface. Every CNI expects this name and kubelet's network statistics are about it.
pub const INTERFACE: &str = "eth0";

/// A pod that gets a network, gets it checked, or loses it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodNetwork {
    /// id of the sandbox
    pub sandbox_id: String,
    /// Kubernetes namespace
    pub namespace: String,
    /// name of the pod
    pub name: String,
    /// uid of the pod
    pub uid: String,
    /// where the network namespace is bound
    pub netns: PathBuf,
    /// host ports
    pub port_mappings: Vec<PortMapping>,
    /// shaping, from the pod's annotations
    pub bandwidth: Option<Bandwidth>,
    /// the pod's resolver settings, for plugins that announce them
    pub dns: Option<Dns>,
    /// addresses the pod asks for, with prefix length where known
    pub ips: Vec<String>,
    /// hardware address the pod asks for
    pub mac: Option<String>,
    /// cgroup of the pod
    pub cgroup_parent: Option<String>,
    /// annotations of the pod
    pub annotations: BTreeMap<String, String>,
}

/// A port of the host that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// port of the host
    pub host_port: u16,
    /// port inside the pod
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`
    pub protocol: String,
    /// the only address of the host that leads there; all when absent
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// Limits in bits per second, bursts in bits; 0 is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Bandwidth {
    pub ingress_rate: u64,
    pub ingress_burst: u64,
    pub egress_rate: u64,
    pub egress_burst: u64,
}

/// Resolver settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Something in a pod's identity would change the meaning of what plugins are told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pod {field} {value:?} cannot be given to CNI plugins")]
pub struct InvalidPod {
    /// which part
    pub field: &'static str,
    /// what it is
    pub value: String,
}

impl PodNetwork {
    /// Refuses identities that could not be told apart from other arguments, or that are no file names.
    pub(super) fn validate(&self) -> Result<(), InvalidPod> {
        if !is_name(&self.sandbox_id) {
            return Err(InvalidPod { field: "sandbox id", value: self.sandbox_id.clone() });
        }
        for (field, value) in [("namespace", &self.namespace), ("name", &self.name), ("uid", &self.uid)] {
            if value.len() > 512 || value.contains([';', '=', '\0', '\n']) {
                return Err(InvalidPod { field, value: value.clone() });
            }
        }
        Ok(())
    }

    /// `CNI_ARGS` as Kubernetes' runtimes send it: Multus, Calico and OVN find the pod by it.
    pub(super) fn arguments(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.name, self.sandbox_id, self.uid
        )
    }

    /// `runtimeConfig` for one plugin: those of the pod's settings that the plugin says it can use.
    pub(super) fn runtime_config(&self, plugin: &Plugin) -> Map<String, Value> {
        let mut config = Map::new();
        let mut offer = |capability: &str, value: Value| {
            let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if !empty && plugin.wants(capability) {
                config.insert(capability.to_owned(), value);
            }
        };
        offer("portMappings", json!(self.port_mappings));
        offer("bandwidth", json!(self.bandwidth));
        offer("dns", json!(self.dns));
        offer("ips", json!(self.ips));
        offer("mac", json!(self.mac));
        offer("cgroupPath", json!(self.cgroup_parent));
        // the name that containerd gave it, which plugins know
        offer("io.kubernetes.cri.pod-annotations", json!(self.annotations));
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(capabilities: Value) -> Plugin {
        let conf = json!({"type": "p", "capabilities": capabilities});
        Plugin { kind: "p".to_owned(), conf: conf.as_object().cloned().unwrap() }
    }

    fn pod() -> PodNetwork {
        PodNetwork {
            sandbox_id: "ab12".into(),
            namespace: "ns".into(),
            name: "web-0".into(),
            uid: "u-1".into(),
            port_mappings: vec![
                PortMapping { host_port: 80, container_port: 8080, protocol: "tcp".into(), host_ip: None },
                PortMapping {
                    host_port: 53,
                    container_port: 53,
                    protocol: "udp".into(),
                    host_ip: Some(IpAddr::from([10, 0, 0, 1])),
                },
            ],
            bandwidth: Some(Bandwidth { ingress_rate: 1, ingress_burst: 2, egress_rate: 3, egress_burst: 4 }),
            mac: Some("02:00:00:00:00:01".into()),
            ..PodNetwork::default()
        }
    }

    #[test]
    fn arguments_are_those_of_kubernetes() {
        assert_eq!(
            pod().arguments(),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=ab12;K8S_POD_UID=u-1"
        );
    }

    #[test]
    fn only_what_a_plugin_can_use_is_offered_and_only_if_the_pod_has_it() {
        let all = json!({"portMappings": true, "bandwidth": true, "dns": true, "ips": true, "mac": true});
        assert_eq!(
            Value::Object(pod().runtime_config(&plugin(all))),
            json!({
                "portMappings": [
                    {"hostPort": 80, "containerPort": 8080, "protocol": "tcp"},
                    {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"},
                ],
                "bandwidth": {"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4},
                "mac": "02:00:00:00:00:01",
            })
        );
        assert!(pod().runtime_config(&plugin(json!({"portMappings": false}))).is_empty());
        assert!(pod().runtime_config(&plugin(Value::Null)).is_empty());
    }

    #[test]
    fn identities_that_would_smuggle_arguments_are_refused() {
        pod().validate().unwrap();
        for (field, change) in [
            ("sandbox id", PodNetwork { sandbox_id: "../x".into(), ..pod() }),
            ("sandbox id", PodNetwork { sandbox_id: String::new(), ..pod() }),
            ("name", PodNetwork { name: "a;K8S_POD_NAMESPACE=kube-system".into(), ..pod() }),
            ("namespace", PodNetwork { namespace: "a=b".into(), ..pod() }),
            ("uid", PodNetwork { uid: "u\n".into(), ..pod() }),
        ] {
            assert_eq!(change.validate().unwrap_err().field, field);
        }
    }
}
