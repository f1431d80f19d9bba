//! Whole launch specifications from whole configurations.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nodeagent_cri_api::{
    Capability, KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount as AskedMount, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    SeLinuxOption,
};
use nodeagent_shim::protocol::Mount;

use super::*;
use crate::cgroup::{Driver, Hierarchy, Layout};
use crate::sandbox::SandboxState;
use crate::seccomp::Filters;

/// A pod, an image and a host; tests change what they are about.
struct Fixture {
    dir: tempfile::TempDir,
    pod: SandboxRecord,
    config: ContainerConfig,
    image: ImageConfig,
    cgroups: Cgroups,
    target: Option<String>,
    selinux: Option<crate::selinux::Selinux>,
}

fn own_pid() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("lower/etc")).unwrap();
    fs::write(dir.path().join("lower/etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n").unwrap();
    fs::create_dir(dir.path().join("upper")).unwrap();
    let layout = Layout::V2 { root: "/sys/fs/cgroup".into() };
    let cgroups = Cgroups::new(layout, Driver::Cgroupfs);
    let metadata = PodSandboxMetadata { name: "pod".into(), ..PodSandboxMetadata::default() };
    let context = LinuxSandboxSecurityContext { namespace_options: Some(own_pid()), ..Default::default() };
    let pod = SandboxRecord {
        id: "p1".into(),
        created_at: 1,
        state: SandboxState::Ready,
        config: PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: "/var/log/pods/p".into(),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..PodSandboxConfig::default()
        },
        runtime_handler: String::new(),
        cgroup: cgroups.path_of("/pods", "p1").unwrap(),
        made_parent: false,
        shim_pid: 1,
        first_pid: 0,
        selinux_level: "s0:c4,c5".into(),
        netns: None,
        network_owed: false,
        ips: Vec::new(),
        resized: nodeagent_cri_api::UpdatePodSandboxResourcesRequest::default(),
    };
    let security_context = LinuxContainerSecurityContext { namespace_options: Some(own_pid()), ..Default::default() };
    let linux = LinuxContainerConfig { security_context: Some(security_context), ..Default::default() };
    let config = ContainerConfig { linux: Some(linux), log_path: "c/0.log".into(), ..Default::default() };
    let image = ImageConfig { entrypoint: vec!["/entry".into()], cmd: vec!["arg".into()], ..ImageConfig::default() };
    Fixture { dir, pod, config, image, cgroups, target: None, selinux: None }
}

impl Fixture {
    fn context(&mut self) -> &mut LinuxContainerSecurityContext {
        self.config.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn build(&self) -> Result<Built, SpecError> {
        let host = HostFacts {
            bounding: (1 << 41) - 1,
            capabilities: vec!["CHOWN".into(), "KILL".into()],
            rlimits: vec![(7, 1024, 4096)],
            pids_limit: 0,
            kernel: Kernel::from_release("6.1.0"),
            seccomp: Filters::new((6, 1)),
            cdi_dirs: vec![self.dir.path().join("cdi")],
            handlers: crate::handler::Handlers::default(),
            selinux: self.selinux.clone(),
        };
        let rootfs = Rootfs {
            lower: vec![self.dir.path().join("lower")],
            upper: self.dir.path().join("upper"),
            work: self.dir.path().join("work"),
            container_dir: self.dir.path().to_owned(),
        };
        build(&Inputs {
            id: "c1",
            config: &self.config,
            pod: &self.pod,
            pod_dir: Path::new("/run/pods/p1"),
            image: &self.image,
            rootfs: &rootfs,
            cgroup: &self.cgroups.path_of("/pods", "c1").unwrap(),
            cgroups: &self.cgroups,
            host: &host,
            target: self.target.clone(),
            volumes: &[],
            apparmor_profile: None,
        })
    }

    fn spec(&self) -> LaunchSpec {
        self.build().unwrap().spec
    }

    fn env(&self) -> Vec<String> {
        let decode = |text: &String| String::from_utf8(STANDARD.decode(text).unwrap()).unwrap();
        self.spec().process.env.iter().map(decode).collect()
    }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn mount<'a>(spec: &'a LaunchSpec, target: &str) -> &'a Mount {
    spec.mounts.iter().find(|mount| mount.target == target).unwrap_or_else(|| panic!("nothing on {target}"))
}

#[test]
fn command_and_arguments_replace_those_of_the_image() {
    let table: [(&[&str], &[&str], &[&str]); 4] = [
        (&[], &[], &["/entry", "arg"]),
        (&[], &["x", "y"], &["/entry", "x", "y"]),
        (&["/own"], &[], &["/own"]),
        (&["/own", "-a"], &["x"], &["/own", "-a", "x"]),
    ];
    for (command, args, expected) in table {
        let mut fixture = fixture();
        (fixture.config.command, fixture.config.args) = (texts(command), texts(args));
        assert_eq!(fixture.spec().process.args, expected);
    }
}

#[test]
fn nothing_to_execute_is_an_error() {
    let mut fixture = fixture();
    fixture.image = ImageConfig::default();
    assert!(matches!(fixture.build(), Err(SpecError::NoCommand)));
}

#[test]
fn the_environment_is_laid_over_the_image_over_the_defaults() {
    let mut fixture = fixture();
    fixture.image.env = texts(&["PATH=/image", "A=image", "B=image"]);
    let own = |key: &str, value: &str| KeyValue { key: key.into(), value: value.to_owned().into() };
    fixture.config.envs = vec![own("B", "own"), own("C", "1=2")];
    assert_eq!(fixture.env(), ["PATH=/image", "HOSTNAME=pod", "A=image", "B=own", "C=1=2", "HOME=/root"]);
    fixture.config.tty = true;
    fixture.config.envs.push(own("HOME", "/elsewhere"));
    assert!(fixture.env().contains(&"TERM=xterm".to_owned()));
    assert!(fixture.env().contains(&"HOME=/elsewhere".to_owned()));
}

#[test]
fn user_and_home_come_from_the_image() {
    let mut fixture = fixture();
    fixture.image.user = "web".into();
    let built = fixture.build().unwrap();
    assert_eq!((built.spec.process.uid, built.spec.process.gid, built.user.groups), (33, 33, vec![33]));
    assert!(fixture.env().contains(&"HOME=/srv".to_owned()));
}

#[test]
fn the_working_directory_is_asked_for_or_that_of_the_image_or_the_root() {
    let mut fixture = fixture();
    assert_eq!(fixture.spec().process.cwd, "/");
    fixture.image.working_dir = "/image".into();
    assert_eq!(fixture.spec().process.cwd, "/image");
    fixture.config.working_dir = "/own".into();
    assert_eq!(fixture.spec().process.cwd, "/own");
}

#[test]
fn default_mounts_come_first_and_can_be_replaced() {
    let mut fixture = fixture();
    let data = fixture.dir.path().canonicalize().unwrap();
    let asked =
        |target: &str| AskedMount { container_path: target.into(), host_path: text(&data), ..AskedMount::default() };
    fixture.config.mounts = vec![asked("/a/b/c"), asked("/a"), asked("/dev/shm")];
    let spec = fixture.spec();
    assert_eq!(mount(&spec, "/dev/shm").source, text(&data));
    assert_eq!(mount(&spec, "/etc/resolv.conf").source, "/run/pods/p1/resolv.conf");
    assert_eq!(mount(&spec, "/sys/fs/cgroup").fstype, "cgroup2");
    let order: Vec<&str> = spec.mounts.iter().map(|mount| mount.target.as_str()).collect();
    let at = |target: &str| order.iter().position(|each| *each == target).unwrap();
    assert!(at("/sys") < at("/sys/fs/cgroup") && at("/dev") < at("/dev/pts"));
    assert!(at("/etc/hostname") < at("/a") && at("/a") < at("/a/b/c"));
    assert!(!order.contains(&"/etc/hosts"));
}

#[test]
fn a_privileged_container_is_not_fenced_in() {
    let mut fixture = fixture();
    let context = fixture.context();
    context.masked_paths = texts(&["/proc/kcore"]);
    context.readonly_paths = texts(&["/proc/sys"]);
    let spec = fixture.spec();
    assert_eq!((spec.masked_paths.len(), spec.readonly_paths.len()), (1, 1));
    let readonly = nix::mount::MsFlags::MS_RDONLY.bits();
    assert_ne!(mount(&spec, "/sys").flags & readonly, 0);
    assert!(spec.new_cgroup_namespace);
    fixture.context().privileged = true;
    let spec = fixture.spec();
    assert_eq!((spec.masked_paths.len(), spec.readonly_paths.len()), (0, 0));
    assert_eq!(mount(&spec, "/sys").flags & readonly, 0);
    assert_eq!(spec.process.capabilities.bounding, (1 << 41) - 1);
}

#[test]
fn capabilities_start_from_the_configured_defaults() {
    let mut fixture = fixture();
    let add = Capability { add_capabilities: texts(&["NET_ADMIN"]), ..Capability::default() };
    fixture.context().capabilities = Some(add);
    assert_eq!(fixture.spec().process.capabilities.effective, 1 | 1 << 5 | 1 << 12);
}

#[test]
fn pid_namespaces_are_own_shared_or_joined() {
    let mut fixture = fixture();
    let mut with = |mode: NamespaceMode, pod: NamespaceMode, target: Option<&str>| {
        fixture.target = target.map(str::to_owned);
        fixture.context().namespace_options = Some(NamespaceOption { pid: mode.into(), ..Default::default() });
        let options = NamespaceOption { pid: pod.into(), ..Default::default() };
        let linux = fixture.pod.config.linux.as_mut().unwrap();
        linux.security_context.as_mut().unwrap().namespace_options = Some(options);
        fixture.build().map(|built| built.spec.pid_namespace).map_err(|error| error.to_string())
    };
    assert_eq!(with(NamespaceMode::Container, NamespaceMode::Container, None), Ok(PidNamespace::New));
    assert_eq!(with(NamespaceMode::Pod, NamespaceMode::Pod, None), Ok(PidNamespace::Pod));
    assert_eq!(with(NamespaceMode::Node, NamespaceMode::Container, None), Ok(PidNamespace::Host));
    let joined = with(NamespaceMode::Target, NamespaceMode::Container, Some("c0"));
    assert_eq!(joined, Ok(PidNamespace::Container("c0".into())));
    assert!(with(NamespaceMode::Target, NamespaceMode::Container, None).unwrap_err().contains("target"));
    assert!(with(NamespaceMode::Pod, NamespaceMode::Container, None).unwrap_err().contains("none to share"));
}

#[test]
fn v1_shows_the_containers_own_directories() {
    let mut fixture = fixture();
    let memory = Hierarchy { mountpoint: "/sys/fs/cgroup/memory".into(), controllers: texts(&["memory"]) };
    fixture.cgroups = Cgroups::new(Layout::V1 { hierarchies: vec![memory] }, Driver::Cgroupfs);
    let spec = fixture.spec();
    assert_eq!(spec.cgroups, ["/sys/fs/cgroup/memory/pods/crio-c1"]);
    let view = mount(&spec, "/sys/fs/cgroup/memory");
    assert_eq!((view.source.as_str(), view.readonly), ("/sys/fs/cgroup/memory/pods/crio-c1", true));
    assert_eq!(mount(&spec, "/sys/fs/cgroup").fstype, "tmpfs");
    assert!(!spec.new_cgroup_namespace);
}

#[test]
fn log_score_and_limits_are_handed_on() {
    let mut fixture = fixture();
    let resources = LinuxContainerResources { oom_score_adj: -997, ..Default::default() };
    fixture.config.linux.as_mut().unwrap().resources = Some(resources);
    let spec = fixture.spec();
    assert_eq!(spec.log_path.as_deref(), Some("/var/log/pods/p/c/0.log"));
    assert_eq!(spec.process.oom_score_adj, Some(-997));
    assert_eq!(spec.process.rlimits, [(7, 1024, 4096)]);
    fixture.config.log_path.clear();
    assert_eq!(fixture.spec().log_path, None);
}

#[test]
fn a_device_by_name_brings_node_rule_mount_variable_and_group() {
    let mut fixture = fixture();
    fs::create_dir(fixture.dir.path().join("cdi")).unwrap();
    let text = r#"{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"a","containerEdits":{
        "env":["DRIVER=on"],"additionalGids":[44],
        "deviceNodes":[{"path":"/dev/accelerator","hostPath":"/dev/null","permissions":"rw","fileMode":432,"gid":44}],
        "mounts":[{"hostPath":"/etc","containerPath":"/driver","options":["ro","rbind"]}]}}]}"#;
    fs::write(fixture.dir.path().join("cdi/c.json"), text).unwrap();
    fixture.config.cdi_devices = vec![nodeagent_cri_api::CdiDevice { name: "v.com/c=a".into() }];
    let built = fixture.build().unwrap();
    let node = built.spec.devices.last().unwrap();
    assert_eq!(
        (node.path.as_str(), node.major, node.minor, node.mode, node.gid),
        ("/dev/accelerator", 1, 3, 0o660, 44)
    );
    assert_eq!(built.device_rules.last().unwrap().to_string(), "c 1:3 rw");
    let driver = mount(&built.spec, "/driver");
    assert!(driver.readonly && driver.recursive && !driver.file);
    assert_eq!(built.spec.process.groups, [0, 44]);
    assert!(fixture.env().contains(&"DRIVER=on".to_owned()));
    fixture.config.cdi_devices[0].name = "v.com/c=b".into();
    assert!(fixture.build().unwrap_err().to_string().contains("did you mean `v.com/c=a`?"));
}

#[test]
fn in_a_user_namespace_what_is_roots_belongs_to_root_inside() {
    let mut fixture = fixture();
    let map = vec![nodeagent_cri_api::IdMapping { host_id: 1000, container_id: 0, length: 65_536 }];
    let userns = nodeagent_cri_api::UserNamespace { mode: NamespaceMode::Pod.into(), uids: map.clone(), gids: map };
    let options = NamespaceOption { userns_options: Some(userns), ..own_pid() };
    let linux = fixture.pod.config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().namespace_options = Some(options);
    let spec = fixture.spec();
    assert!(spec.user_namespace);
    assert!(spec.devices.iter().all(|device| (device.uid, device.gid) == (1000, 1000)));
    assert!(mount(&spec, "/dev").data.ends_with("uid=1000,gid=1000"));
    assert!(mount(&spec, "/dev/pts").data.ends_with("gid=1005"));
    // ids of the process stay those inside
    assert_eq!((spec.process.uid, spec.process.gid), (0, 0));
}

#[test]
fn labels_are_given_only_where_selinux_is_on() {
    let mut fixture = fixture();
    let plain = fixture.build().unwrap();
    assert_eq!((plain.spec.process.selinux_label, plain.spec.rootfs.context, plain.file_label), (None, None, None));
    assert!(plain.spec.mounts.iter().all(|mount| !mount.data.contains("context")));

    fixture.selinux = Some(crate::selinux::Selinux::from_contexts(""));
    let built = fixture.build().unwrap();
    let file = "system_u:object_r:container_file_t:s0:c4,c5";
    assert_eq!(built.spec.process.selinux_label.as_deref(), Some("system_u:system_r:container_t:s0:c4,c5"));
    assert_eq!((built.spec.rootfs.context.as_deref(), built.file_label.as_deref()), (Some(file), Some(file)));
    let dev = built.spec.mounts.iter().find(|mount| mount.target == "/dev").unwrap();
    assert!(dev.data.ends_with(&format!(",context=\"{file}\"")), "{}", dev.data);
    let proc = built.spec.mounts.iter().find(|mount| mount.target == "/proc").unwrap();
    assert_eq!(proc.data, "", "its labels are the kernel's");
    let queues = built.spec.mounts.iter().find(|mount| mount.target == "/dev/mqueue").unwrap();
    assert_eq!(queues.data, "", "it is mounted already, by the kernel, and takes no options");

    let options = SeLinuxOption { level: "s0:c8,c9".into(), ..Default::default() };
    fixture.context().selinux_options = Some(options);
    let label = fixture.build().unwrap().spec.process.selinux_label;
    assert_eq!(label.as_deref(), Some("system_u:system_r:container_t:s0:c8,c9"));
    fixture.context().privileged = true;
    let label = fixture.build().unwrap().spec.process.selinux_label;
    assert_eq!(label.as_deref(), Some("system_u:system_r:spc_t:s0:c8,c9"));
}
