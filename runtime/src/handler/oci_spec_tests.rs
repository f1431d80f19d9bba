//! Documents, compared with what the specification calls things.

use nodeagent_cri_api::{ContainerMetadata, PodSandboxConfig, PodSandboxMetadata, UpdatePodSandboxResourcesRequest};
use nodeagent_shim::protocol::{Device, Rootfs};

use super::*;
use crate::cgroup::{Cgroups, Driver, Layout};
use crate::sandbox::SandboxState;

fn pod(driver: Driver) -> SandboxRecord {
    let cgroups = Cgroups::new(Layout::V1 { hierarchies: Vec::new() }, driver);
    let parent = if driver == Driver::Systemd { "kubepods-pod1.slice" } else { "/pods" };
    let metadata = PodSandboxMetadata { name: "web".into(), namespace: "shop".into(), ..Default::default() };
    SandboxRecord {
        id: "p1".into(),
        created_at: 1,
        state: SandboxState::Ready,
        config: PodSandboxConfig { metadata: Some(metadata), ..Default::default() },
        runtime_handler: "crun".into(),
        cgroup: cgroups.path_of(parent, "p1").unwrap(),
        made_parent: false,
        shim_pid: 77,
        first_pid: 88,
        selinux_level: String::new(),
        netns: Some("/run/netns/nodeagent-p1".into()),
        network_owed: true,
        ips: Vec::new(),
        resized: UpdatePodSandboxResourcesRequest::default(),
    }
}

fn spec() -> LaunchSpec {
    LaunchSpec {
        container: "c1".into(),
        rootfs: Rootfs { target: "/layers/merged".into(), ..Rootfs::default() },
        process: ProcessSpec {
            args: vec!["/bin/web".into()],
            env: vec![STANDARD.encode("A=b")],
            uid: 7,
            groups: vec![7, 8],
            capabilities: Capabilities { bounding: 1 | 1 << 5, ..Capabilities::default() },
            rlimits: vec![(7, 1024, 2048)],
            no_new_privs: true,
            oom_score_adj: Some(5),
            ..ProcessSpec::default()
        },
        ..LaunchSpec::default()
    }
}

fn document(spec: &LaunchSpec, change: impl FnOnce(&mut Inputs<'_>)) -> Result<Value, OciSpecError> {
    let pod = pod(Driver::Cgroupfs);
    let metadata = Some(ContainerMetadata { name: "server".into(), attempt: 0 });
    let config = ContainerConfig {
        metadata,
        annotations: [("io.kubernetes.cri.sandbox-id".to_owned(), "another".to_owned())].into(),
        ..Default::default()
    };
    let limits = Resources { cpu_shares: 512, memory: 1 << 20, ..Resources::default() };
    let mut inputs = Inputs {
        config: &config,
        pod: &pod,
        cgroup: &pod.cgroup,
        by_systemd: false,
        limits: &limits,
        devices: &[DeviceRule { kind: 'c', major: Some(1), minor: None, access: "rw".into() }],
        seccomp: None,
        target: None,
    };
    change(&mut inputs);
    container(spec, &inputs)
}

#[test]
fn a_process_keeps_its_user_its_rights_and_its_limits() {
    let process = document(&spec(), |_| {}).unwrap()["process"].clone();
    assert_eq!(process["args"], json!(["/bin/web"]));
    assert_eq!(process["env"], json!(["A=b"]));
    assert_eq!(process["user"], json!({"uid": 7, "gid": 0, "additionalGids": [7, 8]}));
    assert_eq!(process["capabilities"]["bounding"], json!(["CAP_CHOWN", "CAP_KILL"]));
    assert_eq!(process["capabilities"]["ambient"], json!([]));
    assert_eq!(process["rlimits"], json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 2048}]));
    assert_eq!((&process["noNewPrivileges"], &process["oomScoreAdj"]), (&json!(true), &json!(5)));
    assert_eq!(process["cwd"], "/");
    assert!(process.get("selinuxLabel").is_none());
}

#[test]
fn namespaces_are_the_pods() {
    let of = |pid_namespace, target| {
        let spec = LaunchSpec { pid_namespace, ..spec() };
        document(&spec, |inputs| inputs.target = target).map(|document| document["linux"]["namespaces"].clone())
    };
    let path = |kind: &str, path: &str| json!({"type": kind, "path": path});
    let common = [
        json!({"type": "mount"}),
        path("network", "/proc/77/ns/net"),
        path("uts", "/proc/77/ns/uts"),
        path("ipc", "/proc/77/ns/ipc"),
    ];
    let with = |last: Option<Value>| Value::Array(common.iter().cloned().chain(last).collect());
    assert_eq!(of(PidNamespace::New, None).unwrap(), with(Some(json!({"type": "pid"}))));
    assert_eq!(of(PidNamespace::Pod, None).unwrap(), with(Some(path("pid", "/proc/88/ns/pid"))));
    assert_eq!(of(PidNamespace::Host, None).unwrap(), with(None));
    assert_eq!(of(PidNamespace::Container("c".into()), Some(99)).unwrap(), with(Some(path("pid", "/proc/99/ns/pid"))));
    assert!(matches!(of(PidNamespace::Container("c".into()), None), Err(OciSpecError::NoTarget)));
}

#[test]
fn mounts_keep_their_options_and_cgroups_are_the_runtimes_affair() {
    let tmpfs = Mount {
        fstype: "tmpfs".into(),
        source: "tmpfs".into(),
        target: "/dev".into(),
        flags: (MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME).bits(),
        data: "mode=755,size=65536k,context=\"system_u:object_r:container_file_t:s0:c4,c5\"".into(),
        ..Mount::default()
    };
    let volume = Mount {
        source: "/data".into(),
        target: "/volume".into(),
        recursive: true,
        readonly: true,
        recursive_readonly: true,
        propagation: Propagation::Private,
        ..Mount::default()
    };
    let view = Mount { target: "/sys/fs/cgroup".into(), fstype: "tmpfs".into(), readonly: true, ..Mount::default() };
    let below = Mount { target: "/sys/fs/cgroup/cpu".into(), source: "/sys/x".into(), ..Mount::default() };
    let document =
        document(&LaunchSpec { mounts: vec![tmpfs, volume.clone(), view, below], ..spec() }, |_| {}).unwrap();
    let expected = json!([
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/volume", "type": "bind", "source": "/data", "options": ["ro", "rbind", "rro", "rprivate"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ]);
    assert_eq!(document["mounts"], expected);
    let shared = Mount { propagation: Propagation::Shared, ..volume };
    let refused = super::tests::document(&LaunchSpec { mounts: vec![shared], ..spec() }, |_| {}).unwrap_err();
    assert_eq!(refused.to_string(), "bidirectional propagation of /volume is not offered by runtime handlers");
}

#[test]
fn devices_and_limits_are_given_as_they_are() {
    let device =
        |path: &str| Device { path: path.into(), kind: "c".into(), major: 10, minor: 200, ..Device::default() };
    let document =
        document(&LaunchSpec { devices: vec![device("/dev/null"), device("/dev/net/tun")], ..spec() }, |_| {});
    let linux = document.unwrap()["linux"].clone();
    assert_eq!(linux["devices"].as_array().unwrap().len(), 1, "runtimes make /dev/null themselves");
    assert_eq!(linux["devices"][0]["path"], "/dev/net/tun");
    assert_eq!(linux["resources"]["cpu"], json!({"shares": 512}));
    assert_eq!(linux["resources"]["memory"], json!({"limit": 1 << 20}));
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "access": "rw", "type": "c", "major": 1},
    ]);
    assert_eq!(linux["resources"]["devices"], rules);
    assert_eq!(linux["cgroupsPath"], "/pods/crio-p1");
    assert_eq!(cgroups_path(&pod(Driver::Systemd).cgroup, true), "kubepods-pod1.slice:crio:p1");
}

#[test]
fn a_container_cannot_say_that_it_is_of_another_pod() {
    let annotations = document(&spec(), |_| {}).unwrap()["annotations"].clone();
    for (key, value) in [
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri.sandbox-id", "p1"),
        ("io.kubernetes.cri.sandbox-namespace", "shop"),
        ("io.kubernetes.cri.container-name", "server"),
        ("io.kubernetes.cri-o.ContainerType", "container"),
        ("io.kubernetes.cri-o.SandboxID", "p1"),
    ] {
        assert_eq!(annotations[key], value, "{key}");
    }
    let pod = pod(Driver::Cgroupfs);
    let first = sandbox_container(&pod, Path::new("/r"), Path::new("/shim"), "/reaper", false);
    assert_eq!(first["annotations"]["io.kubernetes.cri.container-type"], "sandbox");
    assert_eq!(first["process"]["capabilities"], json!({}));
}

#[test]
fn what_cannot_be_said_is_refused() {
    let mapped = document(&LaunchSpec { user_namespace: true, ..spec() }, |_| {}).unwrap_err();
    assert_eq!(mapped.to_string(), "a user namespace is not offered by runtime handlers");
    let mut bytes = spec();
    bytes.process.env = vec![STANDARD.encode(b"A=\xff")];
    assert!(matches!(document(&bytes, |_| {}), Err(OciSpecError::Text { .. })));
}

#[test]
fn a_root_that_another_shim_mounts_is_not_mounted_by_us() {
    let mut spec = spec();
    spec.rootfs.lower = vec!["/l/2".into(), "/l/1".into()];
    (spec.rootfs.upper, spec.rootfs.work) = ("/c/upper".into(), "/c/work".into());
    let expected = json!([{"type": "overlay", "source": "overlay",
        "options": ["lowerdir=/l/2:/l/1", "upperdir=/c/upper", "workdir=/c/work"]}]);
    assert_eq!(root_mounts(&mut spec).unwrap(), expected);
    assert!(spec.rootfs.lower.is_empty() && spec.rootfs.target == "/layers/merged");
    let mut single = LaunchSpec { rootfs: Rootfs { lower: vec!["/l/1".into()], ..Rootfs::default() }, ..spec };
    let expected = json!([{"type": "bind", "source": "/l/1", "options": ["bind", "ro"]}]);
    assert_eq!(root_mounts(&mut single).unwrap(), expected);
    single.mounts = vec![Mount { target: "/image".into(), image: Some(Rootfs::default()), ..Mount::default() }];
    let refused = root_mounts(&mut single).unwrap_err().to_string();
    assert_eq!(refused, "an image as a volume, for /image, is not offered by runtime handlers");
}
