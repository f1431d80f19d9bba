//! What is accepted, and that everything else is left to the executables.

use super::*;
use crate::network::{
    conf::parse,
    pod::{Bandwidth, PortMapping},
};
use std::path::Path;

fn list(plugins: &str) -> ConfList {
    let text = format!(r#"{{"cniVersion":"1.0.0","name":"pods","plugins":[{plugins}]}}"#);
    parse(text.as_bytes(), Path::new("/c")).unwrap()
}

fn accepted(plugins: &str) -> Option<BridgeNetwork> {
    supported(&list(plugins), &PodNetwork::default())
}

fn with_ipam(ipam: &str) -> Option<BridgeNetwork> {
    accepted(&format!(r#"{{"type":"bridge","ipam":{{"type":"host-local",{ipam}}}}}"#))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn defaults_are_those_of_the_reference_plugins() {
    let network = with_ipam(r#""ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]]"#).unwrap();
    let v4 = Range { prefix: 24, first: ip("10.1.0.1"), last: ip("10.1.0.254"), gateway: ip("10.1.0.1") };
    let v6 = Range { prefix: 64, first: ip("fd00::1"), last: ip("fd00::ffff:ffff:ffff:ffff"), gateway: ip("fd00::1") };
    let expected = BridgeNetwork {
        bridge: "cni0".into(),
        mtu: None,
        hairpin: false,
        gateway: false,
        default_gateway: false,
        routes: vec![],
        pools: vec![vec![v4], vec![v6]],
        store: "/var/lib/cni/networks/pods".into(),
        masquerade: false,
        ports: vec![],
        snat: false,
    };
    assert_eq!(network, expected);
}

#[test]
fn what_is_written_is_taken() {
    let network = accepted(
        r#"{"type":"bridge","bridge":"br7","isDefaultGateway":true,"hairpinMode":true,"mtu":1400,"ipMasq":false,
        "ipam":{"type":"host-local","dataDir":"/d","subnet":"10.1.0.0/16","rangeStart":"10.1.2.0","rangeEnd":"10.1.2.9",
        "gateway":"10.1.255.254","routes":[{"dst":"0.0.0.0/0"},{"dst":"10.0.0.0/8","gw":"10.1.0.9"}]}},
        {"type":"portmap","capabilities":{"portMappings":true}}"#,
    )
    .unwrap();
    let range = Range { prefix: 16, first: ip("10.1.2.0"), last: ip("10.1.2.9"), gateway: ip("10.1.255.254") };
    assert_eq!(network.pools, [vec![range]]);
    assert_eq!((network.bridge.as_str(), network.mtu, network.hairpin), ("br7", Some(1400), true));
    assert!(network.gateway && network.default_gateway);
    assert_eq!(network.store, Path::new("/d/pods"));
    assert_eq!(network.routes[1].gateway, Some(ip("10.1.0.9")));
}

#[test]
fn whatever_is_not_known_is_left_to_the_executables() {
    let bridge = |keys: &str| {
        accepted(&format!(
            r#"{{"type":"bridge",{keys}"ipam":{{"type":"host-local","ranges":[[{{"subnet":"10.1.0.0/24"}}]]}}}}"#
        ))
    };
    assert!(bridge("").is_some());
    for keys in [
        r#""ipMasq":true,"ipMasqBackend":"iptables","#,
        r#""forceAddress":true,"#,
        r#""promiscMode":true,"#,
        r#""vlan":7,"#,
        r#""macspoofchk":true,"#,
        r#""dns":{"nameservers":["1.1.1.1"]},"#,
        r#""bridge":"much-too-long-a-name","#,
        r#""isGateway":"yes","#,
    ] {
        assert!(bridge(keys).is_none(), "{keys}");
    }
    for ipam in [
        r#""ranges":[]"#,
        r#""ranges":[[]]"#,
        r#""ranges":[[{"subnet":"10.1.0.0/31"}]]"#,
        r#""ranges":[[{"subnet":"10.1.0.1/24"}]]"#,
        r#""ranges":[[{"subnet":"10.1.0.0/24","rangeStart":"10.2.0.1"}]]"#,
        r#""ranges":[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.8"}]]"#,
        r#""ranges":[[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]]"#,
        r#""ranges":[[{"subnet":"10.1.0.0/24","future":1}]]"#,
        r#""ranges":[[{"subnet":"10.1.0.0/24"}]],"resolvConf":"/etc/resolv.conf""#,
        r#""ranges":[[{"subnet":"10.1.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0","mtu":1400}]"#,
    ] {
        assert!(with_ipam(ipam).is_none(), "{ipam}");
    }
    assert!(accepted(r#"{"type":"bridge","ipam":{"type":"dhcp"}}"#).is_none());
    assert!(accepted(r#"{"type":"calico"}"#).is_none());
    let simple = r#"{"type":"bridge","ipam":{"type":"host-local","subnet":"10.1.0.0/24"}}"#;
    assert!(accepted(simple).is_some());
    assert!(accepted(&format!(r#"{simple},{{"type":"bandwidth"}}"#)).is_none());
    assert!(accepted(&format!(r#"{simple},{simple}"#)).is_none());
}

#[test]
fn pods_that_ask_for_more_than_an_address_are_left_to_the_executables() {
    let plain = list(
        r#"{"type":"bridge","capabilities":{"ips":true,"mac":true},"ipam":{"type":"host-local","subnet":"10.1.0.0/24"}},
        {"type":"portmap","capabilities":{"portMappings":true}}"#,
    );
    let with_mac = PodNetwork { mac: Some("02:00:00:00:00:01".into()), ..PodNetwork::default() };
    let unused = Bandwidth { ingress_rate: 1, ingress_burst: 1, egress_rate: 1, egress_burst: 1 };
    let with_unused = PodNetwork { bandwidth: Some(unused), ..PodNetwork::default() };
    assert!(supported(&plain, &PodNetwork::default()).is_some());
    assert!(supported(&plain, &with_unused).is_some(), "no plugin would look at it");
    assert!(supported(&plain, &with_mac).is_none());
}

#[test]
fn masquerading_and_host_ports_are_built_in() {
    let bridge = r#"{"type":"bridge","ipMasq":true,"ipam":{"type":"host-local","subnet":"10.1.0.0/24"}}"#;
    assert!(accepted(bridge).unwrap().masquerade);
    let port =
        |protocol: &str| PortMapping { host_port: 80, container_port: 8080, protocol: protocol.into(), host_ip: None };
    let pod = |protocol| PodNetwork { port_mappings: vec![port(protocol)], ..PodNetwork::default() };
    let with = |portmap: &str| {
        list(&format!(r#"{bridge},{{"type":"portmap","capabilities":{{"portMappings":true}}{portmap}}}"#))
    };
    for (keys, snat) in [("", true), (r#","snat":false"#, false), (r#","snat":true,"backend":"nftables""#, true)] {
        let network = supported(&with(keys), &pod("sctp")).unwrap();
        assert_eq!((network.ports.as_slice(), network.snat), (&[port("sctp")][..], snat), "{keys}");
        assert!(is_built_in(&with(keys).plugins[1]), "{keys}");
    }
    for keys in [
        r#","markMasqBit":3"#,
        r#","externalSetMarkChain":"KUBE-MARK-MASQ""#,
        r#","conditionsV4":["!","-d","192.0.2.0/24"]"#,
        r#","backend":"iptables""#,
    ] {
        assert!(supported(&with(keys), &pod("tcp")).is_none(), "{keys}");
        assert!(!is_built_in(&with(keys).plugins[1]), "{keys}");
        assert!(supported(&with(keys), &PodNetwork::default()).is_some(), "{keys}: nothing to map");
    }
    assert!(supported(&with(""), &pod("icmp")).is_none());
    let deaf = list(&format!(r#"{bridge},{{"type":"portmap"}}"#));
    assert!(supported(&deaf, &pod("tcp")).unwrap().ports.is_empty(), "it would not be told of ports");
}
