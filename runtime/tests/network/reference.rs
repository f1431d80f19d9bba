//! A bridge with addresses from host-local: by the reference plugins as they are installed on most nodes, and by what is
//! built in. Every test runs with both.

use super::{
    node::{By, Node, addresses, inside, links, run, with_both},
    scripts::text,
};
use nodeagent_runtime::network::{PodNetwork, PortMapping};
use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    time::Duration,
};

const BRIDGE: &str = r#"{"type":"bridge","bridge":"br0","isGateway":true,"ipam":{"type":"host-local","dataDir":"DIR",
    "ranges":[[{"subnet":"10.88.7.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}"#;
const DUAL_STACK: &str = r#"{"type":"bridge","bridge":"br0","isGateway":true,"ipam":{"type":"host-local","dataDir":"DIR",
    "ranges":[[{"subnet":"10.88.7.0/24"}],[{"subnet":"fd00:88::/64"}]],
    "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
    {"type":"portmap","capabilities":{"portMappings":true},"snat":true}"#;
const SMALL: &str = r#"{"type":"bridge","bridge":"br0","ipam":{"type":"host-local","dataDir":"DIR",
    "ranges":[[{"subnet":"10.88.7.0/29"}]]}}"#;

/// Serves one greeting per connection inside the pod, and says on which port.
fn serve_in(pod: &PodNetwork, greeting: &'static str) -> u16 {
    let (send, receive) = mpsc::channel();
    inside(pod.netns.clone(), move || {
        let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
        send.send(listener.local_addr().unwrap().port()).unwrap();
        for stream in listener.incoming() {
            stream.unwrap().write_all(greeting.as_bytes()).unwrap();
        }
    });
    receive.recv().unwrap()
}

fn greeting_from(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_bridge_gives_a_pod_its_address_and_takes_it_back() {
    with_both(|by| async move {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let node = Node::new(by, version, BRIDGE);
            let pod = node.pod(&format!("v{}", version.replace('.', "")));
            let attachment = node.network.add(&pod).await.unwrap();
            assert_eq!(attachment.ips, ["10.88.7.2".parse::<IpAddr>().unwrap()]);
            assert_eq!(addresses(&pod, "eth0"), ["10.88.7.2/24"]);
            assert_eq!(node.addresses(), ["10.88.7.2"]);
            let port = serve_in(&pod, "hello from the pod");
            assert_eq!(greeting_from(SocketAddr::new(attachment.ips[0], port)), "hello from the pod");
            node.network.check(&pod).await.unwrap();

            node.network.del(&pod).await.unwrap();
            node.network.del(&pod).await.unwrap();
            node.network.settled().await;
            assert!(node.addresses().is_empty());
            assert!(!links().iter().any(|link| link.starts_with("veth")), "{:?}", links());
            run("ip", &["netns", "del", pod.netns.file_name().unwrap().to_str().unwrap()]);
        }
    });
}

#[test]
fn check_finds_what_someone_took_away() {
    with_both(|by| async move {
        let node = Node::new(by, "1.0.0", BRIDGE);
        let pod = node.pod("aa");
        node.network.add(&pod).await.unwrap();
        node.network.check(&pod).await.unwrap();
        run("ip", &["-n", "nodeagent-aa", "addr", "flush", "dev", "eth0"]);
        let error = node.network.check(&pod).await.unwrap_err();
        assert!(text(&error).starts_with("network pods: "), "{}", text(&error));
        assert!(text(&error).contains("CHECK: "), "{}", text(&error));
        node.network.del(&pod).await.unwrap();
    });
}

#[test]
fn a_namespace_that_is_gone_does_not_keep_addresses() {
    with_both(|by| async move {
        let node = Node::new(by, "1.0.0", BRIDGE);
        let pod = node.pod("aa");
        node.network.add(&pod).await.unwrap();
        run("ip", &["netns", "del", "nodeagent-aa"]);
        // the name without its mount, as a reboot leaves it
        std::fs::write(&pod.netns, "").unwrap();
        node.network.del(&pod).await.unwrap();
        node.network.settled().await;
        assert!(node.addresses().is_empty());

        let pod = node.pod("bb");
        node.network.add(&pod).await.unwrap();
        run("ip", &["netns", "del", "nodeagent-bb"]);
        node.network.gc(&[]).await.unwrap();
        node.network.settled().await;
        assert!(node.addresses().is_empty());
    });
}

#[test]
fn dual_stack_pods_are_reached_through_host_ports() {
    with_both(|by| async move {
        let node = Node::new(by, "1.0.0", DUAL_STACK);
        // stands for the machine's interface: kernels without dummy links have bridges
        run("ip", &["link", "add", "uplink", "type", "bridge"]);
        run("ip", &["addr", "add", "192.0.2.1/24", "dev", "uplink"]);
        run("ip", &["link", "set", "uplink", "up"]);
        let mut pod = node.pod("aa");
        let port = serve_in(&pod, "hello through a host port");
        pod.port_mappings =
            vec![PortMapping { host_port: 8080, container_port: port, protocol: "tcp".into(), host_ip: None }];
        let attachment = match node.network.add(&pod).await {
            Err(error) if text(&error).contains("iptables") || text(&error).contains("ip6tables") => {
                eprintln!("SKIPPED: portmap cannot work here: {}", text(&error));
                return;
            }
            other => other.unwrap(),
        };
        let ips = ["10.88.7.2".parse::<IpAddr>().unwrap(), "fd00:88::2".parse().unwrap()];
        assert_eq!(attachment.ips, ips);
        assert_eq!(addresses(&pod, "eth0"), ["10.88.7.2/24", "fd00:88::2/64"]);
        assert_eq!(greeting_from("192.0.2.1:8080".parse().unwrap()), "hello through a host port");
        node.network.del(&pod).await.unwrap();
        node.network.settled().await;
        assert!(node.addresses().is_empty());
        let refused = TcpStream::connect_timeout(&"192.0.2.1:8080".parse().unwrap(), Duration::from_secs(5));
        assert!(refused.is_err(), "the host port is gone");
    });
}

#[test]
fn a_full_pool_is_a_clear_error_and_deleted_pods_make_room() {
    with_both(|by| async move {
        let node = Node::new(by, "1.0.0", SMALL);
        let pods: Vec<_> = (0..6).map(|number| node.pod(&format!("p{number}"))).collect();
        let mut seen = HashSet::new();
        for pod in &pods[..5] {
            seen.insert(node.network.add(pod).await.unwrap().ips[0]);
        }
        assert_eq!(seen.len(), 5);
        let error = node.network.add(&pods[5]).await.unwrap_err();
        let words = match by {
            By::Executables => "no IP addresses available",
            By::Itself => "no address left in 10.88.7.1-10.88.7.6",
        };
        assert!(text(&error).contains(words), "{}", text(&error));
        assert_eq!(links().iter().filter(|link| link.starts_with("veth")).count(), 5, "nothing of the sixth is left");
        node.network.del(&pods[2]).await.unwrap();
        // finds the address that is on its way back
        node.network.add(&pods[5]).await.unwrap();
        node.network.gc(&["p5".into()]).await.unwrap();
        node.network.settled().await;
        assert_eq!(node.addresses().len(), 1);
    });
}

#[test]
fn many_pods_at_once_get_different_addresses() {
    with_both(|by| async move {
        let node = Node::new(by, "1.0.0", BRIDGE);
        let pods: Vec<_> = (0..12).map(|number| node.pod(&format!("p{number}"))).collect();
        let added = futures_util::future::join_all(pods.iter().map(|pod| node.network.add(pod))).await;
        let ips: HashSet<_> = added.into_iter().map(|added| added.unwrap().ips[0]).collect();
        assert_eq!(ips.len(), pods.len());
        let deleted = futures_util::future::join_all(pods.iter().map(|pod| node.network.del(pod))).await;
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
        node.network.settled().await;
        assert!(node.addresses().is_empty());
    });
}
