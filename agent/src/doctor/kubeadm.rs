//! kubeadm's preflight checks, by its names: what `kubeadm init` and `kubeadm join` of the wanted version will say.
//!
//! Read from kubeadm's preflight package of 1.18 to 1.37; a check that came or went is asked for the minors that have it.

use std::net::IpAddr;

use super::beyond::bridged;
use super::facts::PATHS;
use super::{Check, Fix, Subject, Verdict, system};
use crate::config::settings::{Role, RuntimeKind};
use crate::plan::ResourceId;

/// A control plane's, in the order of kubeadm.
const CONTROL_PLANE_PORTS: [(u16, &str); 5] = [
    (6443, "the API server"),
    (10259, "the scheduler"),
    (10257, "the controller manager"),
    (2379, "etcd's clients"),
    (2380, "etcd's peers"),
];

/// Programs that must be there, and the package on EL.
const MANDATORY: [(&str, &str); 4] =
    [("ip", "iproute"), ("iptables", "iptables-nft"), ("mount", "util-linux"), ("nsenter", "util-linux")];

/// Programs that are only missed by some, the package, and the first minor that does not ask any more.
const OPTIONAL: [(&str, &str, u32); 6] = [
    ("crictl", "cri-tools", 30),
    ("ebtables", "iptables-nft", 32),
    ("ethtool", "ethtool", u32::MAX),
    ("socat", "socat", 32),
    ("tc", "iproute-tc", u32::MAX),
    ("touch", "coreutils", u32::MAX),
];

/// All of them for this node's role.
pub fn checks(subject: &Subject<'_>) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |name: &str, verdict: Verdict| checks.push(Check { name: name.to_owned(), verdict });
    let control_plane = subject.settings.node.role == Role::ControlPlane;
    add("IsPrivilegedUser", privileged(subject));
    if control_plane {
        add("NumCPU", processors(subject));
        add("Mem", memory(subject));
        add("KubernetesVersion", kubernetes_version(subject));
        for (port, whose) in CONTROL_PLANE_PORTS {
            add(&format!("Port-{port}"), port_is_free(subject, port, whose));
        }
        for path in PATHS.iter().filter(|path| path.ends_with(".yaml")) {
            add(&available("FileAvailable", path), file_is_not_there(subject, path));
        }
        add("DirAvailable--var-lib-etcd", file_is_not_there(subject, "/var/lib/etcd"));
        add("ImagePull", Verdict::skipped("pulls; ask for it with: kubeadm config images pull"));
        for name in ["ExternalEtcdVersion", "ExternalEtcdClientCertificates"] {
            add(name, Verdict::skipped("only with an etcd outside of the cluster"));
        }
        add("HTTPProxyCIDR", proxied_networks(subject));
    } else {
        add("DirAvailable--etc-kubernetes-manifests", Verdict::skipped("no longer checked: static pods are allowed"));
    }
    add("Firewalld", firewalld(subject));
    for path in ["/etc/kubernetes/kubelet.conf", "/etc/kubernetes/bootstrap-kubelet.conf", "/etc/kubernetes/pki/ca.crt"]
    {
        add(&available("FileAvailable", path), file_is_not_there(subject, path));
    }
    add("CRI", runtime(subject));
    add("Swap", swap(subject));
    for (program, package) in MANDATORY {
        add(&format!("FileExisting-{program}"), program_is_there(subject, program, package, true));
    }
    let minor = subject.settings.kubernetes.as_ref().map_or(u32::MAX, |it| it.version.minor());
    if minor < 32 {
        add("FileExisting-conntrack", program_is_there(subject, "conntrack", "conntrack-tools", true));
    }
    for (program, package, gone) in OPTIONAL {
        if minor < gone {
            add(&format!("FileExisting-{program}"), program_is_there(subject, program, package, false));
        }
    }
    add("SystemVerification", system::verification(subject));
    add("Hostname", hostname(subject));
    add("KubeletVersion", kubelet_version(subject));
    add("Service-Kubelet", kubelet_service(subject));
    add("Port-10250", port_is_free(subject, 10250, "the kubelet"));
    add("HTTPProxy", proxy(subject));
    add(
        "FileContent--proc-sys-net-ipv4-ip_forward",
        is_one(subject, "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
    );
    add("FileContent--proc-sys-net-ipv6-conf-default-forwarding", ipv6_forwarding(subject));
    // from 1.30 on nobody but us looks
    if minor < 30 {
        add("FileContent--proc-sys-net-bridge-bridge-nf-call-iptables", bridged(subject.facts, "iptables"));
        let ip6 = if wants_ipv6(subject) { bridged(subject.facts, "ip6tables") } else { no_ipv6() };
        add("FileContent--proc-sys-net-bridge-bridge-nf-call-ip6tables", ip6);
    }
    if minor >= 35 {
        add("ContainerRuntimeVersion", runtime_version(subject));
    }
    checks
}

/// `FileAvailable--etc-kubernetes-kubelet.conf`
fn available(kind: &str, path: &str) -> String {
    format!("{kind}-{}", path.replace('/', "-"))
}

fn by_hand(text: impl Into<String>) -> Fix {
    Fix::ByHand(text.into())
}

fn privileged(subject: &Subject<'_>) -> Verdict {
    match subject.facts.is_root {
        true => Verdict::ok("runs as root"),
        false => Verdict::error("not run as root", by_hand("run it with sudo")),
    }
}

fn processors(subject: &Subject<'_>) -> Verdict {
    match subject.facts.processors() {
        Some(count) if count < 2 => Verdict::error(
            format!("{count} processor, a control plane needs 2"),
            by_hand("give the machine another one"),
        ),
        Some(count) => Verdict::ok(format!("{count} processors")),
        None => Verdict::skipped("/proc/cpuinfo does not say"),
    }
}

fn memory(subject: &Subject<'_>) -> Verdict {
    match subject.facts.memory_mb() {
        Some(mb) if mb < 1700 => {
            Verdict::error(format!("{mb} MB of memory, a control plane needs 1700"), by_hand("give the machine more"))
        }
        Some(mb) => Verdict::ok(format!("{mb} MB of memory")),
        None => Verdict::skipped("/proc/meminfo does not say"),
    }
}

/// `v1.36.2` → 36
fn minor_of(version: &str) -> Option<u32> {
    version.trim_start_matches('v').split('.').nth(1)?.parse().ok()
}

fn kubernetes_version(subject: &Subject<'_>) -> Verdict {
    let Some(kubernetes) = &subject.settings.kubernetes else {
        return Verdict::skipped("the config has no kubernetes.version");
    };
    let wanted = kubernetes.version.minor();
    match subject.facts.kubeadm_version.as_deref().map(|text| (text, minor_of(text))) {
        None => Verdict::skipped("kubeadm is not installed"),
        Some((_, Some(minor))) if wanted <= minor && wanted + 1 >= minor => {
            Verdict::ok(format!("kubeadm 1.{minor} sets up 1.{wanted}"))
        }
        Some((text, _)) => Verdict::error(
            format!("kubeadm {text} does not set up Kubernetes 1.{wanted}"),
            Fix::Resources(vec![ResourceId::new("package", "kubernetes")], "install kubeadm of that minor".to_owned()),
        ),
    }
}

fn kubelet_version(subject: &Subject<'_>) -> Verdict {
    let Some(kubernetes) = &subject.settings.kubernetes else {
        return Verdict::skipped("the config has no kubernetes.version");
    };
    let wanted = kubernetes.version.minor();
    let fix = Fix::Resources(vec![ResourceId::new("package", "kubernetes")], format!("install kubelet 1.{wanted}"));
    match subject.facts.kubelet_version.as_deref().map(|text| (text, minor_of(text))) {
        None => Verdict::error("the kubelet is not installed", fix),
        // a control plane serves kubelets up to three minors older, and none that is newer
        Some((_, Some(minor))) if minor <= wanted && minor + 3 >= wanted => Verdict::ok(format!("kubelet 1.{minor}")),
        Some((text, _)) => Verdict::error(format!("kubelet {text} does not fit Kubernetes 1.{wanted}"), fix),
    }
}

fn port_is_free(subject: &Subject<'_>, port: u16, whose: &str) -> Verdict {
    match (subject.facts.listens(port), subject.facts.joined() || subject.facts.unit("kubelet.service").active) {
        (false, _) => Verdict::ok(format!("{port}/tcp is free")),
        // what kubeadm set up is what listens
        (true, true) => Verdict::ok(format!("{port}/tcp is in use, as it should be by {whose}")),
        (true, false) => Verdict::error(
            format!("{port}/tcp is in use, and {whose} needs it"),
            by_hand(format!("see who has it: ss -ltnp 'sport = :{port}'")),
        ),
    }
}

fn file_is_not_there(subject: &Subject<'_>, path: &str) -> Verdict {
    match (subject.facts.paths.contains(path), subject.facts.joined()) {
        (false, _) => Verdict::ok(format!("{path} is not there yet")),
        (true, true) => Verdict::ok(format!("{path} is there: this node has joined")),
        (true, false) => Verdict::error(
            format!("{path} is left from an earlier cluster"),
            by_hand("kubeadm reset, or `agent reset` if this node should forget all of it"),
        ),
    }
}

fn runtime(subject: &Subject<'_>) -> Verdict {
    let (socket, unit) = (subject.settings.runtime.socket.as_str(), subject.settings.runtime.kind.unit());
    match subject.facts.cri_answers {
        true => Verdict::ok(format!("answers on {socket}")),
        false => Verdict::error(
            format!("nothing answers on {socket}"),
            Fix::Resources(vec![ResourceId::new("unit", unit)], format!("journalctl -u {unit} says why")),
        ),
    }
}

fn swap(subject: &Subject<'_>) -> Verdict {
    use crate::config::settings::SwapPolicy;
    let swaps = subject.facts.swaps();
    match (swaps.as_slice(), subject.settings.swap) {
        ([], _) => Verdict::ok("no swap"),
        (_, SwapPolicy::Limited) => Verdict::ok(format!("swap on {}, limited for pods", swaps.join(", "))),
        _ => Verdict::warning(
            format!("swap is on: {}", swaps.join(", ")),
            Fix::Resources(vec![ResourceId::single("swap")], "swap.policy = \"off\", or \"limited\"".to_owned()),
        ),
    }
}

fn program_is_there(subject: &Subject<'_>, program: &str, package: &str, mandatory: bool) -> Verdict {
    if subject.facts.programs.contains(program) {
        return Verdict::ok(format!("{program} is installed"));
    }
    let fix = by_hand(format!("add \"{package}\" to packages.install"));
    match mandatory {
        true => Verdict::error(format!("{program} is not in PATH"), fix),
        false => Verdict::warning(format!("{program} is not in PATH"), fix),
    }
}

fn hostname(subject: &Subject<'_>) -> Verdict {
    let name = &subject.facts.hostname;
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        let fix = by_hand("give node.name, or a host name of lower-case letters, digits and dashes");
        return Verdict::error(format!("{name:?} cannot be the name of a node"), fix);
    }
    match subject.facts.resolves {
        true => Verdict::ok(format!("{name} resolves")),
        false => Verdict::warning(
            format!("{name} does not resolve"),
            by_hand(format!("add it to DNS, or a line with {name} to /etc/hosts")),
        ),
    }
}

fn kubelet_service(subject: &Subject<'_>) -> Verdict {
    let unit = subject.facts.unit(crate::resource::unit::KUBELET);
    let fix = Fix::Resources(
        vec![ResourceId::new("unit", crate::resource::unit::KUBELET)],
        "systemctl enable kubelet.service".to_owned(),
    );
    match unit {
        _ if !unit.exists => Verdict::error("there is no kubelet.service", fix),
        _ if !unit.enabled => Verdict::warning("kubelet.service does not start at boot", fix),
        _ => Verdict::ok("starts at boot"),
    }
}

fn firewalld(subject: &Subject<'_>) -> Verdict {
    match subject.facts.unit("firewalld.service").active {
        false => Verdict::ok("not running"),
        true => {
            let ports = if subject.settings.node.role == Role::ControlPlane { "6443 and 10250" } else { "10250" };
            Verdict::warning(
                format!("firewalld is running; see that the ports {ports} and the pod network pass"),
                Fix::Resources(vec![ResourceId::single("firewall")], "firewall.mode = \"manage\"".to_owned()),
            )
        }
    }
}

fn proxy(subject: &Subject<'_>) -> Verdict {
    match &subject.facts.proxy {
        None => Verdict::ok("no proxy is set"),
        Some((proxy, except)) if !except.is_empty() => Verdict::ok(format!(
            "{proxy} is used but for {except}; the API server and the service network must be in there"
        )),
        Some((proxy, _)) => Verdict::warning(
            format!("connections to the API server would go through the proxy {proxy}"),
            by_hand("add its address, the pod and the service network to NO_PROXY"),
        ),
    }
}

fn is_one(subject: &Subject<'_>, path: &str, key: &str) -> Verdict {
    match subject.facts.text(path).map(str::trim) {
        Some("1") => Verdict::ok(format!("{key} is 1")),
        other => Verdict::error(
            format!("{key} is {}, not 1", other.unwrap_or("not there")),
            Fix::Resources(vec![ResourceId::new("sysctl", key)], format!("kernel.sysctl.\"{key}\" = 1")),
        ),
    }
}

/// Only a cluster with IPv6 needs it, which the host alone does not know.
fn ipv6_forwarding(subject: &Subject<'_>) -> Verdict {
    match wants_ipv6(subject) {
        true => is_one(subject, "/proc/sys/net/ipv6/conf/default/forwarding", IPV6_FORWARDING),
        false => no_ipv6(),
    }
}

const IPV6_FORWARDING: &str = "net.ipv6.conf.default.forwarding";

fn wants_ipv6(subject: &Subject<'_>) -> bool {
    let asked = subject.settings.kernel.sysctl.iter().any(|(name, _)| name.as_str() == IPV6_FORWARDING);
    asked || subject.settings.node.ip.is_some_and(|ip| ip.is_ipv6())
}

fn no_ipv6() -> Verdict {
    Verdict::skipped("only for clusters with IPv6")
}

/// kubeadm asks whether the first address of each network of the cluster is reached past the proxy.
fn proxied_networks(subject: &Subject<'_>) -> Verdict {
    let init = subject.settings.init.as_ref();
    let given =
        init.into_iter().flat_map(|init| init.pod_cidr.iter().chain(&init.service_cidr)).map(|cidr| cidr.as_str());
    let networks: Vec<&str> =
        given.chain(subject.settings.host.firewall.sources.iter().map(|cidr| cidr.as_str())).collect();
    match &subject.facts.proxy {
        None => Verdict::ok("no proxy is set"),
        Some(_) if networks.is_empty() => Verdict::skipped("the config does not say the networks of pods and services"),
        Some((proxy, except)) => {
            let excepted = |network: &&str| except.split(',').any(|pattern| covers(pattern.trim(), network));
            let missing: Vec<&str> = networks.into_iter().filter(|network| !excepted(network)).collect();
            match missing.is_empty() {
                true => Verdict::ok("the networks of pods and services are in NO_PROXY"),
                false => Verdict::warning(
                    format!("connections to {} would go through the proxy {proxy}", missing.join(" and ")),
                    by_hand(format!("add to NO_PROXY: {}", missing.join(","))),
                ),
            }
        }
    }
}

/// True when the first address of `network` is in `pattern`, a network of NO_PROXY.
fn covers(pattern: &str, network: &str) -> bool {
    let parse = |text: &str| -> Option<(IpAddr, u32)> {
        let (address, length) = text.split_once('/')?;
        Some((address.parse().ok()?, length.parse().ok()?))
    };
    let (Some((outer, length)), Some((inner, _))) = (parse(pattern), parse(network)) else {
        return pattern == "*" || pattern == network;
    };
    let same = |outer: u128, inner: u128, bits: u32| {
        (outer ^ inner).checked_shr(bits.saturating_sub(length)).unwrap_or(0) == 0
    };
    match (outer, inner) {
        (IpAddr::V4(outer), IpAddr::V4(inner)) => same(u32::from(outer).into(), u32::from(inner).into(), 32),
        (IpAddr::V6(outer), IpAddr::V6(inner)) => same(outer.into(), inner.into(), 128),
        _ => false,
    }
}

/// Whether the runtime can be asked for its cgroup driver.
fn runtime_version(subject: &Subject<'_>) -> Verdict {
    match subject.settings.runtime.kind {
        RuntimeKind::Embedded => Verdict::ok("the runtime says its cgroup driver"),
        RuntimeKind::Crio => Verdict::ok("CRI-O says its cgroup driver from 1.28 on; it is of Kubernetes' minor"),
        RuntimeKind::Containerd => {
            Verdict::skipped("containerd says its cgroup driver from 2.0 on: containerd --version")
        }
    }
}
