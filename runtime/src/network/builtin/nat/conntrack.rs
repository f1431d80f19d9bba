//! Tracked UDP connections that a change of host ports makes wrong: UDP has no end, so that a client that goes on asking
//! would be sent to a pod that is gone, or past one that has come.

use super::rules::UdpPorts;
use crate::network::netlink::{
    NetlinkError, Socket,
    message::{ACK, Batch, DUMP, attribute},
    netfilter::{Family, connection_message},
};
use nix::errno::Errno;
use std::{collections::HashSet, net::IpAddr};

const GET: u16 = 1;
const DELETE: u16 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const NESTED: u16 = 0x8000;
const UDP: u8 = 17;
/// Requests at a time: each is answered, and answers have to fit into the socket.
const AT_A_TIME: usize = 64;

/// One direction of a connection.
#[derive(Debug, PartialEq, Eq)]
struct Tuple {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    destination_port: u16,
}

/// Forgets connections to the given host ports that lead to the pods which have (or had) them, or to this host itself.
pub(super) fn forget(ports: &UdpPorts) -> Result<(), NetlinkError> {
    for family in Family::BOTH {
        let here = ports.iter().filter(|(pod, _)| super::rules::of(*pod) == family);
        let pods: HashSet<IpAddr> = here.clone().map(|(pod, _)| *pod).collect();
        let numbers: HashSet<u16> = here.map(|(_, port)| *port).collect();
        if !numbers.is_empty() {
            forget_of(family, &pods, &numbers)?;
        }
    }
    Ok(())
}

fn forget_of(family: Family, pods: &HashSet<IpAddr>, ports: &HashSet<u16>) -> Result<(), NetlinkError> {
    let own: HashSet<IpAddr> = Socket::open()?.all_addresses()?.into_iter().collect();
    let mut socket = Socket::open_netfilter()?;
    let mut stale = Vec::new();
    let mut question = Batch::default();
    connection_message(&mut question, GET, DUMP, family, |_| {});
    socket.dump("list tracked connections", &question, |payload| {
        let Some(attributes) = payload.get(4..) else { return };
        let tuple = |kind| attribute(attributes, kind).and_then(tuple);
        let (Some(original), Some(reply)) = (tuple(ORIGINAL), tuple(REPLY)) else { return };
        let to_host = own.contains(&original.destination) || original.destination.is_loopback();
        let changed = pods.contains(&reply.source) || reply.source == original.destination;
        if original.protocol == UDP && ports.contains(&original.destination_port) && to_host && changed {
            stale.push(attributes.to_vec());
        }
    })?;
    for some in stale.chunks(AT_A_TIME) {
        let mut batch = Batch::default();
        for attributes in some {
            connection_message(&mut batch, DELETE, ACK, family, |message| {
                for (kind, flag) in [(ORIGINAL, NESTED), (ID, 0), (ZONE, 0)] {
                    if let Some(value) = attribute(attributes, kind) {
                        message.bytes(kind | flag, value);
                    }
                }
            });
        }
        match socket.execute("forget a tracked connection", &batch) {
            // ended meanwhile
            Err(error) if error.reason() == Some(Errno::ENOENT) => {}
            forgotten => forgotten?,
        }
    }
    Ok(())
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        match (attribute(ip, v4), attribute(ip, v6)) {
            (Some(value), _) => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
            (None, Some(value)) => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
            (None, None) => None,
        }
    };
    let port = attribute(proto, 3)?;
    Some(Tuple {
        protocol: *attribute(proto, 1)?.first()?,
        source: address(1, 3)?,
        destination: address(2, 4)?,
        destination_port: u16::from_be_bytes(port.get(..2)?.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_has_addresses_and_ports_in_the_order_of_the_network() {
        let mut batch = Batch::default();
        connection_message(&mut batch, GET, 0, Family::V4, |message| {
            message.nest(ORIGINAL, |tuple| {
                tuple.nest(1, |ip| {
                    ip.bytes(1, &[10, 0, 0, 1]);
                    ip.bytes(2, &[10, 0, 0, 2]);
                });
                tuple.nest(2, |proto| {
                    proto.bytes(1, &[UDP]);
                    proto.bytes(2, &[0x12, 0x34]);
                    proto.bytes(3, &[0, 53]);
                });
            });
            message.nest(REPLY, |_| {});
        });
        let bytes = batch.bytes();
        let attributes = &bytes[20..];
        let expected = Tuple {
            protocol: UDP,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            destination_port: 53,
        };
        assert_eq!(attribute(attributes, ORIGINAL).and_then(tuple), Some(expected));
        assert_eq!(attribute(attributes, REPLY).and_then(tuple), None, "protocols without ports");
    }
}
