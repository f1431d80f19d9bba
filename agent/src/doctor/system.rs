//! kubeadm's SystemVerification: kernel, its config, and cgroups.

use super::{Fix, Subject, Verdict};

/// Kernel options that kubeadm wants built in or as a module.
const OPTIONS: [&str; 13] = [
    "NAMESPACES",
    "NET_NS",
    "PID_NS",
    "IPC_NS",
    "UTS_NS",
    "CGROUPS",
    "CPUSETS",
    "MEMCG",
    "FAIR_GROUP_SCHED",
    "INET",
    "PROC_FS",
    "NETFILTER_XT_TARGET_REDIRECT",
    "NETFILTER_XT_MATCH_COMMENT",
];

/// Of cgroup v1 by /proc/cgroups; of v2 devices and freezer are always there.
const CONTROLLERS_V1: [&str; 7] = ["cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"];
const CONTROLLERS_V2: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// What kubeadm will say about the system.
pub fn verification(subject: &Subject<'_>) -> Verdict {
    let facts = subject.facts;
    let minor = subject.settings.kubernetes.as_ref().map(|it| it.version.minor());
    let mut problems = Vec::new();
    // from 1.32 on kubeadm wants 4.19; EL 8 has 4.18
    let oldest = if minor.is_some_and(|minor| minor < 32) { (3, 10) } else { (4, 19) };
    let kernel = version(&facts.kernel);
    if kernel.is_some_and(|kernel| kernel < oldest) {
        problems.push(format!("kernel {} is older than {}.{}", facts.kernel, oldest.0, oldest.1));
    }
    if let Some(config) = &facts.kernel_config {
        let is_set = |option: &&&str| !["y", "m"].iter().any(|how| config.contains(&format!("CONFIG_{option}={how}")));
        let missing: Vec<&str> = OPTIONS.iter().filter(is_set).copied().collect();
        if !missing.is_empty() {
            problems.push(format!("the kernel is built without {}", missing.join(", ")));
        }
    }
    let missing = missing_controllers(subject);
    if !missing.is_empty() {
        problems.push(format!("cgroup controllers are missing: {}", missing.join(", ")));
    }
    if !problems.is_empty() {
        let fix = "boot a kernel that has it; EL 9 and 10 do. On EL 8 kubeadm needs \
                   --ignore-preflight-errors=SystemVerification from 1.32 on";
        return Verdict::error(problems.join("; "), Fix::ByHand(fix.to_owned()));
    }
    match (facts.cgroup_v2, minor) {
        (false, Some(minor)) if minor >= 35 => {
            Verdict::warning("cgroup v1, on which a kubelet from 1.35 on only starts because our settings say so", v2())
        }
        (false, _) => Verdict::warning("cgroup v1, which Kubernetes no longer develops", v2()),
        (true, _) => Verdict::ok(format!("kernel {}, cgroup v2", facts.kernel)),
    }
}

fn v2() -> Fix {
    Fix::ByHand("grubby --update-kernel ALL --args systemd.unified_cgroup_hierarchy=1; reboot".to_owned())
}

/// `5.14.0-503.el9.x86_64` → (5, 14)
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn missing_controllers(subject: &Subject<'_>) -> Vec<&'static str> {
    if subject.facts.cgroup_v2 {
        let Some(text) = subject.facts.text("/sys/fs/cgroup/cgroup.controllers") else { return Vec::new() };
        let there: Vec<&str> = text.split_whitespace().collect();
        return CONTROLLERS_V2.into_iter().filter(|name| !there.contains(name)).collect();
    }
    let Some(text) = subject.facts.text("/proc/cgroups") else { return Vec::new() };
    let enabled = |line: &&str| line.split_whitespace().nth(3) == Some("1");
    let there: Vec<&str> = text.lines().filter(enabled).filter_map(|line| line.split_whitespace().next()).collect();
    CONTROLLERS_V1.into_iter().filter(|name| !there.contains(name)).collect()
}
