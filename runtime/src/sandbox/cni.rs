//! Pods in the words of CNI.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nodeagent_cri_api::{PodSandboxConfig, PortMapping as Asked, Protocol};

use super::{NetworkFailure, PodNetworks, SandboxRecord};
use crate::network::{Bandwidth, Dns, Network, PodNetwork, PortMapping};

#[async_trait::async_trait]
impl PodNetworks for Network {
    async fn attach(&self, pod: &SandboxRecord) -> Result<Vec<IpAddr>, NetworkFailure> {
        Ok(self.add(&describe(pod)).await?.ips)
    }

    async fn detach(&self, pod: &SandboxRecord) -> Result<(), NetworkFailure> {
        Ok(self.del(&describe(pod)).await?)
    }

    async fn sweep(&self, known: &[String]) -> Result<(), NetworkFailure> {
        Ok(self.gc(known).await?)
    }
}

fn describe(pod: &SandboxRecord) -> PodNetwork {
    let config = &pod.config;
    let metadata = config.metadata.clone().unwrap_or_default();
    PodNetwork {
        sandbox_id: pod.id.clone(),
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        netns: pod.netns.clone().unwrap_or_default().into(),
        port_mappings: config.port_mappings.iter().filter_map(port_mapping).collect(),
        bandwidth: bandwidth(config),
        dns: config.dns_config.as_ref().map(|dns| Dns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        ips: Vec::new(),
        mac: None,
        cgroup_parent: Some(pod.cgroup_parent().to_owned()).filter(|parent| !parent.is_empty()),
        annotations: config.annotations.clone().into_iter().collect::<BTreeMap<_, _>>(),
    }
}

/// A port without a host port is only documentation.
fn port_mapping(asked: &Asked) -> Option<PortMapping> {
    let protocol = match asked.protocol() {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    Some(PortMapping {
        host_port: u16::try_from(asked.host_port).ok().filter(|port| *port > 0)?,
        container_port: u16::try_from(asked.container_port).ok().filter(|port| *port > 0)?,
        protocol: protocol.to_owned(),
        host_ip: asked.host_ip.parse().ok(),
    })
}

/// Kubernetes' annotations, in bits per second, with or without a decimal or binary suffix.
fn bandwidth(config: &PodSandboxConfig) -> Option<Bandwidth> {
    let rate = |direction: &str| {
        let value = config.annotations.get(&format!("kubernetes.io/{direction}-bandwidth"))?;
        let rate = quantity(value);
        if rate.is_none() {
            log::warn!(value = value.as_str(); "{direction} bandwidth is no quantity");
        }
        rate
    };
    let (ingress, egress) = (rate("ingress"), rate("egress"));
    if ingress.is_none() && egress.is_none() {
        return None;
    }
    // what other runtimes give: a burst of all that fits
    let burst = |rate: Option<u64>| if rate.is_some() { u64::from(u32::MAX) } else { 0 };
    Some(Bandwidth {
        ingress_rate: ingress.unwrap_or(0),
        ingress_burst: burst(ingress),
        egress_rate: egress.unwrap_or(0),
        egress_burst: burst(egress),
    })
}

fn quantity(text: &str) -> Option<u64> {
    let suffixes =
        [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("k", 1000), ("M", 1_000_000), ("G", 1_000_000_000)];
    let text = text.trim();
    let (digits, factor) = suffixes
        .into_iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))
        .unwrap_or((text, 1));
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ports_with_a_host_port_are_mapped() {
        let asked = |host_port, protocol: Protocol| Asked {
            host_port,
            container_port: 80,
            protocol: protocol.into(),
            host_ip: "10.0.0.1".into(),
        };
        assert_eq!(port_mapping(&asked(0, Protocol::Tcp)), None);
        assert_eq!(port_mapping(&asked(70_000, Protocol::Tcp)), None);
        let mapping = port_mapping(&asked(8080, Protocol::Udp)).unwrap();
        assert_eq!((mapping.host_port, mapping.protocol.as_str()), (8080, "udp"));
        assert_eq!(mapping.host_ip, Some(IpAddr::from([10, 0, 0, 1])));
    }

    #[test]
    fn bandwidth_comes_from_annotations() {
        let config = |value: &str| PodSandboxConfig {
            annotations: [("kubernetes.io/ingress-bandwidth".to_owned(), value.to_owned())].into(),
            ..PodSandboxConfig::default()
        };
        let shaped = bandwidth(&config("10M")).unwrap();
        assert_eq!((shaped.ingress_rate, shaped.egress_rate, shaped.egress_burst), (10_000_000, 0, 0));
        assert_eq!(bandwidth(&config("fast")), None);
        assert_eq!(quantity("1Ki"), Some(1024));
        assert_eq!(quantity("99999999999G"), None);
    }
}
