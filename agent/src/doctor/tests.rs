use super::facts::{PROGRAMS, UnitFacts};
use super::*;
use crate::config;

fn settings(role: &str, version: &str) -> Settings {
    config::from_text(&format!(
        "[node]\nrole = \"{role}\"\nname = \"n1\"\n[kubernetes]\nversion = \"{version}\"\nrepo_baseurl = \"http://x/\"\n"
    ))
    .unwrap()
}

/// A host on which nothing is wrong, before it joins.
fn healthy() -> Facts {
    let texts = [
        ("/proc/sys/net/ipv4/ip_forward", "1\n"),
        ("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n"),
        ("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "1\n"),
        ("/proc/meminfo", "MemTotal:        8000000 kB\nMemFree: 1 kB\n"),
        ("/proc/cpuinfo", "processor\t: 0\nmodel name\t: x\n\nprocessor\t: 1\n"),
        ("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
        ("/proc/self/net/tcp", "  sl  local_address rem_address   st\n   0: 00000000:0016 00000000:0000 0A 0\n"),
        ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids\n"),
        ("/etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    ];
    let kubelet = UnitFacts { exists: true, enabled: true, active: false };
    Facts {
        is_root: true,
        kernel: "5.14.0-503.el9.x86_64".into(),
        cgroup_v2: true,
        programs: PROGRAMS.iter().map(|program| (*program).to_owned()).collect(),
        texts: texts.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect(),
        units: [("kubelet.service".to_owned(), kubelet)].into(),
        hostname: "n1".into(),
        resolves: true,
        kubelet_version: Some("v1.31.4".into()),
        kubeadm_version: Some("v1.31.4".into()),
        forward_policy: Some("ACCEPT".into()),
        cri_answers: true,
        clock_synchronized: true,
        cni: vec!["10-calico.conflist".into()],
        free_bytes: Some(50 << 30),
        ..Facts::default()
    }
}

fn found(settings: &Settings, facts: &Facts) -> Vec<Examined> {
    let plan = Plan { resources: Vec::new() };
    examine(&Subject { settings, facts }, &plan).into_iter().map(|(examined, _)| examined).collect()
}

fn wrong(settings: &Settings, facts: &Facts) -> Vec<(String, Severity)> {
    let bad = found(settings, facts).into_iter().filter(|check| check.severity >= Severity::Warning);
    bad.map(|check| (check.id, check.severity)).collect()
}

#[test]
fn a_healthy_host_has_no_finding_before_and_after_it_joins() {
    for role in ["worker", "control-plane"] {
        assert_eq!(wrong(&settings(role, "1.31"), &healthy()), [], "{role}");
        let mut joined = healthy();
        joined.paths.insert("/etc/kubernetes/kubelet.conf".into());
        joined.paths.insert("/etc/kubernetes/pki/ca.crt".into());
        joined.units.insert("kubelet.service".into(), UnitFacts { exists: true, enabled: true, active: true });
        joined.texts.insert("/proc/self/net/tcp6".into(), "h\n 0: 000:280A 000:0000 0A 0\n".into());
        assert_eq!(wrong(&settings(role, "1.31"), &joined), [], "{role}");
    }
}

/// The check that finds it, how bad it is, and what brings it about.
type Case<'c> = (&'c str, Severity, &'c dyn Fn(&mut Facts));

#[test]
fn each_thing_that_is_wrong_is_found_under_its_name_with_a_fix() {
    let set = |path: &'static str, text: &'static str| {
        move |facts: &mut Facts| {
            facts.texts.insert(path.to_owned(), text.to_owned());
        }
    };
    let cases: [Case<'_>; 28] = [
        ("IsPrivilegedUser", Severity::Error, &|f| f.is_root = false),
        ("NumCPU", Severity::Error, &set("/proc/cpuinfo", "processor\t: 0\n")),
        ("Mem", Severity::Error, &set("/proc/meminfo", "MemTotal: 1700000 kB\n")),
        ("KubernetesVersion", Severity::Error, &|f| f.kubeadm_version = Some("v1.30.0".into())),
        // 192B
        ("Port-6443", Severity::Error, &set("/proc/self/net/tcp6", "h\n 0: 00:192B 00:0000 0A 0\n")),
        ("FileAvailable--etc-kubernetes-manifests-etcd.yaml", Severity::Error, &|f| {
            f.paths.insert("/etc/kubernetes/manifests/etcd.yaml".into());
        }),
        ("DirAvailable--var-lib-etcd", Severity::Error, &|f| {
            f.paths.insert("/var/lib/etcd".into());
        }),
        ("Firewalld", Severity::Warning, &|f| {
            f.units.insert("firewalld.service".into(), UnitFacts { exists: true, enabled: true, active: true });
        }),
        ("FileAvailable--etc-kubernetes-pki-ca.crt", Severity::Error, &|f| {
            f.paths.insert("/etc/kubernetes/pki/ca.crt".into());
        }),
        ("CRI", Severity::Error, &|f| f.cri_answers = false),
        ("Swap", Severity::Warning, &set("/proc/swaps", "h\n/dev/zram0 partition 8 0 100\n")),
        ("FileExisting-ip", Severity::Error, &|f| {
            f.programs.remove("ip");
        }),
        ("FileExisting-tc", Severity::Warning, &|f| {
            f.programs.remove("tc");
        }),
        ("SystemVerification", Severity::Error, &set("/sys/fs/cgroup/cgroup.controllers", "cpu memory\n")),
        ("Hostname", Severity::Error, &|f| f.hostname = "Node_1".into()),
        ("Hostname", Severity::Warning, &|f| f.resolves = false),
        ("KubeletVersion", Severity::Error, &|f| f.kubelet_version = Some("v1.32.0".into())),
        ("KubeletVersion", Severity::Error, &|f| f.kubelet_version = None),
        ("Service-Kubelet", Severity::Warning, &|f| {
            f.units.insert("kubelet.service".into(), UnitFacts { exists: true, ..UnitFacts::default() });
        }),
        ("HTTPProxy", Severity::Warning, &|f| f.proxy = Some(("http://p:3128".into(), String::new()))),
        ("FileContent--proc-sys-net-ipv4-ip_forward", Severity::Error, &set("/proc/sys/net/ipv4/ip_forward", "0\n")),
        ("bridge-nf-call-iptables", Severity::Error, &set("/proc/sys/net/bridge/bridge-nf-call-iptables", "0\n")),
        ("time-sync", Severity::Warning, &|f| f.clock_synchronized = false),
        ("machine-id", Severity::Error, &set("/etc/machine-id", "uninitialized\n")),
        ("disk-space", Severity::Warning, &|f| f.free_bytes = Some(1 << 30)),
        ("cni-leftover", Severity::Error, &|f| f.cni.insert(0, "05-crio-bridge.conflist".into())),
        (
            "cri-endpoint",
            Severity::Error,
            &set(
                "/var/lib/kubelet/kubeadm-flags.env",
                "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/containerd.sock\"\n",
            ),
        ),
        ("forward-policy", Severity::Error, &|f| f.forward_policy = Some("DROP".into())),
    ];
    let settings = settings("control-plane", "1.31");
    for (id, severity, break_it) in cases {
        let mut facts = healthy();
        break_it(&mut facts);
        assert_eq!(wrong(&settings, &facts), [(id.to_owned(), severity)]);
        let check = found(&settings, &facts).into_iter().find(|check| check.id == id).unwrap();
        assert!(check.fix.is_some_and(|fix| !fix.is_empty()), "{id}");
    }
}

/// Typed from kubeadm's preflight package, by hand: the names that people pass to --ignore-preflight-errors.
const OF_KUBEADM_INIT_1_31: [&str; 37] = [
    "HTTPProxyCIDR",
    "NumCPU",
    "Mem",
    "KubernetesVersion",
    "Firewalld",
    "Port-6443",
    "Port-10259",
    "Port-10257",
    "Port-10250",
    "Port-2379",
    "Port-2380",
    "FileAvailable--etc-kubernetes-manifests-kube-apiserver.yaml",
    "FileAvailable--etc-kubernetes-manifests-kube-controller-manager.yaml",
    "FileAvailable--etc-kubernetes-manifests-kube-scheduler.yaml",
    "FileAvailable--etc-kubernetes-manifests-etcd.yaml",
    "HTTPProxy",
    "IsPrivilegedUser",
    "CRI",
    "Swap",
    "FileExisting-conntrack",
    "FileExisting-ip",
    "FileExisting-iptables",
    "FileExisting-mount",
    "FileExisting-nsenter",
    "FileExisting-ebtables",
    "FileExisting-ethtool",
    "FileExisting-socat",
    "FileExisting-tc",
    "FileExisting-touch",
    "SystemVerification",
    "Hostname",
    "KubeletVersion",
    "Service-Kubelet",
    "FileContent--proc-sys-net-ipv4-ip_forward",
    "FileContent--proc-sys-net-ipv6-conf-default-forwarding",
    "DirAvailable--var-lib-etcd",
    "ImagePull",
];

#[test]
fn every_check_of_kubeadm_is_made_under_its_name_and_each_name_stands_once() {
    let names = |role: &str, version: &str| -> Vec<String> {
        found(&settings(role, version), &healthy()).into_iter().filter(|c| c.kubeadm).map(|c| c.id).collect()
    };
    let init = names("control-plane", "1.31");
    for name in OF_KUBEADM_INIT_1_31 {
        assert!(init.iter().any(|known| known == name), "{name} is missing in {init:?}");
    }
    let join = names("worker", "1.31");
    for name in ["FileAvailable--etc-kubernetes-kubelet.conf", "FileAvailable--etc-kubernetes-bootstrap-kubelet.conf"] {
        assert!(join.iter().any(|known| known == name), "{name} is missing in {join:?}");
    }
    assert!(!join.iter().any(|name| name == "NumCPU"), "a worker is not asked for two processors");
    for names in [init, join] {
        let mut once = names.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), names.len(), "{names:?}");
    }
    assert!(!names("worker", "1.32").contains(&"FileExisting-conntrack".to_owned()), "gone in 1.32");
}

#[test]
fn checks_that_came_and_went_are_made_for_the_minors_that_have_them() {
    let has = |version: &str, name: &str| {
        found(&settings("control-plane", version), &healthy()).iter().any(|check| check.kubeadm && check.id == name)
    };
    for (name, first, last) in [
        ("FileContent--proc-sys-net-bridge-bridge-nf-call-iptables", "1.18", "1.29"),
        ("FileExisting-conntrack", "1.18", "1.31"),
        ("ContainerRuntimeVersion", "1.35", "1.37"),
        ("HTTPProxyCIDR", "1.18", "1.37"),
    ] {
        assert!(has(first, name) && has(last, name), "{name}");
        for (edge, step) in [(first, -1), (last, 1)] {
            let minor: i32 = edge[2..].parse().unwrap();
            if (18..=37).contains(&(minor + step)) {
                assert!(!has(&format!("1.{}", minor + step), name), "{name} in 1.{}", minor + step);
            }
        }
    }
}

#[test]
fn networks_of_the_cluster_have_to_go_past_the_proxy() {
    let text = "[node]\nrole = \"control-plane\"\n[kubernetes]\nversion = \"1.31\"\n[init]\nmethod = \"kubeadm\"\n\
                pod_cidr = \"10.244.0.0/16\"\nservice_cidr = \"fd00::/108\"\n";
    let settings = config::from_text(text).unwrap();
    for (except, missing) in [
        ("10.0.0.0/8,fd00::/8", ""),
        ("*", ""),
        ("10.244.0.0/16", "fd00::/108"),
        ("10.0.0.0/16,fe00::/8", "10.244.0.0/16 and fd00::/108"),
    ] {
        let facts = Facts { proxy: Some(("http://p".into(), except.into())), ..healthy() };
        let check = found(&settings, &facts).into_iter().find(|check| check.id == "HTTPProxyCIDR").unwrap();
        assert_eq!(check.severity == Severity::Ok, missing.is_empty(), "{except}: {check:?}");
        assert!(check.message.contains(missing), "{check:?}");
    }
}

#[test]
fn el_8_is_told_what_it_cannot_do() {
    let mut facts = healthy();
    facts.kernel = "4.18.0-553.el8_10.x86_64".into();
    facts.cgroup_v2 = false;
    facts.kubelet_version = Some("v1.36.0".into());
    facts.kubeadm_version = Some("v1.36.0".into());
    let verification = |version: &str| {
        let checks = found(&settings("worker", version), &facts);
        checks.into_iter().find(|check| check.id == "SystemVerification").unwrap()
    };
    let new = verification("1.36");
    assert!(new.severity == Severity::Error && new.message.contains("older than 4.19"), "{new:?}");
    let old = verification("1.31");
    assert!(old.severity == Severity::Warning && old.message.contains("cgroup v1"), "{old:?}");
}

#[test]
fn a_resource_that_is_blocked_is_a_finding_with_its_own_fix() {
    let planned = crate::reconcile::Planned {
        id: ResourceId::single("swap"),
        stage: crate::plan::Stage::Prepare,
        needs: Vec::new(),
        finding: Finding::Observed(Outcome::Blocked { reason: "full".into(), fix: Some("reboot".into()) }),
    };
    let plan = Plan { resources: vec![planned] };
    let (settings, facts) = (settings("worker", "1.31"), healthy());
    let checks = examine(&Subject { settings: &settings, facts: &facts }, &plan);
    let (check, _) = checks.iter().find(|(check, _)| check.id == "swap").unwrap();
    assert_eq!((check.severity, check.fix.as_deref(), check.fixable), (Severity::Error, Some("reboot"), false));
}
