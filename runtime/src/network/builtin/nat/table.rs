//! Our tables in the kernel, one for each family (`ip nodeagent`, `ip6 nodeagent`), each with the same few rules on sets and maps.
//!
//! ```text
//! prerouting, output   to an address of this host → hostports
//! hostports            dnat by hostports-at (address, protocol, port), else by hostports (protocol, port)
//! postrouting          hairpin (pod, protocol, host port) → inside-<network>; masqueraded (pod) → outside-<network>
//! inside-<network>     from that network or from loopback: masquerade
//! outside-<network>    to that network or to many: as it is; else masquerade
//! loopback             what comes from outside for 127.0.0.0/8: drop (IPv4)
//! ```
//!
//! Two families and not `inet`, whose NAT kernels have since 5.2 only. Chains have priorities of their own, just before
//! those of others, so that a host port wins over a service with the same port. Nothing here belongs to firewalld or
//! iptables, whose reloads leave other tables alone.

use super::{
    expression::{self, Rule},
    rules::{self, Contents, Set, Target},
};
use crate::network::netlink::{
    link::Prefix,
    message::{APPEND, CREATE},
    netfilter::{Family, Transaction},
};

const NEWTABLE: u16 = 0;
pub(super) const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
pub(super) const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

/// Hooks (NF_INET_PRE_ROUTING and so on).
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// Before destination NAT of others, at -100, and after connections are tracked, at -200.
const BEFORE_DSTNAT: i32 = -110;
/// Before source NAT of others, at 100.
const BEFORE_SRCNAT: i32 = 90;
/// Before anything is changed in a packet.
const RAW: i32 = -300;

const HOSTPORTS: &str = "hostports";
const MAP: u32 = 8;
const VERDICTS: u32 = 0xffff_ff00;
/// Elements in one message: an attribute has at most 64 KiB.
const ELEMENTS: usize = 256;

/// How `nft` names the types of keys; concatenated by six bits each.
const SERVICE: [u32; 2] = [12, 13];

fn concatenated(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| all << 6 | one)
}

/// Where addresses are, and how long.
struct Layout {
    family: Family,
    kind: u32,
    length: u32,
    source: u32,
    destination: u32,
    loopback: Prefix,
    many: Prefix,
}

impl Layout {
    fn of(family: Family) -> Self {
        let prefix = |ip: [u16; 8], length| Prefix { ip: ip.into(), length };
        match family {
            Family::V4 => Self {
                family,
                kind: 7,
                length: 4,
                source: 12,
                destination: 16,
                loopback: Prefix { ip: [127, 0, 0, 0].into(), length: 8 },
                many: Prefix { ip: [224, 0, 0, 0].into(), length: 4 },
            },
            Family::V6 => Self {
                family,
                kind: 8,
                length: 16,
                source: 8,
                destination: 24,
                loopback: prefix([0, 0, 0, 0, 0, 0, 0, 1], 128),
                many: prefix([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
            },
        }
    }

    /// Registers that an address fills.
    fn words(&self) -> u32 {
        self.length / 4
    }

    /// Goes on if the address at that place of the header is in a network.
    fn is_in<'r, 'a, 'b>(&self, rule: &'r mut Rule<'a, 'b>, offset: u32, network: Prefix) -> &'r mut Rule<'a, 'b> {
        let mask = u128::MAX.checked_shl(128 - u32::from(network.length)).unwrap_or(0).to_be_bytes();
        let octets = rules::octets(network.ip);
        rule.network_header(0, offset, self.length).mask(&mask[..octets.len()]).compare(true, &octets)
    }

    fn key(&self, set: Set) -> (Vec<u32>, u32) {
        match set {
            Set::Ports => (SERVICE.to_vec(), 8),
            Set::PortsAt | Set::Hairpin => ([&[self.kind][..], &SERVICE].concat(), self.length + 8),
            Set::Masquerade => (vec![self.kind], self.length),
        }
    }
}

/// Tables that are to be removed may or may not be there: making sure that they are is not an error.
pub(super) fn remove(transaction: &mut Transaction<'_>, family: Family) {
    transaction.push(NEWTABLE, CREATE, family, |_| {});
    transaction.push(DELTABLE, 0, family, |_| {});
}

/// The table as it is without pods, in the place of the one that may be there.
pub(super) fn create(transaction: &mut Transaction<'_>, family: Family) {
    let layout = Layout::of(family);
    remove(transaction, family);
    transaction.push(NEWTABLE, CREATE, family, |_| {});
    for (id, set) in (1..).zip(Set::ALL) {
        create_set(transaction, &layout, set, id);
    }
    chain(transaction, family, HOSTPORTS);
    let bases = [
        ("prerouting", "nat", PREROUTING, BEFORE_DSTNAT),
        ("output", "nat", OUTPUT, BEFORE_DSTNAT),
        ("postrouting", "nat", POSTROUTING, BEFORE_SRCNAT),
    ];
    for (name, kind, hook, priority) in bases {
        base_chain(transaction, family, name, kind, hook, priority);
    }
    for name in ["prerouting", "output"] {
        rule(transaction, family, name, |rule| {
            rule.goes_to_this_host().jump(HOSTPORTS);
        });
    }
    let words = layout.words();
    rule(transaction, family, HOSTPORTS, |rule| {
        let rule = rule.network_header(0, layout.destination, layout.length);
        rule.protocol(words).destination_port(words + 1).map(Set::PortsAt.name()).send_to(family.number(), words);
    });
    rule(transaction, family, HOSTPORTS, |rule| {
        rule.protocol(0).destination_port(1).map(Set::Ports.name()).send_to(family.number(), words);
    });
    rule(transaction, family, "postrouting", |rule| {
        let rule = rule.network_header(0, layout.destination, layout.length);
        rule.protocol(words).original_port(words + 1).go_by(Set::Hairpin.name());
    });
    rule(transaction, family, "postrouting", |rule| {
        rule.network_header(0, layout.source, layout.length).go_by(Set::Masquerade.name());
    });
    if family == Family::V4 {
        // bridges let loopback addresses pass for the sake of host ports: only what the host sends itself may have them
        base_chain(transaction, family, "loopback", "filter", PREROUTING, RAW);
        rule(transaction, family, "loopback", |rule| {
            layout.is_in(rule.came_from_outside(), layout.destination, layout.loopback).drop();
        });
    }
}

/// Whatever is to be added to `old` and taken out of it so that it becomes `new`. Chains stay.
pub(super) fn change(transaction: &mut Transaction<'_>, family: Family, old: &Contents, new: &Contents) {
    let layout = Layout::of(family);
    for (name, network) in new.networks.iter().filter(|(name, _)| !old.networks.contains_key(*name)) {
        network_chains(transaction, &layout, name, *network);
    }
    for set in Set::ALL {
        let of_set = |contents: &Contents, other: &Contents| -> Vec<(Vec<u8>, Target)> {
            let all = contents.elements.iter().filter(|((of, _), _)| *of == set);
            let changed = all.filter(|(key, target)| other.elements.get(*key) != Some(*target));
            changed.map(|((_, key), target)| (key.clone(), target.clone())).collect()
        };
        elements(transaction, family, DELSETELEM, set, &of_set(old, new));
        elements(transaction, family, NEWSETELEM, set, &of_set(new, old));
    }
}

fn network_chains(transaction: &mut Transaction<'_>, layout: &Layout, name: &str, network: Prefix) {
    let family = layout.family;
    let (inside, outside) = (rules::inside(name), rules::outside(name));
    chain(transaction, family, &inside);
    for source in [network, layout.loopback] {
        rule(transaction, family, &inside, |rule| {
            layout.is_in(rule, layout.source, source).masquerade();
        });
    }
    chain(transaction, family, &outside);
    for destination in [network, layout.many] {
        rule(transaction, family, &outside, |rule| {
            layout.is_in(rule, layout.destination, destination).accept();
        });
    }
    rule(transaction, family, &outside, |rule| {
        rule.masquerade();
    });
}

fn create_set(transaction: &mut Transaction<'_>, layout: &Layout, set: Set, id: u32) {
    let (types, length) = layout.key(set);
    transaction.push(NEWSET, CREATE, layout.family, |message| {
        message.text(2, set.name());
        message.be32(3, MAP);
        message.be32(4, concatenated(&types));
        message.be32(5, length);
        match set {
            Set::Ports | Set::PortsAt => {
                message.be32(6, concatenated(&[layout.kind, SERVICE[1]]));
                message.be32(7, layout.length + 4);
            }
            Set::Hairpin | Set::Masquerade => message.be32(6, VERDICTS),
        }
        message.be32(10, id);
    });
}

fn chain(transaction: &mut Transaction<'_>, family: Family, name: &str) {
    transaction.push(NEWCHAIN, CREATE, family, |chain| {
        chain.text(3, name);
    });
}

fn base_chain(transaction: &mut Transaction<'_>, family: Family, name: &str, kind: &str, hook: u32, priority: i32) {
    transaction.push(NEWCHAIN, CREATE, family, |chain| {
        chain.text(3, name);
        chain.nest(4, |place| {
            place.be32(1, hook);
            place.be32(2, priority.cast_unsigned());
        });
        chain.text(7, kind);
    });
}

fn rule(transaction: &mut Transaction<'_>, family: Family, chain: &str, body: impl FnOnce(&mut Rule<'_, '_>)) {
    transaction.push(NEWRULE, CREATE | APPEND, family, |message| {
        message.text(2, chain);
        message.nest(4, |list| body(&mut Rule::new(list)));
    });
}

fn elements(transaction: &mut Transaction<'_>, family: Family, kind: u16, set: Set, all: &[(Vec<u8>, Target)]) {
    let flags = if kind == NEWSETELEM { CREATE } else { 0 };
    for some in all.chunks(ELEMENTS) {
        transaction.push(kind, flags, family, |message| {
            message.text(2, set.name());
            message.nest(3, |list| {
                for (key, target) in some {
                    list.nest(1, |element| {
                        element.nest(1, |data| expression::value(data, key));
                        if kind == NEWSETELEM {
                            element.nest(2, |data| match target {
                                Target::To(bytes) => expression::value(data, bytes),
                                Target::Chain(chain) => expression::go_to(data, chain),
                            });
                        }
                    });
                }
            });
        });
    }
}
