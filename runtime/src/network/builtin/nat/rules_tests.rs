//! What claims come to.

use super::*;
use proptest::prelude::*;

fn prefix(text: &str) -> Prefix {
    let (ip, length) = text.split_once('/').unwrap();
    Prefix { ip: ip.parse().unwrap(), length: length.parse().unwrap() }
}

fn port(protocol: &str, host_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping {
        host_port,
        container_port: 80,
        protocol: protocol.into(),
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    }
}

fn claim(since: u64, addresses: &[&str], ports: Vec<PortMapping>) -> Claim {
    let addresses = addresses.iter().map(|text| prefix(text)).collect();
    Claim { since, addresses, masquerade: false, ports, snat: false }
}

fn of_v4(claims: &[(&str, Claim)]) -> Contents {
    let claims: BTreeMap<String, Claim> = claims.iter().map(|(name, claim)| ((*name).into(), claim.clone())).collect();
    contents(Family::V4, claims.iter())
}

#[test]
fn keys_are_as_the_kernel_compares_them() {
    let contents = of_v4(&[("a", claim(1, &["10.1.2.3/24"], vec![port("udp", 0x1234, None)]))]);
    let key = (Set::Ports, vec![17, 0, 0, 0, 0x12, 0x34, 0, 0]);
    assert_eq!(contents.elements, BTreeMap::from([(key, Target::To(vec![10, 1, 2, 3, 0, 80, 0, 0]))]));
    assert!(contents.networks.is_empty(), "no chain is needed");
}

#[test]
fn an_address_of_the_host_narrows_a_port_and_of_another_family_excludes_it() {
    let ports = vec![
        port("tcp", 1, Some("192.0.2.1")),
        port("tcp", 2, Some("2001:db8::1")),
        port("tcp", 3, Some("0.0.0.0")),
        port("tcp", 4, Some("::")),
    ];
    let contents = of_v4(&[("a", claim(1, &["10.1.2.3/24", "fd00::3/64"], ports))]);
    let keys: Vec<_> = contents.elements.into_keys().collect();
    let expected =
        [(Set::Ports, vec![6, 0, 0, 0, 0, 3, 0, 0]), (Set::PortsAt, vec![192, 0, 2, 1, 6, 0, 0, 0, 0, 1, 0, 0])];
    assert_eq!(keys, expected);
}

#[test]
fn masquerading_and_hidden_clients_have_a_chain_for_each_network() {
    let mut all = claim(1, &["10.1.2.3/20", "fd00::3/64"], vec![port("tcp", 1, None)]);
    all.masquerade = true;
    all.snat = true;
    let claims = BTreeMap::from([("a".to_owned(), all)]);
    let v4 = contents(Family::V4, claims.iter());
    assert_eq!(v4.networks, BTreeMap::from([("10.1.0.0-20".to_owned(), prefix("10.1.0.0/20"))]));
    assert_eq!(v4.elements[&(Set::Masquerade, vec![10, 1, 2, 3])], Target::Chain("outside-10.1.0.0-20".into()));
    let hairpin = (Set::Hairpin, vec![10, 1, 2, 3, 6, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(v4.elements[&hairpin], Target::Chain("inside-10.1.0.0-20".into()));
    let v6 = contents(Family::V6, claims.iter());
    assert_eq!(v6.networks.keys().collect::<Vec<_>>(), ["fd00__-64"], "no colon, which nft cannot read back");
}

#[test]
fn a_port_that_two_pods_want_is_the_earlier_ones_until_it_goes() {
    let early = ("z", claim(1, &["10.1.0.2/24"], vec![port("tcp", 80, None)]));
    let late = ("a", claim(2, &["10.1.0.3/24"], vec![port("tcp", 80, None)]));
    let target = |contents: Contents| contents.elements.into_values().next().unwrap();
    assert_eq!(target(of_v4(&[early.clone(), late.clone()])), Target::To(vec![10, 1, 0, 2, 0, 80, 0, 0]));
    assert_eq!(target(of_v4(&[late])), Target::To(vec![10, 1, 0, 3, 0, 80, 0, 0]));
}

#[test]
fn only_udp_ports_have_connections_to_forget() {
    let ports = vec![port("tcp", 1, None), port("udp", 2, None), port("sctp", 3, None)];
    let all = udp_ports(&claim(1, &["10.1.0.2/24", "fd00::2/64"], ports));
    assert_eq!(all, BTreeSet::from([("10.1.0.2".parse().unwrap(), 2), ("fd00::2".parse().unwrap(), 2)]));
}

proptest! {
    #[test]
    fn the_order_in_which_pods_are_met_does_not_matter(
        pods in prop::collection::vec((0_u64..4, 0_u8..20, 0_u16..6, any::<bool>()), 0..12),
    ) {
        let name = |index: usize| format!("pod-{index}");
        let claims: Vec<(String, Claim)> = pods.iter().enumerate().map(|(index, (since, host, number, snat))| {
            let mut claim = claim(*since, &[&format!("10.1.0.{host}/24")], vec![port("tcp", *number, None)]);
            claim.snat = *snat;
            (name(index), claim)
        }).collect();
        let forward = contents(Family::V4, claims.iter().map(|(name, claim)| (name, claim)));
        let backward = contents(Family::V4, claims.iter().rev().map(|(name, claim)| (name, claim)));
        prop_assert_eq!(&forward, &backward);
        // whatever leads to a chain finds it
        for target in forward.elements.values() {
            if let Target::Chain(chain) = target {
                prop_assert!(forward.networks.keys().any(|network| inside(network) == *chain));
            }
        }
    }
}
