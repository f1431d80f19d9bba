//! Host ports and masquerading: by the reference plugins `portmap` and `bridge`, and by what is built in. Both are probed
//! from everywhere, and must give the same answers.

use super::{
    node::{By, Node, inside, run, with_both},
    scripts::text,
};
use nodeagent_runtime::network::{PodNetwork, PortMapping};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

const LIST: &str = r#"{"type":"bridge","bridge":"br0","isGateway":true,"ipMasq":true,"hairpinMode":true,
    "ipam":{"type":"host-local","dataDir":"DIR","ranges":[[{"subnet":"10.88.7.0/24"}],[{"subnet":"fd00:88::/64"}]],
    "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
    {"type":"portmap","capabilities":{"portMappings":true}}"#;
/// Longer than any answer takes, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(10);

fn world() -> PathBuf {
    "/run/netns/world".into()
}

/// The node's addresses 192.0.2.1, 192.0.2.2 and 2001:db8::1 on a link to another namespace, which has 192.0.2.9 and
/// 2001:db8::9.
fn connect_world() {
    run("ip", &["netns", "add", "world"]);
    run("ip", &["link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", "world"]);
    for (address, link) in [("192.0.2.1/24", "uplink"), ("192.0.2.2/24", "uplink"), ("2001:db8::1/64", "uplink")] {
        run("ip", &["addr", "add", address, "dev", link, "nodad"]);
    }
    run("ip", &["link", "set", "uplink", "up"]);
    for arguments in [
        ["addr", "add", "192.0.2.9/24", "dev", "eth0"].as_slice(),
        &["addr", "add", "2001:db8::9/64", "dev", "eth0", "nodad"],
        &["link", "set", "lo", "up"],
        &["link", "set", "eth0", "up"],
    ] {
        run("ip", &[&["-n", "world"], arguments].concat());
    }
}

/// Tells each client of TCP who it is, as seen from here.
fn serve_tcp(netns: PathBuf, name: &'static str) -> u16 {
    let (send, receive) = mpsc::channel();
    inside(netns, move || {
        let listener = TcpListener::bind("[::]:0").unwrap();
        send.send(listener.local_addr().unwrap().port()).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            // a client that has gone is no business of the others
            let _ = write!(stream, "{name} sees {peer}");
        }
    });
    receive.recv().unwrap()
}

fn serve_udp(netns: PathBuf, name: &'static str) -> u16 {
    let (send, receive) = mpsc::channel();
    inside(netns, move || {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        send.send(socket.local_addr().unwrap().port()).unwrap();
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} sees {}", peer.ip().to_canonical()).as_bytes(), peer);
        }
    });
    receive.recv().unwrap()
}

fn ask_tcp(netns: PathBuf, address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let ask = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    inside(netns, ask).join().unwrap().unwrap_or_else(|error| error.kind().to_string())
}

fn ask_udp_by(socket: &UdpSocket) -> String {
    let ask = || -> std::io::Result<String> {
        socket.send(b"who am I")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    ask().unwrap_or_else(|error| error.kind().to_string())
}

fn udp_client(netns: PathBuf, address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().unwrap();
    let connect = move || {
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(address).unwrap();
        socket
    };
    inside(netns, connect).join().unwrap()
}

fn ask_udp(netns: PathBuf, address: &str) -> String {
    ask_udp_by(&udp_client(netns, address))
}

fn here() -> PathBuf {
    format!("/proc/self/task/{}/ns/net", nix::unistd::gettid()).into()
}

fn mapping(protocol: &str, host_port: u16, container_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping { host_port, container_port, protocol: protocol.into(), host_ip: host_ip.map(|ip| ip.parse().unwrap()) }
}

/// A pod that serves on TCP 8080, on TCP 8081 of one address, and on UDP 8082 of the host.
fn serving_pod(node: &Node, id: &str, name: &'static str) -> PodNetwork {
    let mut pod = node.pod(id);
    run("ip", &["-n", &format!("nodeagent-{id}"), "link", "set", "lo", "up"]);
    let tcp = serve_tcp(pod.netns.clone(), name);
    let udp = serve_udp(pod.netns.clone(), name);
    pod.port_mappings = vec![
        mapping("tcp", 8080, tcp, None),
        mapping("tcp", 8081, tcp, Some("192.0.2.2")),
        mapping("udp", 8082, udp, None),
    ];
    pod
}

/// The reference plugins need iptables, which not every kernel has.
async fn added(node: &Node, by: By, pod: &PodNetwork) -> bool {
    match node.network.add(pod).await {
        Err(error) if by == By::Executables && text(&error).contains("iptables") => {
            eprintln!("SKIPPED: the reference plugins cannot work here: {}", text(&error));
            false
        }
        other => {
            other.unwrap();
            true
        }
    }
}

#[test]
fn probes_from_everywhere_get_the_same_answers_from_both() {
    let all: Mutex<Vec<BTreeMap<&str, String>>> = Mutex::default();
    with_both(|by| {
        let all = &all;
        async move {
            let node = Node::new(by, "1.0.0", LIST);
            connect_world();
            let outside = [serve_tcp(world(), "world"), serve_udp(world(), "world")];
            let pod = serving_pod(&node, "aa", "pod");
            if !added(&node, by, &pod).await {
                return;
            }
            let other = node.pod("bb");
            node.network.add(&other).await.unwrap();
            let (inner, neighbour) = (pod.netns.clone(), other.netns.clone());
            let mut answers = BTreeMap::from([
                ("world to host port", ask_tcp(world(), "192.0.2.1:8080")),
                ("world to host port 6", ask_tcp(world(), "[2001:db8::1]:8080")),
                ("world to second address", ask_tcp(world(), "192.0.2.2:8080")),
                ("world to host port, udp", ask_udp(world(), "192.0.2.1:8082")),
                ("world to host port 6, udp", ask_udp(world(), "[2001:db8::1]:8082")),
                ("world to the port's address", ask_tcp(world(), "192.0.2.2:8081")),
                ("world to another address", ask_tcp(world(), "192.0.2.1:8081")),
                ("world to another protocol", ask_tcp(world(), "192.0.2.1:8082")),
                ("host to localhost", ask_tcp(here(), "127.0.0.1:8080")),
                ("host to localhost, udp", ask_udp(here(), "127.0.0.1:8082")),
                ("host to itself", ask_tcp(here(), "192.0.2.1:8080")),
                ("host to the port's address", ask_tcp(here(), "192.0.2.2:8081")),
                ("hairpin", ask_tcp(inner.clone(), "192.0.2.1:8080")),
                ("hairpin 6", ask_tcp(inner.clone(), "[2001:db8::1]:8080")),
                ("hairpin, udp", ask_udp(inner.clone(), "192.0.2.1:8082")),
                ("neighbour to host port", ask_tcp(neighbour.clone(), "192.0.2.1:8080")),
                ("neighbour to pod", ask_tcp(neighbour, &format!("10.88.7.2:{}", pod.port_mappings[0].container_port))),
                ("pod to world", ask_tcp(inner.clone(), &format!("192.0.2.9:{}", outside[0]))),
                ("pod to world 6", ask_tcp(inner.clone(), &format!("[2001:db8::9]:{}", outside[0]))),
                ("pod to world, udp", ask_udp(inner, &format!("192.0.2.9:{}", outside[1]))),
            ]);
            if by == By::Itself {
                // the reference looks for IPv4 rules in the IPv6 table
                node.network.check(&pod).await.unwrap();
            }
            node.network.del(&pod).await.unwrap();
            answers.insert("after DEL", ask_tcp(world(), "192.0.2.1:8080"));
            answers.insert("after DEL, localhost", ask_tcp(here(), "127.0.0.1:8080"));
            node.network.settled().await;
            all.lock().unwrap().push(answers);
        }
    });
    let all = all.into_inner().unwrap();
    for answers in &all {
        let expected = [
            ("world to host port", "pod sees 192.0.2.9"),
            ("world to host port 6", "pod sees 2001:db8::9"),
            ("world to host port, udp", "pod sees 192.0.2.9"),
            ("world to the port's address", "pod sees 192.0.2.9"),
            ("world to another address", "connection refused"),
            ("host to localhost", "pod sees 10.88.7.1"),
            ("hairpin", "pod sees 10.88.7.1"),
            ("neighbour to pod", "pod sees 10.88.7.3"),
            ("pod to world", "world sees 192.0.2.1"),
            ("pod to world 6", "world sees 2001:db8::1"),
            ("after DEL", "connection refused"),
        ];
        for (probe, answer) in expected {
            assert_eq!(answers[probe], answer, "{probe}");
        }
    }
    if let [executables, itself] = &all[..] {
        assert_eq!(itself, executables);
    }
}

#[test]
fn a_udp_client_that_goes_on_asking_meets_the_pod_that_comes_and_its_successor() {
    with_both(|by| async move {
        let node = Node::new(by, "1.0.0", LIST);
        connect_world();
        for address in ["192.0.2.1:8082", "[2001:db8::1]:8082"] {
            let (first, second) = match address.starts_with('[') {
                false => ("a4", "b4"),
                true => ("a6", "b6"),
            };
            let client = udp_client(world(), address);
            assert_eq!(ask_udp_by(&client), "connection refused", "nobody is there yet");
            let pod = serving_pod(&node, first, "the first");
            if !added(&node, by, &pod).await {
                return;
            }
            assert!(ask_udp_by(&client).starts_with("the first sees"), "{by:?} {address}");
            node.network.del(&pod).await.unwrap();
            let pod = serving_pod(&node, second, "the second");
            node.network.add(&pod).await.unwrap();
            assert!(ask_udp_by(&client).starts_with("the second sees"), "{by:?} {address}");
            node.network.del(&pod).await.unwrap();
        }
        node.network.settled().await;
    });
}

/// Only what is built in: the reference plugins forget.
fn built_in<F>(test: impl Fn(Node) -> F + Sync)
where
    F: Future<Output = ()>,
{
    let test = &test;
    with_both(|by| async move {
        if by == By::Itself {
            let node = Node::new(by, "1.0.0", LIST);
            connect_world();
            test(node).await;
        }
    });
}

/// Waits for an answer that somebody else's work brings about.
fn until(probe: impl Fn() -> String, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = probe();
        if answer == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{answer} is not {wanted}");
    }
}

#[test]
fn host_ports_that_others_flush_come_back() {
    built_in(|node| async move {
        let pod = serving_pod(&node, "aa", "pod");
        node.network.add(&pod).await.unwrap();
        let mut flushes = [
            ["flush", "ruleset"].as_slice(),
            &["delete", "table", "ip", "nodeagent"],
            &["flush", "table", "ip", "nodeagent"],
            &["flush", "map", "ip", "nodeagent", "hostports"],
        ]
        .into_iter();
        for flush in flushes.by_ref() {
            run("nft", flush);
            // the watcher is a task of this very thread
            let back = async {
                while ask_tcp(world(), "192.0.2.1:8080") != "pod sees 192.0.2.9" {
                    tokio::task::yield_now().await;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), back).await.unwrap_or_else(|_| panic!("{flush:?}"));
        }
        // a pod that comes while nobody looks finds the tables gone, and brings everybody's back
        run("nft", &["flush", "ruleset"]);
        let other = node.pod("bb");
        node.network.add(&other).await.unwrap();
        until(|| ask_tcp(world(), "192.0.2.1:8080"), "pod sees 192.0.2.9");
    });
}

#[test]
fn check_finds_a_lost_host_port() {
    built_in(|node| async move {
        let pod = serving_pod(&node, "aa", "pod");
        node.network.add(&pod).await.unwrap();
        node.network.check(&pod).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let error = loop {
            run("nft", &["flush", "map", "ip", "nodeagent", "hostports-at"]);
            // the watcher may have brought it back before anybody looked
            match node.network.check(&pod).await {
                Err(error) => break error,
                Ok(()) => assert!(Instant::now() < deadline, "the loss is never seen"),
            }
        };
        assert!(text(&error).contains("hostports-at"), "{}", text(&error));
    });
}

#[test]
fn a_daemon_that_starts_brings_host_ports_back_and_sweeps_those_of_unknown_pods() {
    built_in(|mut node| async move {
        let (mut pod, mut lost) = (serving_pod(&node, "aa", "pod"), serving_pod(&node, "bb", "lost"));
        pod.port_mappings.truncate(1);
        lost.port_mappings.truncate(1);
        lost.port_mappings[0].host_port = 8090;
        node.network.add(&pod).await.unwrap();
        node.network.add(&lost).await.unwrap();
        assert_eq!(ask_tcp(world(), "192.0.2.1:8090"), "lost sees 192.0.2.9");
        // whatever is in the tables, as a crash may leave it
        run("nft", &["add", "element", "ip", "nodeagent", "hostports", "{ tcp . 8099 : 10.88.7.99 . 80 }"]);
        run("nft", &["flush", "map", "ip", "nodeagent", "masqueraded"]);
        // the daemon that made them is gone, and so is whoever would bring them back
        node.network = node.with(By::Itself);
        node.network.gc(&["aa".to_owned()]).await.unwrap();
        assert_eq!(ask_tcp(world(), "192.0.2.1:8080"), "pod sees 192.0.2.9");
        assert_eq!(ask_tcp(world(), "192.0.2.1:8090"), "connection refused");
        assert!(!run("nft", &["list", "ruleset"]).contains("10.88.7.99"));
        // built in is off now: DEL is done by whatever did ADD
        node.network.settled().await;
        node.network = node.with(By::Executables);
        node.network.del(&pod).await.unwrap();
        assert_eq!(ask_tcp(world(), "192.0.2.1:8080"), "connection refused");
        node.network.settled().await;
        // and nothing is left when nobody has host ports any more
        node.network = node.with(By::Itself);
        node.network.gc(&[]).await.unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn a_host_port_that_two_pods_want_passes_on_when_the_first_goes() {
    built_in(|node| async move {
        let (first, second) = (serving_pod(&node, "bb", "first"), serving_pod(&node, "aa", "second"));
        node.network.add(&first).await.unwrap();
        node.network.add(&second).await.unwrap();
        assert_eq!(ask_tcp(world(), "192.0.2.1:8080"), "first sees 192.0.2.9");
        node.network.check(&second).await.unwrap();
        node.network.del(&first).await.unwrap();
        assert_eq!(ask_tcp(world(), "192.0.2.1:8080"), "second sees 192.0.2.9");
    });
}

#[test]
fn loopback_addresses_from_outside_do_not_reach_the_host() {
    built_in(|node| async move {
        let pod = serving_pod(&node, "aa", "pod");
        node.network.add(&pod).await.unwrap();
        let secret = serve_tcp(here(), "the host's own");
        assert_eq!(ask_tcp(here(), &format!("127.0.0.1:{secret}")), "the host's own sees 127.0.0.1");
        // a pod that sends 127.0.0.1 over the bridge, where host ports made the kernel accept such addresses
        for arguments in [
            ["addr", "del", "127.0.0.1/8", "dev", "lo"].as_slice(),
            &["route", "add", "127.0.0.1/32", "via", "10.88.7.1", "dev", "eth0"],
        ] {
            run("ip", &[&["-n", "nodeagent-aa"], arguments].concat());
        }
        run("ip", &["netns", "exec", "nodeagent-aa", "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"]);
        let netns = pod.netns.clone();
        let attack = inside(netns, move || {
            TcpStream::connect_timeout(&format!("127.0.0.1:{secret}").parse().unwrap(), Duration::from_secs(2)).is_ok()
        });
        assert!(!attack.join().unwrap());
    });
}
