//! Which configurations the built-in plugins can do. They do everything of what they accept; a key that is not known
//! here means the executable, which knows it.

use super::{
    super::{
        conf::{ConfList, Plugin},
        netlink::link::Prefix,
        pod::{PodNetwork, PortMapping},
    },
    nat::protocol,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

/// Where host-local keeps addresses unless told otherwise.
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";
const DEFAULT_BRIDGE: &str = "cni0";
const PORTMAP: &str = "portmap";
/// Longest name of a link.
const LINK_NAME: usize = 15;

/// A bridge with addresses from host-local.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::network) struct BridgeNetwork {
    pub(super) bridge: String,
    pub(super) mtu: Option<u32>,
    pub(super) hairpin: bool,
    /// the bridge has the gateways' addresses, and the host forwards
    pub(super) gateway: bool,
    /// pods get a default route even if none is configured
    pub(super) default_gateway: bool,
    pub(super) routes: Vec<Route>,
    /// one address is taken from each
    pub(super) pools: Vec<Pool>,
    /// directory of the network's addresses
    pub(super) store: PathBuf,
    /// what leaves the network gets the host's address
    pub(super) masquerade: bool,
    /// host ports that lead to the pod
    pub(super) ports: Vec<PortMapping>,
    /// clients of host ports in the pod's own network, and on the host's loopback, get the host's address
    pub(super) snat: bool,
}

impl BridgeNetwork {
    /// Whether links are not all: it has host ports or masquerading.
    pub(super) fn wants_nat(&self) -> bool {
        self.masquerade || !self.ports.is_empty()
    }
}

/// A route for pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Prefix,
    /// the address's own gateway when absent
    pub(super) gateway: Option<IpAddr>,
}

/// Ranges that are used up one after the other.
pub(super) type Pool = Vec<Range>;

/// Addresses from first to last, without the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) prefix: u8,
    pub(super) first: IpAddr,
    pub(super) last: IpAddr,
    pub(super) gateway: IpAddr,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenBridge {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "name", default)]
    _name: Option<String>,
    #[serde(rename = "cniVersion", default)]
    _version: Option<String>,
    bridge: Option<String>,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    // accepted where they say that nothing is wanted
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    vlan: u32,
    ipam: WrittenIpam,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPortmap {
    #[serde(rename = "type")]
    _kind: String,
    #[serde(rename = "name", default)]
    _name: Option<String>,
    #[serde(rename = "cniVersion", default)]
    _version: Option<String>,
    snat: Option<bool>,
    backend: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenIpam {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    ranges: Vec<Vec<WrittenRange>>,
    #[serde(default)]
    routes: Vec<WrittenRoute>,
    data_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenRange {
    subnet: String,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRoute {
    dst: String,
    gw: Option<IpAddr>,
}

/// The network of a list, if everything that the list and the pod ask for is built in.
pub(in crate::network) fn supported(list: &ConfList, pod: &PodNetwork) -> Option<BridgeNetwork> {
    let (first, rest) = list.plugins.split_first()?;
    if !pod.runtime_config(first).is_empty() {
        return None;
    }
    let mut network = bridge(&list.name, &first.conf)?;
    let portmap = match rest {
        [] => return Some(network),
        [portmap] if portmap.kind == PORTMAP => portmap,
        _ => return None,
    };
    // the executable hands the result on when there are no ports to map
    if !pod.port_mappings.is_empty() && portmap.wants("portMappings") {
        network.snat = snat(portmap)?;
        network.ports.clone_from(&pod.port_mappings);
    }
    network.ports.iter().all(|port| protocol(&port.protocol).is_some()).then_some(network)
}

/// Whether pods need no executable for a plugin that comes after the bridge.
pub(in crate::network) fn is_built_in(plugin: &Plugin) -> bool {
    plugin.kind == PORTMAP && snat(plugin).is_some()
}

/// What `portmap` is told, if that is built in: whether it hides some clients behind the host's address.
fn snat(plugin: &Plugin) -> Option<bool> {
    let mut conf = plugin.conf.clone();
    // what the pod uses of it was looked at before
    conf.remove("capabilities");
    let written = WrittenPortmap::deserialize(Value::Object(conf)).ok()?;
    is_nftables(written.backend.as_deref()).then_some(written.snat.unwrap_or(true))
}

/// Later reference plugins can be told what to write rules with. We have one way.
fn is_nftables(backend: Option<&str>) -> bool {
    matches!(backend, None | Some("" | "nftables"))
}

fn bridge(network: &str, conf: &Map<String, Value>) -> Option<BridgeNetwork> {
    let mut conf = conf.clone();
    // what the pod uses of it was looked at before
    conf.remove("capabilities");
    let ipam = conf.remove("ipam")?;
    let mut ipam = ipam.as_object()?.clone();
    // serde cannot refuse unknown keys of a flattened part: the old form of one range is brought into the new one
    if ipam.contains_key("subnet") {
        let keys = ["subnet", "rangeStart", "rangeEnd", "gateway"];
        let range: Map<_, _> = keys.iter().filter_map(|key| ipam.remove_entry(*key)).collect();
        let mut ranges = vec![Value::Array(vec![Value::Object(range)])];
        ranges.extend(ipam.remove("ranges").and_then(|ranges| ranges.as_array().cloned()).unwrap_or_default());
        ipam.insert("ranges".to_owned(), Value::Array(ranges));
    }
    conf.insert("ipam".to_owned(), Value::Object(ipam));
    let written = WrittenBridge::deserialize(Value::Object(conf)).ok()?;
    let other = written.force_address || written.promisc_mode || written.vlan != 0;
    let other = other || !is_nftables(written.ip_masq_backend.as_deref());
    if written.kind != "bridge" || written.ipam.kind != "host-local" || other {
        return None;
    }
    let bridge = written.bridge.unwrap_or_else(|| DEFAULT_BRIDGE.to_owned());
    if bridge.is_empty() || bridge.len() > LINK_NAME || bridge.contains(['/', ' ']) {
        return None;
    }
    let pools =
        written.ipam.ranges.iter().map(|pool| pool.iter().map(range).collect()).collect::<Option<Vec<Pool>>>()?;
    // the executable says what is wrong with a configuration better than we could
    let usable = !pools.is_empty() && pools.iter().all(is_pool);
    let routes = written.ipam.routes.iter().map(route).collect::<Option<Vec<_>>>()?;
    usable.then(|| BridgeNetwork {
        bridge,
        mtu: (written.mtu != 0).then_some(written.mtu),
        hairpin: written.hairpin_mode,
        gateway: written.is_gateway || written.is_default_gateway,
        default_gateway: written.is_default_gateway,
        routes,
        pools,
        store: written.ipam.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()).join(network),
        masquerade: written.ip_masq,
        ports: Vec::new(),
        snat: false,
    })
}

/// At least one range, all of one family.
fn is_pool(pool: &Pool) -> bool {
    pool.first().is_some_and(|first| pool.iter().all(|range| range.first.is_ipv4() == first.first.is_ipv4()))
}

fn prefix(text: &str) -> Option<Prefix> {
    let (ip, length) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    (length <= if ip.is_ipv4() { 32 } else { 128 }).then_some(Prefix { ip, length })
}

fn route(written: &WrittenRoute) -> Option<Route> {
    Some(Route { destination: prefix(&written.dst)?, gateway: written.gw })
}

/// A range with host-local's defaults: the first address is the gateway, the last of IPv4 is broadcast.
fn range(written: &WrittenRange) -> Option<Range> {
    let subnet = prefix(&written.subnet)?;
    let (bits, width) = to_bits(subnet.ip);
    let host_bits = width - u32::from(subnet.length);
    // no host bits set, and room for two addresses besides the network's own and broadcast
    if host_bits < 2 || bits & low_bits(host_bits) != 0 {
        return None;
    }
    let make = |bits: u128| from_bits(bits, subnet.ip);
    let broadcast = u128::from(subnet.ip.is_ipv4());
    let range = Range {
        prefix: subnet.length,
        first: written.range_start.unwrap_or_else(|| make(bits + 1)),
        last: written.range_end.unwrap_or_else(|| make((bits | low_bits(host_bits)) - broadcast)),
        gateway: written.gateway.unwrap_or_else(|| make(bits + 1)),
    };
    let inside = |ip: IpAddr| subnet.overlaps(Prefix { ip, length: if ip.is_ipv4() { 32 } else { 128 } });
    let ordered = to_bits(range.first).0 <= to_bits(range.last).0;
    (ordered && inside(range.first) && inside(range.last) && range.gateway.is_ipv4() == subnet.ip.is_ipv4())
        .then_some(range)
}

fn low_bits(count: u32) -> u128 {
    u128::MAX.checked_shr(128 - count).unwrap_or(0)
}

/// An address as number, and how many bits it has.
pub(super) fn to_bits(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    }
}

/// A number as address of the same family as another.
pub(super) fn from_bits(bits: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

#[cfg(test)]
#[path = "conf_tests.rs"]
mod tests;
