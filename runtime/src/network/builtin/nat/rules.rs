//! What all pods together want of the tables: a pure function of their claims, so that a table can be compared with it,
//! changed to it, or made anew.

use super::super::conf::{BridgeNetwork, from_bits, to_bits};
use crate::network::{
    netlink::{link::Prefix, netfilter::Family},
    pod::PortMapping,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What one pod wants.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::network) struct Claim {
    /// when it came: a host port that two pods want is the earlier one's for as long as that one lives
    pub(super) since: u64,
    /// the pod's addresses with the length of their network's prefix
    pub(super) addresses: Vec<Prefix>,
    /// what leaves the network has the host's address
    pub(super) masquerade: bool,
    pub(super) ports: Vec<PortMapping>,
    /// so has what comes to a host port from the pod's own network or from the host's loopback
    pub(super) snat: bool,
}

impl Claim {
    /// `None` when the network and the pod want nothing of the tables.
    pub(in crate::network) fn new(since: u64, network: &BridgeNetwork, addresses: Vec<Prefix>) -> Option<Self> {
        let wants = network.masquerade || !network.ports.is_empty();
        wants.then(|| Self {
            since,
            addresses,
            masquerade: network.masquerade,
            ports: network.ports.clone(),
            snat: network.snat,
        })
    }
}

/// The sets and maps of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    /// protocol . host port → address . port
    Ports,
    /// address of the host . protocol . host port → address . port
    PortsAt,
    /// address of a pod . protocol . host port that led there → chain of its network
    Hairpin,
    /// address of a pod → chain of its network
    Masquerade,
}

impl Set {
    pub(super) const ALL: [Self; 4] = [Self::Ports, Self::PortsAt, Self::Hairpin, Self::Masquerade];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ports => "hostports",
            Self::PortsAt => "hostports-at",
            Self::Hairpin => "hairpin",
            // `masquerade` is a word of nft's own
            Self::Masquerade => "masqueraded",
        }
    }
}

/// Where an element leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// address . port, as the kernel keeps them
    To(Vec<u8>),
    /// a chain
    Chain(String),
}

/// The contents of the table of one family.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Contents {
    pub(super) elements: BTreeMap<(Set, Vec<u8>), Target>,
    /// networks that have chains, by the end of the chains' names
    pub(super) networks: BTreeMap<String, Prefix>,
}

/// Chain for what comes to a host port of a pod in that network.
pub(super) fn inside(network: &str) -> String {
    format!("inside-{network}")
}

/// Chain for what leaves that network.
pub(super) fn outside(network: &str) -> String {
    format!("outside-{network}")
}

/// UDP ports of the host whose meaning changes, with the pod that has or had them.
pub(super) type UdpPorts = BTreeSet<(IpAddr, u16)>;

/// What is to be in the table of a family.
pub(super) fn contents<'a>(family: Family, claims: impl Iterator<Item = (&'a String, &'a Claim)>) -> Contents {
    let mut claims: Vec<_> = claims.collect();
    claims.sort_by_key(|(sandbox, claim)| (claim.since, *sandbox));
    let mut contents = Contents::default();
    for (_, claim) in claims {
        for address in claim.addresses.iter().filter(|address| of(address.ip) == family) {
            contents.add(claim, *address);
        }
    }
    contents
}

/// The UDP ports of one pod.
pub(super) fn udp_ports(claim: &Claim) -> UdpPorts {
    let udp = || claim.ports.iter().filter(|port| port.protocol == "udp");
    claim.addresses.iter().flat_map(|address| udp().map(|port| (address.ip, port.host_port))).collect()
}

impl Contents {
    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    fn add(&mut self, claim: &Claim, address: Prefix) {
        let network = network_of(address);
        // `nft` takes no colons in names
        let name = format!("{}-{}", network.ip, network.length).replace(':', "_");
        let pod = octets(address.ip);
        let mut used = claim.masquerade;
        if claim.masquerade {
            self.claim((Set::Masquerade, pod.clone()), Target::Chain(outside(&name)));
        }
        for port in &claim.ports {
            let Some(protocol) = protocol(&port.protocol) else { continue };
            let target = Target::To([pod.clone(), word(&port.container_port.to_be_bytes())].concat());
            let service = [word(&[protocol]), word(&port.host_port.to_be_bytes())].concat();
            let key = match port.host_ip {
                Some(ip) if of(ip) != of(address.ip) => continue,
                Some(ip) if !ip.is_unspecified() => (Set::PortsAt, [octets(ip), service.clone()].concat()),
                _ => (Set::Ports, service.clone()),
            };
            self.claim(key, target);
            if claim.snat {
                used = true;
                self.claim((Set::Hairpin, [pod.clone(), service].concat()), Target::Chain(inside(&name)));
            }
        }
        if used {
            self.networks.insert(name, network);
        }
    }

    /// The earliest claim counts.
    fn claim(&mut self, key: (Set, Vec<u8>), target: Target) {
        self.elements.entry(key).or_insert(target);
    }
}

/// IANA's number of a protocol that has ports.
pub(in crate::network::builtin) fn protocol(name: &str) -> Option<u8> {
    match name {
        "tcp" => Some(6),
        "udp" => Some(17),
        "sctp" => Some(132),
        _ => None,
    }
}

pub(super) fn of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn network_of(address: Prefix) -> Prefix {
    let (bits, width) = to_bits(address.ip);
    let host = u128::MAX.checked_shl(width - u32::from(address.length).min(width)).unwrap_or(0);
    Prefix { ip: from_bits(bits & host, address.ip), length: address.length }
}

/// An address in a key.
pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Parts of a key begin at multiples of four bytes.
fn word(bytes: &[u8]) -> Vec<u8> {
    let mut word = bytes.to_vec();
    word.resize(4, 0);
    word
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
