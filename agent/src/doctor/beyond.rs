//! What kubeadm does not check, or no longer does, and what nodes die of all the same.

use super::facts::Facts;
use super::{Check, Fix, Subject, Verdict};
use crate::plan::{Action, ResourceId, UnitOp};

/// Where a kubelet is told its runtime; the earlier ones win over the later ones.
const ENDPOINTS: [(&str, &str); 4] = [
    ("/var/lib/kubelet/kubeadm-flags.env", "--container-runtime-endpoint="),
    ("/etc/sysconfig/kubelet", "--container-runtime-endpoint="),
    ("/var/lib/kubelet/config.yaml", "containerRuntimeEndpoint:"),
    ("/var/lib/kubelet/instance-config.yaml", "containerRuntimeEndpoint:"),
];

/// Runtimes that people leave behind.
const OTHER_RUNTIMES: [&str; 4] = ["docker.service", "containerd.service", "crio.service", "nodeagent-runtime.service"];

/// Less than this, and the kubelet begins to remove images soon.
const ENOUGH_SPACE: u64 = 10 << 30;

/// All of them.
pub fn checks(subject: &Subject<'_>) -> Vec<Check> {
    let facts = subject.facts;
    let minor = subject.settings.kubernetes.as_ref().map_or(u32::MAX, |it| it.version.minor());
    // until 1.29 these are kubeadm's own
    let ours = |check: Verdict| if minor < 30 { Verdict::skipped("as kubeadm's check of that file") } else { check };
    let checks: [(&str, Verdict); 11] = [
        ("bridge-nf-call-iptables", ours(bridged(facts, "iptables"))),
        ("bridge-nf-call-ip6tables", bridged(facts, "ip6tables")),
        ("conntrack", conntrack(facts)),
        ("time-sync", time(facts)),
        ("machine-id", machine_id(facts)),
        ("disk-space", disk(facts)),
        ("cni-leftover", cni(facts)),
        ("nm-cloud-setup", cloud_setup(facts)),
        ("cri-endpoint", endpoints(subject)),
        ("other-runtime", other_runtimes(subject)),
        ("forward-policy", forward(facts)),
    ];
    checks.into_iter().map(|(name, verdict)| Check { name: name.to_owned(), verdict }).collect()
}

fn by_hand(text: impl Into<String>) -> Fix {
    Fix::ByHand(text.into())
}

/// kubeadm checked it until 1.29. Without it Services do not reach pods on the same bridge, and nothing says so.
pub(super) fn bridged(facts: &Facts, family: &str) -> Verdict {
    let key = format!("net.bridge.bridge-nf-call-{family}");
    let ids = vec![ResourceId::new("kernel-module", "br_netfilter"), ResourceId::new("sysctl", &key)];
    match facts.text(&format!("/proc/sys/net/bridge/bridge-nf-call-{family}")).map(str::trim) {
        Some("1") => Verdict::ok(format!("{key} is 1")),
        None => Verdict::error(
            format!("there is no {key}: br_netfilter is not loaded"),
            Fix::Resources(ids, "kernel.modules = [\"br_netfilter\", …]".to_owned()),
        ),
        Some(other) => Verdict::error(
            format!("{key} is {other}: traffic of pods on one bridge passes by kube-proxy's rules"),
            Fix::Resources(ids, format!("kernel.sysctl.\"{key}\" = 1")),
        ),
    }
}

/// kubeadm asked for it until 1.31; kube-proxy and CNI plugins still clean stale entries with it.
fn conntrack(facts: &Facts) -> Verdict {
    match facts.programs.contains("conntrack") {
        true => Verdict::ok("conntrack is installed"),
        false => Verdict::warning(
            "conntrack is not in PATH: kube-proxy below 1.32 cannot drop stale UDP connections",
            by_hand("add \"conntrack-tools\" to packages.install"),
        ),
    }
}

fn time(facts: &Facts) -> Verdict {
    match facts.clock_synchronized {
        true => Verdict::ok("the clock is kept in step"),
        false => Verdict::warning(
            "nobody keeps the clock in step: certificates and leases fail when it is off",
            Fix::Resources(vec![ResourceId::single("time")], "systemctl enable --now chronyd".to_owned()),
        ),
    }
}

fn machine_id(facts: &Facts) -> Verdict {
    let id = facts.text("/etc/machine-id").unwrap_or_default().trim();
    let valid = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) && id.bytes().any(|b| b != b'0');
    match valid {
        true => Verdict::ok("set"),
        false => Verdict::error(
            format!("/etc/machine-id is {id:?}: nodes are told apart by it"),
            by_hand("rm /etc/machine-id; systemd-machine-id-setup; reboot"),
        ),
    }
}

fn disk(facts: &Facts) -> Verdict {
    match facts.free_bytes {
        None => Verdict::skipped("/var/lib cannot be looked at"),
        Some(free) if free < ENOUGH_SPACE => Verdict::warning(
            format!("{} MiB are free below /var/lib", free >> 20),
            by_hand("give /var/lib more room: images and containers are there"),
        ),
        Some(free) => Verdict::ok(format!("{} GiB are free below /var/lib", free >> 30)),
    }
}

/// The first file by name is the pod network.
fn cni(facts: &Facts) -> Verdict {
    let mut files: Vec<&String> =
        facts.cni.iter().filter(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))).collect();
    files.sort();
    let left = |name: &str| ["crio-bridge", "podman-bridge", "crio-loopback"].iter().any(|other| name.contains(other));
    match files.as_slice() {
        [] => Verdict::skipped("no network in /etc/cni/net.d yet"),
        [first, ..] if left(first) => Verdict::error(
            format!("/etc/cni/net.d/{first} comes first by name, and is another program's network"),
            Fix::Actions(
                vec![Action::RemoveFile { path: format!("/etc/cni/net.d/{first}") }],
                format!("remove /etc/cni/net.d/{first}"),
            ),
        ),
        [first, ..] => Verdict::ok(format!("the pod network is {first}")),
    }
}

/// It removes routes and rules that a CNI plugin has made.
fn cloud_setup(facts: &Facts) -> Verdict {
    let units = ["nm-cloud-setup.timer", "nm-cloud-setup.service"];
    let on = |name: &&str| facts.unit(name).enabled || facts.unit(name).active;
    let found: Vec<&str> = units.into_iter().filter(on).collect();
    if found.is_empty() {
        return Verdict::ok("not in use");
    }
    let actions = found.iter().flat_map(|unit| {
        [UnitOp::Stop, UnitOp::Disable].map(|op| Action::Unit { unit: (*unit).to_owned(), op, wait: true })
    });
    Verdict::error(
        format!("{} takes the routes of pod networks away", found.join(" and ")),
        Fix::Actions(actions.collect(), format!("systemctl disable --now {}", found.join(" "))),
    )
}

/// One stale flag undoes what the config file says, without a word.
fn endpoints(subject: &Subject<'_>) -> Verdict {
    let socket = subject.settings.runtime.socket.as_str();
    for (file, key) in ENDPOINTS {
        let text = subject.facts.text(file).unwrap_or_default();
        for found in
            text.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(|line| line.split_once(key))
        {
            let value = found.1.trim().split([' ', '"', '\'']).find(|word| !word.is_empty()).unwrap_or_default();
            if !value.is_empty() && value.trim_start_matches("unix://") != socket {
                return Verdict::error(
                    format!("{file} sends the kubelet to {value}, not to {socket}"),
                    by_hand(format!("correct it in {file}, and restart the kubelet")),
                );
            }
        }
    }
    Verdict::ok(format!("nothing sends the kubelet elsewhere than {socket}"))
}

fn other_runtimes(subject: &Subject<'_>) -> Verdict {
    let chosen = subject.settings.runtime.kind.unit();
    let others = OTHER_RUNTIMES.into_iter().filter(|unit| *unit != chosen);
    let running: Vec<&str> = others.filter(|unit| subject.facts.unit(unit).active).collect();
    match running.as_slice() {
        [] => Verdict::ok("none runs"),
        running => Verdict::warning(
            format!(
                "{} runs beside the one of the config: its containers hold memory and ports",
                running.join(" and ")
            ),
            by_hand(format!("when nothing needs it any more: systemctl disable --now {}", running.join(" "))),
        ),
    }
}

/// Docker leaves it behind, and then no pod reaches another node.
fn forward(facts: &Facts) -> Verdict {
    match facts.forward_policy.as_deref() {
        Some("DROP" | "REJECT") => Verdict::error(
            "the FORWARD chain drops what no rule accepts: pods do not reach other nodes",
            by_hand("iptables -P FORWARD ACCEPT, and find out who sets it (Docker does)"),
        ),
        Some(policy) => Verdict::ok(format!("the FORWARD chain's policy is {policy}")),
        None => Verdict::skipped("iptables does not say"),
    }
}
