//! Links, addresses and routes: requests and answers of rtnetlink.

use super::{
    NetlinkError, Socket,
    message::{ACK, Batch, CREATE, DUMP, EXCL, Message, attribute, u32_at},
};
use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
/// The form of NEWLINK that bridges listen to for their ports.
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const IFF_UP: u32 = 1;
/// No duplicate address detection: addresses from a pool are unique, and detection takes a second.
const IFA_F_NODAD: u8 = 0x02;
const AF_BRIDGE: u8 = 7;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const UNICAST: u8 = 1;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::network) struct Link {
    pub(in crate::network) index: u32,
    pub(in crate::network) name: String,
    pub(in crate::network) up: bool,
    /// hardware address, as people write it
    pub(in crate::network) mac: String,
    /// index of the bridge it is a port of
    pub(in crate::network) master: Option<u32>,
    /// `veth`, `bridge`, …
    pub(in crate::network) kind: Option<String>,
}

/// A host's veth whose other end is in a pod.
#[derive(Debug)]
pub(in crate::network) struct VethRequest<'a> {
    pub(in crate::network) host_name: &'a str,
    pub(in crate::network) bridge: u32,
    pub(in crate::network) mtu: Option<u32>,
    pub(in crate::network) pod_name: &'a str,
    pub(in crate::network) pod_mac: Option<[u8; 6]>,
    pub(in crate::network) netns: BorrowedFd<'a>,
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::network) struct Prefix {
    pub(in crate::network) ip: IpAddr,
    pub(in crate::network) length: u8,
}

impl Prefix {
    /// Whether both name one network, or one lies in the other.
    pub(in crate::network) fn overlaps(self, other: Self) -> bool {
        match (self.ip, other.ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.length.min(other.length));
                a.to_bits().checked_shr(shift).unwrap_or(0) == b.to_bits().checked_shr(shift).unwrap_or(0)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.length.min(other.length));
                a.to_bits().checked_shr(shift).unwrap_or(0) == b.to_bits().checked_shr(shift).unwrap_or(0)
            }
            _ => false,
        }
    }
}

fn ifinfo(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

impl Batch {
    /// A bridge, up.
    pub(in crate::network) fn create_bridge(&mut self, name: &str, mtu: Option<u32>) {
        self.push(NEWLINK, ACK | CREATE | EXCL, &ifinfo(0, 0, IFF_UP, IFF_UP), |link| {
            link.text(IFLA_IFNAME, name);
            if let Some(mtu) = mtu {
                link.u32(IFLA_MTU, mtu);
            }
            link.nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
        });
    }

    /// A pair of veths, one end up and a port of a bridge, the other in another namespace from the start. That one is
    /// not up: the kernel announces addresses when a link goes up.
    pub(in crate::network) fn create_veth(&mut self, request: &VethRequest<'_>) {
        self.push(NEWLINK, ACK | CREATE | EXCL, &ifinfo(0, 0, IFF_UP, IFF_UP), |link| {
            link.text(IFLA_IFNAME, request.host_name);
            link.u32(IFLA_MASTER, request.bridge);
            if let Some(mtu) = request.mtu {
                link.u32(IFLA_MTU, mtu);
            }
            link.nest(IFLA_LINKINFO, |info| {
                info.text(IFLA_INFO_KIND, "veth");
                info.nest(IFLA_INFO_DATA, |data| {
                    data.nest_after(VETH_INFO_PEER, &ifinfo(0, 0, 0, 0), |peer| {
                        peer.text(IFLA_IFNAME, request.pod_name);
                        if let Some(mtu) = request.mtu {
                            peer.u32(IFLA_MTU, mtu);
                        }
                        if let Some(mac) = request.pod_mac {
                            peer.bytes(IFLA_ADDRESS, &mac);
                        }
                        peer.bytes(IFLA_NET_NS_FD, &request.netns.as_raw_fd().to_ne_bytes());
                    });
                });
            });
        });
    }

    /// Lets a port of a bridge send back what came in by it.
    pub(in crate::network) fn set_hairpin(&mut self, index: u32) {
        self.push(SETLINK, ACK, &ifinfo(AF_BRIDGE, index, 0, 0), |link| {
            link.nest(IFLA_PROTINFO, |port| port.bytes(IFLA_BRPORT_MODE, &[1]));
        });
    }

    pub(in crate::network) fn set_up(&mut self, index: u32) {
        self.push(NEWLINK, ACK, &ifinfo(0, index, IFF_UP, IFF_UP), |_| {});
    }

    pub(in crate::network) fn delete_link(&mut self, index: u32) {
        self.push(DELLINK, ACK, &ifinfo(0, index, 0, 0), |_| {});
    }

    pub(in crate::network) fn add_address(&mut self, index: u32, address: Prefix) {
        let flags = if address.ip.is_ipv6() { IFA_F_NODAD } else { 0 };
        let mut fixed = [family(address.ip), address.length, flags, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        self.push(NEWADDR, ACK | CREATE | EXCL, &fixed, |attributes| {
            attributes.bytes(IFA_LOCAL, &octets(address.ip));
            attributes.bytes(IFA_ADDRESS, &octets(address.ip));
            if let IpAddr::V4(ip) = address.ip
                && address.length < 31
            {
                let host_bits = u32::MAX.checked_shr(u32::from(address.length)).unwrap_or(0);
                attributes.bytes(IFA_BROADCAST, &(ip.to_bits() | host_bits).to_be_bytes());
            }
        });
    }

    pub(in crate::network) fn delete_address(&mut self, index: u32, address: Prefix) {
        let mut fixed = [family(address.ip), address.length, 0, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        self.push(DELADDR, ACK, &fixed, |attributes| attributes.bytes(IFA_LOCAL, &octets(address.ip)));
    }

    /// A route to `destination` by way of `gateway`.
    pub(in crate::network) fn add_route(&mut self, index: u32, destination: Prefix, gateway: IpAddr) {
        let fixed = [family(gateway), destination.length, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, 0, UNICAST, 0, 0, 0, 0];
        self.push(NEWROUTE, ACK | CREATE | EXCL, &fixed, |route| {
            if destination.length > 0 {
                route.bytes(RTA_DST, &octets(destination.ip));
            }
            route.bytes(RTA_GATEWAY, &octets(gateway));
            route.u32(RTA_OIF, index);
        });
    }
}

impl Socket {
    /// The link of that name; `None` when there is none.
    pub(in crate::network) fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        const WHAT: &str = "look up a link";
        let mut batch = Batch::default();
        batch.push(GETLINK, 0, &ifinfo(0, 0, 0, 0), |link| link.text(IFLA_IFNAME, name));
        match self.get(WHAT, &batch, |payload| {
            parse_link(payload).ok_or(NetlinkError::Incomplete { what: WHAT, missing: "name" })
        }) {
            Err(error) if error.reason() == Some(nix::errno::Errno::ENODEV) => Ok(None),
            found => found.map(Some),
        }
    }

    /// All addresses of this host.
    pub(in crate::network) fn all_addresses(&mut self) -> Result<Vec<IpAddr>, NetlinkError> {
        let mut batch = Batch::default();
        batch.push(GETADDR, DUMP, &[0; 8], |_| {});
        let mut found = Vec::new();
        self.dump("list addresses", &batch, |payload| found.extend(parse_address(payload).map(|prefix| prefix.ip)))?;
        Ok(found)
    }

    /// All addresses of a link.
    pub(in crate::network) fn addresses(&mut self, index: u32) -> Result<Vec<Prefix>, NetlinkError> {
        let mut batch = Batch::default();
        batch.push(GETADDR, DUMP, &[0; 8], |_| {});
        let mut found = Vec::new();
        self.dump("list addresses", &batch, |payload| {
            if u32_at(payload, 4) == Some(index) {
                found.extend(parse_address(payload));
            }
        })?;
        Ok(found)
    }
}

/// The name of the link that a message says is gone.
pub(super) fn deleted_link(message: Message<'_>) -> Option<String> {
    // bridges report with the same number that one of their ports is gone
    let of_bridge = message.payload.first() == Some(&AF_BRIDGE);
    (message.kind == DELLINK && !of_bridge).then(|| parse_link(message.payload)).flatten().map(|link| link.name)
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let index = u32_at(payload, 4)?;
    let up = u32_at(payload, 8)? & IFF_UP != 0;
    let attributes = payload.get(16..)?;
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let name = text(attribute(attributes, IFLA_IFNAME)?);
    let mac = attribute(attributes, IFLA_ADDRESS).unwrap_or_default();
    let mac = mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    let master = attribute(attributes, IFLA_MASTER).and_then(|value| u32_at(value, 0));
    let kind = attribute(attributes, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_KIND)).map(text);
    Some(Link { index, name, up, mac, master, kind })
}

fn parse_address(payload: &[u8]) -> Option<Prefix> {
    let length = *payload.get(1)?;
    let attributes = payload.get(8..)?;
    let value = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
    let ip = match value.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
    };
    Some(Prefix { ip, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (ip, length) = text.split_once('/').unwrap();
        Prefix { ip: ip.parse().unwrap(), length: length.parse().unwrap() }
    }

    #[test]
    fn networks_overlap_when_the_shorter_prefix_is_common() {
        for (a, b, overlap) in [
            ("10.0.0.1/24", "10.0.0.2/24", true),
            ("10.0.0.1/24", "10.0.1.1/24", false),
            ("10.0.0.1/8", "10.9.1.1/24", true),
            ("0.0.0.0/0", "10.9.1.1/24", true),
            ("fd00::1/64", "fd00::2/64", true),
            ("fd00::1/64", "fd00:0:0:1::1/64", false),
            ("::/0", "10.0.0.1/8", false),
        ] {
            assert_eq!(prefix(a).overlaps(prefix(b)), overlap, "{a} {b}");
            assert_eq!(prefix(b).overlaps(prefix(a)), overlap, "{b} {a}");
        }
    }
}
