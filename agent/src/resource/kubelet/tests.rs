use super::*;
use crate::config::settings::*;
use crate::host::platform::CgroupMode;

fn settings(version: &str, mode: KubeletMode, role: Role) -> Settings {
    Settings {
        node: NodeSettings {
            role,
            name: None,
            labels: Default::default(),
            taints: vec![],
            ip: None,
            provider_id: None,
        },
        kernel: KernelSettings { modules: vec![], sysctl: Default::default() },
        selinux: SelinuxMode::Keep,
        swap: SwapPolicy::Off,
        packages: PackageSettings {
            source: PackageSource::Dnf,
            install: vec![],
            update: Default::default(),
            lock: false,
        },
        kubernetes: Some(KubernetesSettings {
            version: version.parse().unwrap(),
            kubelet_mode: mode,
            repo_baseurl: None,
            kubelet: Default::default(),
            kubelet_args: vec![],
        }),
        runtime: RuntimeSettings {
            kind: RuntimeKind::Embedded,
            repo_baseurl: None,
            repo_gpgkey: None,
            socket: "/run/nodeagent/cri.sock".parse().unwrap(),
            root: "/var/lib/nodeagent/containers".parse().unwrap(),
            cgroup_driver: None,
            pause_image: "registry.k8s.io/pause:3.10".into(),
            crio_compat_socket: true,
            ready_timeout: "2m".parse().unwrap(),
        },
        repos: vec![],
        files: vec![],
        units: vec![],
        join: None,
        init: None,
        selinux_booleans: std::collections::BTreeMap::new(),
        host: crate::config::host::HostSettings::default(),
        reconcile: ReconcileSettings {
            removed: crate::config::settings::RemovedPolicy::Report,
            policy: DriftPolicy::Repair,
            overrides: Default::default(),
            max_repairs_per_hour: 6,
        },
    }
}

fn platform(cgroups: CgroupMode) -> Platform {
    Platform::example("9", cgroups)
}

fn rendered_on(settings: &Settings, cgroups: CgroupMode) -> Vec<(String, String)> {
    let kubelet = KubeletConfig::new(settings, &platform(cgroups)).unwrap().unwrap();
    let (_, desired) = kubelet.desired(false).unwrap();
    desired.files.into_iter().map(|file| (file.path, file.content)).collect()
}

fn rendered(settings: &Settings) -> Vec<(String, String)> {
    rendered_on(settings, CgroupMode::V2)
}

fn refused(settings: &Settings) -> String {
    match KubeletConfig::new(settings, &platform(CgroupMode::V2)) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("accepted"),
    }
}

fn kubernetes(settings: &mut Settings) -> &mut KubernetesSettings {
    settings.kubernetes.as_mut().unwrap()
}

#[test]
fn a_standalone_node_gets_a_file_and_a_start_of_its_own() {
    let files = rendered(&settings("1.37", KubeletMode::Agent, Role::Standalone));
    let [(config_path, config), (dropin_path, dropin)] = &files[..] else { panic!("{files:?}") };
    assert_eq!((config_path.as_str(), dropin_path.as_str()), (CONFIG, dropin::PATH));
    for line in [
        "kind: KubeletConfiguration",
        "cgroupDriver: systemd",
        "staticPodPath: /etc/kubernetes/manifests",
        "mode: AlwaysAllow",
        "failSwapOn: true",
    ] {
        assert!(config.contains(line), "{line} in {config}");
    }
    assert!(config.contains("unix:///run/nodeagent/cri.sock"), "{config}");
    let start = "ExecStart=\nExecStart=/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml\n";
    assert!(dropin.contains(start) && dropin.contains("After=nodeagent-runtime.service\n"), "{dropin}");
    assert!(!dropin.contains("kubeconfig"), "{dropin}");
}

#[test]
fn kubeadm_keeps_its_file_and_gets_ours_as_a_fragment_or_as_flags() {
    for (version, fragment, words) in [
        (
            "1.18",
            false,
            "--container-runtime=remote --container-runtime-endpoint=unix:///run/nodeagent/cri.sock --cgroup-driver=systemd --fail-swap-on=true",
        ),
        (
            "1.24",
            false,
            "config.yaml --container-runtime-endpoint=unix:///run/nodeagent/cri.sock --cgroup-driver=systemd",
        ),
        (
            "1.27",
            false,
            "config.yaml --container-runtime-endpoint=unix:///run/nodeagent/cri.sock --cgroup-driver=systemd --fail-swap-on=true\"",
        ),
        (
            "1.28",
            false,
            "config.yaml --container-runtime-endpoint=unix:///run/nodeagent/cri.sock --cgroup-driver=systemd --fail-swap-on=true\"",
        ),
        (
            "1.29",
            true,
            "Environment=KUBELET_CONFIG_DROPIN_DIR_ALPHA=1\nEnvironment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml --config-dir=/etc/kubernetes/kubelet.conf.d\"\n",
        ),
        (
            "1.30",
            true,
            "Slice=runtime.slice\nEnvironment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml --config-dir=/etc/kubernetes/kubelet.conf.d\"\n",
        ),
    ] {
        let files = rendered(&settings(version, KubeletMode::Kubeadm, Role::Worker));
        assert_eq!(files.iter().any(|(path, _)| path == FRAGMENT), fragment, "{version}");
        assert!(!files.iter().any(|(path, _)| path == CONFIG), "{version}");
        let dropin = &files.last().unwrap().1;
        assert!(dropin.contains(words), "{version}: {dropin}");
        assert!(!dropin.contains("ExecStart"), "{version}: {dropin}");
    }
}

#[test]
fn the_endpoint_is_a_flag_up_to_1_26_and_a_field_from_1_27_on() {
    for (version, field) in [("1.26", false), ("1.27", true)] {
        let files = rendered(&settings(version, KubeletMode::Agent, Role::Worker));
        assert_eq!(files[0].1.contains("containerRuntimeEndpoint"), field, "{version}");
        assert_eq!(files[1].1.contains("--container-runtime-endpoint="), !field, "{version}");
    }
}

#[test]
fn cgroup_v1_is_allowed_where_a_kubelet_would_refuse_it() {
    for (version, cgroups, said) in
        [("1.34", CgroupMode::V1, false), ("1.35", CgroupMode::V1, true), ("1.35", CgroupMode::V2, false)]
    {
        let files = rendered_on(&settings(version, KubeletMode::Agent, Role::Standalone), cgroups);
        assert_eq!(files[0].1.contains("failCgroupV1: false"), said, "{version} {cgroups:?}");
        let driver = if cgroups == CgroupMode::V1 { "cgroupDriver: cgroupfs" } else { "cgroupDriver: systemd" };
        assert!(files[0].1.contains(driver), "{version} {cgroups:?}");
    }
}

#[test]
fn limited_swap_brings_its_gate_as_long_as_that_is_needed() {
    let mut wanted = settings("1.29", KubeletMode::Agent, Role::Worker);
    wanted.swap = SwapPolicy::Limited;
    assert!(rendered(&wanted)[0].1.contains("NodeSwap: true"));
    kubernetes(&mut wanted).version = "1.30".parse().unwrap();
    let text = &rendered(&wanted)[0].1;
    assert!(!text.contains("NodeSwap") && text.contains("swapBehavior: LimitedSwap"), "{text}");
    kubernetes(&mut wanted).version = "1.21".parse().unwrap();
    assert!(refused(&wanted).starts_with("swap.policy: "), "{}", refused(&wanted));

    // where there are only flags
    let mut wanted = settings("1.27", KubeletMode::Kubeadm, Role::Worker);
    let gate = "--feature-gates=NodeSwap=true";
    assert!(!rendered(&wanted)[0].1.contains(gate));
    wanted.swap = SwapPolicy::Limited;
    assert!(rendered(&wanted)[0].1.contains(gate), "{:?}", rendered(&wanted));
    kubernetes(&mut wanted).version = "1.28".parse().unwrap();
    assert!(refused(&wanted).starts_with("swap.policy: "), "{}", refused(&wanted));
    kubernetes(&mut wanted).version = "1.29".parse().unwrap();
    assert!(rendered(&wanted)[0].1.contains("swapBehavior: LimitedSwap"), "{:?}", rendered(&wanted));
}

#[test]
fn the_users_fields_are_merged_and_ours_are_refused() {
    let mut wanted = settings("1.36", KubeletMode::Kubeadm, Role::Worker);
    kubernetes(&mut wanted).kubelet =
        serde_json::from_str(r#"{"maxPods": 250, "evictionHard": {"memory.available": "5%"}}"#).unwrap();
    let text = &rendered(&wanted)[0].1;
    assert!(text.contains("maxPods: 250") && text.contains("memory.available: 5%"), "{text}");
    kubernetes(&mut wanted).kubelet = serde_json::from_str(r#"{"cgroupDriver": "systemd"}"#).unwrap();
    assert_eq!(refused(&wanted), "kubernetes.kubelet.cgroupDriver: this field is decided by runtime.cgroup_driver");
    kubernetes(&mut wanted).kubelet = serde_json::from_str(r#"{"maxPods": 250}"#).unwrap();
    kubernetes(&mut wanted).version = "1.27".parse().unwrap();
    assert!(refused(&wanted).contains("--config-dir"));
}

#[test]
fn flags_that_would_end_the_kubelet_never_reach_it() {
    let mut wanted = settings("1.36", KubeletMode::Agent, Role::Worker);
    for (arg, problem) in [
        ("--container-runtime=remote", "removed in Kubernetes 1.27"),
        ("--network-plugin=cni", "removed in Kubernetes 1.24"),
        ("--v=2 --x", "must be one flag"),
        ("v=2", "must be one flag"),
        ("--node-labels=a=$(id)", "must be one flag"),
    ] {
        kubernetes(&mut wanted).kubelet_args = vec![arg.into()];
        assert!(refused(&wanted).contains(problem), "{arg}: {}", refused(&wanted));
    }
    kubernetes(&mut wanted).kubelet_args = vec!["--v=2%".into()];
    assert!(rendered(&wanted)[1].1.contains("--v=2%%\n"));
}

#[test]
fn who_the_node_is_goes_into_flags() {
    let mut wanted = settings("1.36", KubeletMode::Kubeadm, Role::Worker);
    wanted.node.name = Some("node1".parse().unwrap());
    wanted.node.ip = Some("10.0.0.1".parse().unwrap());
    wanted.node.labels.insert("zone".into(), "a".into());
    wanted.node.taints.push("dedicated=gpu:NoSchedule".parse().unwrap());
    let files = rendered(&wanted);
    let dropin = &files.last().unwrap().1;
    let words = "--hostname-override=node1 --node-ip=10.0.0.1 --node-labels=zone=a --register-with-taints=dedicated=gpu:NoSchedule";
    assert!(dropin.contains(words), "{dropin}");
}

#[test]
fn flags_of_others_that_hurt_are_taken_out_or_named_with_their_file() {
    let kubelet = KubeletConfig::new(&settings("1.36", KubeletMode::Kubeadm, Role::Worker), &platform(CgroupMode::V2));
    let (minor, desired) = kubelet.unwrap().unwrap().desired(false).unwrap();
    let files = vec![FileNow { missing_directories: vec![], found: None }; desired.files.len()];
    let id = ResourceId::new("kubelet", "config");
    let decide = |text: &str| {
        let found = Found::File { text: Some(text.to_owned()), mode: 0o640, uid: 0, gid: 7 };
        let file = FileNow { missing_directories: vec![], found: Some(found) };
        let environment = vec![("/etc/sysconfig/kubelet".to_owned(), file)];
        let observed = Observed { files: files.clone(), environment, ..Observed::default() };
        plan(&id, minor, &desired, &observed, &Past::Unknown)
    };
    let removed = decide("KUBELET_EXTRA_ARGS=--container-runtime=remote --v=2\n");
    let write = Action::WriteFile {
        path: "/etc/sysconfig/kubelet".into(),
        content: "KUBELET_EXTRA_ARGS=--v=2\n".into(),
        mode: 0o640,
        uid: 0,
        gid: 7,
        secret: false,
    };
    assert!(removed.change().is_some_and(|change| change.actions.contains(&write)), "{removed:?}");
    let quoted = decide("KUBELET_EXTRA_ARGS=--docker-endpoint=\"unix:///a b\"\n");
    assert!(
        matches!(&quoted, Outcome::Blocked { reason, .. } if reason.contains("/etc/sysconfig/kubelet")),
        "{quoted:?}"
    );
    let other =
        decide("KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/containerd.sock\"\n");
    assert!(matches!(other, Outcome::Conflict { .. }), "{other:?}");
    let ours = decide(
        "# --container-runtime=x\nKUBELET_EXTRA_ARGS='--container-runtime-endpoint=unix:///run/nodeagent/cri.sock' --v=2\n",
    );
    assert!(ours.change().is_some(), "{ours:?}");
}
