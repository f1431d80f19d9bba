//! What is built in, compared with the reference plugins on the same configuration: links, addresses, routes, address
//! files, results, and what each makes of the other's work.

use super::node::{By, Node, links, run, with_both};
use nodeagent_runtime::network::PodNetwork;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::{Duration, Instant},
};

/// Interesting configurations of a bridge; `DIR` is the address store.
const CONFIGURATIONS: [&str; 5] = [
    r#"{"type":"bridge","bridge":"br0","ipam":{"type":"host-local","dataDir":"DIR","subnet":"10.77.0.0/16"}}"#,
    r#"{"type":"bridge","bridge":"br0","isGateway":true,"mtu":1400,"ipam":{"type":"host-local","dataDir":"DIR",
        "ranges":[[{"subnet":"10.77.0.0/24","rangeStart":"10.77.0.20","rangeEnd":"10.77.0.29"}]],
        "routes":[{"dst":"0.0.0.0/0"},{"dst":"198.51.100.0/24","gw":"10.77.0.7"}]}}"#,
    r#"{"type":"bridge","bridge":"br0","isDefaultGateway":true,"hairpinMode":true,"ipam":{"type":"host-local",
        "dataDir":"DIR","ranges":[[{"subnet":"10.77.0.0/24","gateway":"10.77.0.254"}]]}}"#,
    r#"{"type":"bridge","bridge":"br0","isGateway":true,"ipam":{"type":"host-local","dataDir":"DIR",
        "ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd00:77::/64"}]],
        "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},{"type":"portmap","capabilities":{"portMappings":true}}"#,
    r#"{"type":"bridge","bridge":"br0","isDefaultGateway":true,"ipam":{"type":"host-local","dataDir":"DIR",
        "ranges":[[{"subnet":"fd00:77::/64"}]]}}"#,
];

fn ip_json(arguments: &[&str]) -> Value {
    let text = run("ip", &[&["-j", "-d"], arguments].concat());
    serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
}

fn only(value: &Value, keys: &[&str]) -> Value {
    let keep = |key: &&str| Some(((*key).to_owned(), value.get(*key)?.clone()));
    Value::Object(keys.iter().filter_map(keep).collect())
}

/// Global addresses; those the kernel makes from hardware addresses differ in every run.
fn addresses(link: &Value) -> Vec<Value> {
    let all = link["addr_info"].as_array().unwrap();
    let global = all.iter().filter(|address| address["scope"] == "global");
    global.map(|address| only(address, &["family", "local", "prefixlen", "broadcast"])).collect()
}

fn routes(arguments: &[&str]) -> Vec<Value> {
    let keys = ["dst", "gateway", "dev", "scope", "protocol", "prefsrc", "type"];
    let mut routes: Vec<_> = ip_json(arguments).as_array().unwrap().iter().map(|route| only(route, &keys)).collect();
    // the kernel's own, for link-local and multicast
    routes.retain(|route| !route["dst"].as_str().unwrap().starts_with("fe80") && route["dst"] != "multicast");
    routes.sort_by_key(Value::to_string);
    routes
}

/// Everything about a pod's network that can be seen from outside.
fn seen(node: &Node, pod: &PodNetwork, result: &Value) -> Value {
    let name = pod.netns.file_name().unwrap().to_str().unwrap();
    let inside = &ip_json(&["-n", name, "addr", "show", "dev", "eth0"])[0];
    // carriers come up in the background, some time after the ADD
    let deadline = Instant::now() + Duration::from_secs(30);
    while ip_json(&["link", "show", "dev", "br0"])[0]["operstate"] != "UP" && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let bridge = &ip_json(&["addr", "show", "dev", "br0"])[0];
    let port_name = links().into_iter().find(|link| link.starts_with("veth")).unwrap();
    let port = &ip_json(&["link", "show", "dev", &port_name])[0];
    let sysctl = |key: &str| run("ip", &["netns", "exec", name, "cat", &format!("/proc/sys/net/{key}")]);
    json!({
        "eth0": only(inside, &["ifname", "mtu", "operstate", "link_type"]),
        "eth0 addresses": addresses(inside),
        "eth0 arp_notify": sysctl("ipv4/conf/eth0/arp_notify"),
        "routes": routes(&["-n", name, "-4", "route"]),
        "routes 6": routes(&["-n", name, "-6", "route"]),
        "bridge": only(bridge, &["mtu", "operstate", "flags", "link_type"]),
        "bridge addresses": addresses(bridge),
        "port": only(port, &["mtu", "master", "operstate"]),
        "hairpin": port["linkinfo"]["info_slave_data"]["hairpin"],
        "ip_forward": std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
        "store": node.store(),
        "result": anonymous(result, &port_name),
    })
}

/// A result without what is random in it. Checked against reality first.
fn anonymous(result: &Value, port: &str) -> Value {
    let mut result = result.clone();
    let interfaces = result["interfaces"].as_array_mut().unwrap();
    assert_eq!(interfaces[1]["name"], port);
    assert_eq!(interfaces[0]["mac"], ip_json(&["link", "show", "dev", "br0"])[0]["address"]);
    assert_eq!(interfaces[1]["mac"], ip_json(&["link", "show", "dev", port])[0]["address"]);
    for interface in interfaces {
        assert_eq!(interface["mac"].as_str().unwrap().len(), 17);
        interface["mac"] = Value::Null;
    }
    result["interfaces"][1]["name"] = Value::Null;
    result
}

#[test]
fn the_same_configuration_gives_the_same_network_and_the_same_result() {
    let all: Mutex<HashMap<(usize, &str), Vec<Value>>> = Mutex::default();
    for (index, configuration) in CONFIGURATIONS.iter().enumerate() {
        for version in ["0.3.1", "1.0.0"] {
            with_both(|by| {
                let all = &all;
                async move {
                    let node = Node::new(by, version, configuration);
                    let pod = node.pod("aa");
                    let attachment = node.network.add(&pod).await.unwrap();
                    let seen = seen(&node, &pod, &attachment.result);
                    all.lock().unwrap().entry((index, version)).or_default().push(seen);
                    node.network.check(&pod).await.unwrap();
                    node.network.del(&pod).await.unwrap();
                    node.network.settled().await;
                    let last: BTreeMap<_, _> =
                        node.store().into_iter().filter(|(name, _)| !name.starts_with("last_reserved_ip.")).collect();
                    assert_eq!(last, BTreeMap::from([("lock".to_owned(), String::new())]));
                    assert!(!links().iter().any(|link| link.starts_with("veth")));
                }
            });
        }
    }
    for (configuration, seen) in all.into_inner().unwrap() {
        let [executables, itself] = &seen[..] else { panic!("{configuration:?}") };
        for key in executables.as_object().unwrap().keys() {
            assert_eq!(itself[key], executables[key], "{key} of {configuration:?}");
        }
    }
}

#[test]
fn both_share_one_store_and_each_pod_is_deleted_by_whoever_added_it() {
    with_both(|first| async move {
        let second = if first == By::Itself { By::Executables } else { By::Itself };
        let node = Node::new(first, "1.0.0", CONFIGURATIONS[3]);
        let (a, b, c) = (node.pod("aa"), node.pod("bb"), node.pod("cc"));
        let changed = node.with(second);
        let mut ips = Vec::new();
        ips.push(node.network.add(&a).await.unwrap().ips);
        ips.push(changed.add(&b).await.unwrap().ips);
        ips.push(node.network.add(&c).await.unwrap().ips);
        let expected: Vec<Vec<std::net::IpAddr>> = (2..5)
            .map(|number| vec![[10, 77, 0, number].into(), format!("fd00:77::{number}").parse().unwrap()])
            .collect();
        assert_eq!(ips, expected);
        // the setting was changed and the daemon started anew
        changed.check(&a).await.unwrap();
        changed.del(&a).await.unwrap();
        changed.gc(&["cc".to_owned()]).await.unwrap();
        changed.settled().await;
        assert_eq!(node.addresses(), ["10.77.0.4", "fd00:77::4"]);
        node.network.del(&c).await.unwrap();
        node.network.settled().await;
        assert!(node.addresses().is_empty());
        assert!(!links().iter().any(|link| link.starts_with("veth")));
    });
}
