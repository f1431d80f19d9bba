//! A veth from a bridge into a pod, with addresses and routes: what the reference plugin `bridge` does.

use super::{
    ThreadLost,
    conf::BridgeNetwork,
    host_local::{AddressError, Lease, Owner, Store},
    nat::NatError,
    sysctl::{self, SysctlError},
};
use crate::network::{
    netlink::{
        NetlinkError, Socket,
        link::{Link, Prefix, VethRequest},
        message::Batch,
    },
    pod::{INTERFACE, PodNetwork},
    result::AddResult,
    version::CniVersion,
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

/// A pod's network could not be made, looked at or removed.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// no thread
    #[error("start a thread")]
    Thread(#[source] io::Error),
    /// the thread panicked
    #[error(transparent)]
    ThreadLost(#[from] ThreadLost),
    /// the pod's namespace cannot be opened
    #[error("open network namespace {path}")]
    OpenNamespace {
        /// where it should be
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// the pod's namespace cannot be entered
    #[error("enter network namespace {path}")]
    EnterNamespace {
        /// where it is
        path: PathBuf,
        /// the system's answer
        #[source]
        source: Errno,
    },
    /// no address, or it could not be given back
    #[error(transparent)]
    Address(#[from] AddressError),
    /// the kernel refused
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// no host ports, or no masquerading
    #[error(transparent)]
    Nat(#[from] NatError),
    /// a kernel setting could not be changed
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// the bridge's name belongs to something else
    #[error("link {name} is not a bridge")]
    NotABridge {
        /// its name
        name: String,
    },
    /// the bridge has another address in the network
    #[error("bridge {bridge} has the address {present}, which is not {wanted} but in the same network")]
    OtherGateway {
        /// its name
        bridge: String,
        /// what it has
        present: IpAddr,
        /// what the network wants
        wanted: IpAddr,
    },
    /// a link is not there although it was just made
    #[error("link {name} is gone")]
    LinkGone {
        /// its name
        name: String,
    },
    /// CHECK found something missing
    #[error("{what} {name} is missing or not as it was")]
    Changed {
        /// link, address
        what: &'static str,
        /// which one
        name: String,
    },
}

/// The host's end is named after the sandbox, so that it is found again without a record.
pub(in crate::network) fn host_link_name(sandbox: &str) -> String {
    let digest = Sha256::digest(format!("{sandbox}/{INTERFACE}"));
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    // 15 bytes is all that a link's name may have
    format!("veth{}", &hex[..11])
}

fn owner(pod: &PodNetwork) -> Owner<'_> {
    Owner { sandbox: &pod.sandbox_id, interface: INTERFACE }
}

/// `translate` is told the pod's addresses while the thread is still on the host.
pub(super) fn attach(
    network: &BridgeNetwork,
    pod: &PodNetwork,
    version: CniVersion,
    translate: impl FnOnce(Vec<Prefix>) -> Result<(), NatError>,
) -> Result<Value, BridgeError> {
    let mut host = Socket::open()?;
    let namespace =
        File::open(&pod.netns).map_err(|source| BridgeError::OpenNamespace { path: pod.netns.clone(), source })?;
    let bridge = ensure_bridge(&mut host, network)?;
    let leases = Store::open(&network.store)?.allocate(&network.pools, owner(pod))?;
    if network.gateway {
        ensure_gateways(&mut host, network, &bridge, &leases)?;
    }
    let name = host_link_name(&pod.sandbox_id);
    let request = VethRequest {
        host_name: &name,
        bridge: bridge.index,
        mtu: network.mtu,
        pod_name: INTERFACE,
        pod_mac: None,
        netns: namespace.as_fd(),
    };
    create_veth(&mut host, &request)?;
    let gone = || BridgeError::LinkGone { name: name.clone() };
    let host_link = host.link(&name)?.ok_or_else(gone)?;
    if network.hairpin {
        let mut batch = Batch::default();
        batch.set_hairpin(host_link.index);
        host.execute("let a bridge port send back", &batch)?;
    }
    if network.snat && leases.iter().any(|lease| lease.ip.is_ipv4()) {
        // the host's own clients of 127.0.0.1 cross the bridge, and the answers come back over it
        sysctl::set(&format!("ipv4/conf/{}/route_localnet", network.bridge), "1")?;
    }
    translate(leases.iter().map(|lease| Prefix { ip: lease.ip, length: lease.prefix }).collect())?;
    // the thread stays in the pod's namespace and ends there; `host` was opened before and stays outside
    enter(&namespace, &pod.netns)?;
    let pod_link = configure(network, &leases)?;
    // a bridge takes over the lowest address of its ports unless it has one set
    let bridge = host.link(&network.bridge)?.ok_or_else(gone)?;
    Ok(result(network, pod, version, &[bridge, host_link, pod_link], &leases))
}

fn enter(namespace: &File, path: &Path) -> Result<(), BridgeError> {
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|source| BridgeError::EnterNamespace { path: path.to_owned(), source })
}

fn ensure_bridge(host: &mut Socket, network: &BridgeNetwork) -> Result<Link, BridgeError> {
    let name = &network.bridge;
    let mut found = host.link(name)?;
    if found.is_none() {
        let mut batch = Batch::default();
        batch.create_bridge(name, network.mtu);
        match host.execute("create a bridge", &batch) {
            // another pod was first
            Err(error) if error.reason() == Some(Errno::EEXIST) => {}
            created => created?,
        }
        found = host.link(name)?;
    }
    let link = found.ok_or_else(|| BridgeError::LinkGone { name: name.clone() })?;
    if link.kind.as_deref() != Some("bridge") {
        return Err(BridgeError::NotABridge { name: name.clone() });
    }
    if !link.up {
        let mut batch = Batch::default();
        batch.set_up(link.index);
        host.execute("set a bridge up", &batch)?;
    }
    Ok(link)
}

/// The bridge answers for the pods' gateways, and the host forwards what comes for them.
fn ensure_gateways(
    host: &mut Socket,
    network: &BridgeNetwork,
    bridge: &Link,
    leases: &[Lease],
) -> Result<(), BridgeError> {
    for lease in leases {
        let wanted = Prefix { ip: lease.gateway, length: lease.prefix };
        let mut batch = Batch::default();
        batch.add_address(bridge.index, wanted);
        match host.execute("give a bridge its address", &batch) {
            Err(error) if error.reason() == Some(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => refuse_second_gateway(host, network, bridge, wanted)?,
        }
        if lease.ip.is_ipv4() {
            sysctl::set("ipv4/ip_forward", "1")?;
        } else {
            sysctl::set("ipv6/conf/all/forwarding", "1")?;
        }
    }
    Ok(())
}

/// An address that was new may stand beside one of another configuration: two gateways in one network.
fn refuse_second_gateway(
    host: &mut Socket,
    network: &BridgeNetwork,
    bridge: &Link,
    wanted: Prefix,
) -> Result<(), BridgeError> {
    let others = host.addresses(bridge.index)?;
    let conflict = others.into_iter().find(|present| present.ip != wanted.ip && present.overlaps(wanted));
    let Some(present) = conflict else { return Ok(()) };
    let mut batch = Batch::default();
    batch.delete_address(bridge.index, wanted);
    host.execute("take an address off a bridge", &batch)?;
    Err(BridgeError::OtherGateway { bridge: network.bridge.clone(), present: present.ip, wanted: wanted.ip })
}

fn create_veth(host: &mut Socket, request: &VethRequest<'_>) -> Result<(), BridgeError> {
    const WHAT: &str = "create a veth";
    let mut batch = Batch::default();
    batch.create_veth(request);
    match host.execute(WHAT, &batch) {
        // the name is the sandbox's: what has it was left by an ADD that broke off
        Err(error) if error.reason() == Some(Errno::EEXIST) => {
            remove_veth(host, request.host_name)?;
            Ok(host.execute(WHAT, &batch)?)
        }
        created => Ok(created?),
    }
}

/// Inside the pod: addresses, up (announced to neighbours that knew an earlier owner of the address), routes.
fn configure(network: &BridgeNetwork, leases: &[Lease]) -> Result<Link, BridgeError> {
    let mut socket = Socket::open()?;
    let link = socket.link(INTERFACE)?.ok_or_else(|| BridgeError::LinkGone { name: INTERFACE.to_owned() })?;
    sysctl::set(&format!("ipv4/conf/{INTERFACE}/arp_notify"), "1")?;
    if leases.iter().any(|lease| lease.ip.is_ipv6()) {
        sysctl::set(&format!("ipv6/conf/{INTERFACE}/disable_ipv6"), "0")?;
        sysctl::set(&format!("ipv6/conf/{INTERFACE}/ndisc_notify"), "1")?;
    }
    let mut batch = Batch::default();
    for lease in leases {
        batch.add_address(link.index, Prefix { ip: lease.ip, length: lease.prefix });
    }
    batch.set_up(link.index);
    for (destination, gateway) in routes(network, leases) {
        batch.add_route(link.index, destination, gateway);
    }
    socket.execute("configure a pod's interface", &batch)?;
    Ok(link)
}

/// The configured routes, and default ones where the network wants them; each with its way.
fn routes(network: &BridgeNetwork, leases: &[Lease]) -> Vec<(Prefix, IpAddr)> {
    let mut routes: Vec<_> = network.routes.iter().map(|route| (route.destination, route.gateway)).collect();
    if network.default_gateway {
        for lease in leases {
            let any = if lease.ip.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            let default = Prefix { ip: any, length: 0 };
            if !routes.iter().any(|(destination, _)| *destination == default) {
                routes.push((default, Some(lease.gateway)));
            }
        }
    }
    let way = |destination: Prefix, gateway: Option<IpAddr>| {
        let of_family = leases.iter().find(|lease| lease.ip.is_ipv4() == destination.ip.is_ipv4());
        gateway.or(of_family.map(|lease| lease.gateway))
    };
    // a route of a family that the pod has no address of leads nowhere
    routes.into_iter().filter_map(|(destination, gateway)| Some((destination, way(destination, gateway)?))).collect()
}

fn result(
    network: &BridgeNetwork,
    pod: &PodNetwork,
    version: CniVersion,
    links: &[Link; 3],
    leases: &[Lease],
) -> Value {
    let [bridge, host, inner] = links;
    let ips: Vec<_> = leases
        .iter()
        .map(|lease| {
            let mut ip = json!({
                "interface": 2,
                "address": format!("{}/{}", lease.ip, lease.prefix),
                "gateway": lease.gateway,
            });
            if version < CniVersion::V1_0_0 {
                ip["version"] = json!(if lease.ip.is_ipv4() { "4" } else { "6" });
            }
            ip
        })
        .collect();
    let configured = network.routes.iter().map(|route| (route.destination, route.gateway));
    let defaults = routes(network, leases).into_iter().skip(network.routes.len()).map(|(to, by)| (to, Some(by)));
    let routes: Vec<_> = configured
        .chain(defaults)
        .map(|(destination, gateway)| {
            let mut route = json!({"dst": format!("{}/{}", destination.ip, destination.length)});
            if let Some(gateway) = gateway {
                route["gw"] = json!(gateway);
            }
            route
        })
        .collect();
    let mut result = json!({
        "cniVersion": version.as_str(),
        "interfaces": [
            {"name": bridge.name, "mac": bridge.mac},
            {"name": host.name, "mac": host.mac},
            {"name": inner.name, "mac": inner.mac, "sandbox": pod.netns},
        ],
        "ips": ips,
    });
    if !routes.is_empty() {
        result["routes"] = Value::Array(routes);
    }
    result["dns"] = json!({});
    result
}

pub(super) fn detach(network: &BridgeNetwork, pod: &PodNetwork, known: &[IpAddr]) -> Result<(), BridgeError> {
    let mut host = Socket::open()?;
    // the address is free for others only when nobody can use it any more
    remove_veth(&mut host, &host_link_name(&pod.sandbox_id))?;
    Ok(Store::open(&network.store)?.release(owner(pod), known)?)
}

fn remove_veth(host: &mut Socket, name: &str) -> Result<(), BridgeError> {
    let Some(link) = host.link(name)? else { return Ok(()) };
    let mut batch = Batch::default();
    batch.delete_link(link.index);
    match host.execute("remove a veth", &batch) {
        // went with its namespace meanwhile
        Err(error) if error.reason() == Some(Errno::ENODEV) => Ok(()),
        removed => Ok(removed?),
    }
}

pub(super) fn check(network: &BridgeNetwork, pod: &PodNetwork, expected: &AddResult) -> Result<(), BridgeError> {
    let changed = |what, name: &str| BridgeError::Changed { what, name: name.to_owned() };
    let mut host = Socket::open()?;
    let bridge = host.link(&network.bridge)?.ok_or_else(|| changed("bridge", &network.bridge))?;
    let name = host_link_name(&pod.sandbox_id);
    let port = host.link(&name)?.filter(|link| link.up && link.master == Some(bridge.index));
    port.ok_or_else(|| changed("bridge port", &name))?;
    let namespace =
        File::open(&pod.netns).map_err(|source| BridgeError::OpenNamespace { path: pod.netns.clone(), source })?;
    enter(&namespace, &pod.netns)?;
    let mut inside = Socket::open()?;
    let link = inside.link(INTERFACE)?.filter(|link| link.up).ok_or_else(|| changed("link", INTERFACE))?;
    let present = inside.addresses(link.index)?;
    for address in &expected.ips {
        let wanted = Prefix { ip: address.ip, length: address.prefix };
        if !present.contains(&wanted) {
            return Err(changed("address", &address.ip.to_string()));
        }
    }
    Ok(())
}
