//! A container in the words of the OCI runtime specification: `config.json`, and `process.json` of an exec.

use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::mount::MsFlags;
use nodeagent_cri_api::{ContainerConfig, NamespaceMode};
use nodeagent_shim::protocol::{Capabilities, LaunchSpec, Mount, PidNamespace, ProcessSpec, Propagation};
use serde_json::{Map, Value, json};

use crate::capability;
use crate::cgroup::{CgroupPath, DeviceRule, Resources};
use crate::container::rlimits;
use crate::container::spec::without_context;
use crate::sandbox::SandboxRecord;
use crate::sys;

/// Of the specification in whose words it is said.
pub const VERSION: &str = "1.0.2";

/// What another runtime cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum OciSpecError {
    /// Text that is none.
    #[error("{what} is not UTF-8, as it has to be with another runtime")]
    Text {
        /// Of which kind.
        what: &'static str,
    },
    /// Something that this way does not offer.
    #[error("{0} is not offered by runtime handlers")]
    NotOffered(String),
    /// A PID namespace of nobody.
    #[error("the container whose PID namespace is to be shared does not run")]
    NoTarget,
}

/// What a document is made of, besides the container as the launcher would be told.
pub struct Inputs<'a> {
    /// As it was asked for.
    pub config: &'a ContainerConfig,
    /// Its pod.
    pub pod: &'a SandboxRecord,
    /// Its cgroup.
    pub cgroup: &'a CgroupPath,
    /// Whether systemd makes that.
    pub by_systemd: bool,
    /// Its limits.
    pub limits: &'a Resources,
    /// Devices that it may use.
    pub devices: &'a [DeviceRule],
    /// Its seccomp profile.
    pub seccomp: Option<Value>,
    /// First process of the container whose PID namespace is to be shared.
    pub target: Option<i32>,
}

/// `config.json` of a container.
pub fn container(spec: &LaunchSpec, inputs: &Inputs<'_>) -> Result<Value, OciSpecError> {
    if spec.user_namespace {
        return Err(OciSpecError::NotOffered("a user namespace".to_owned()));
    }
    let mut spaces = namespaces_of_pod(inputs.pod);
    spaces.extend(match (&spec.pid_namespace, inputs.target) {
        (PidNamespace::New, _) => Some(json!({"type": "pid"})),
        (PidNamespace::Host, _) => None,
        (PidNamespace::Pod, _) => {
            Some(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", inputs.pod.first_pid)}))
        }
        (PidNamespace::Container(_), Some(pid)) => Some(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
        (PidNamespace::Container(_), None) => return Err(OciSpecError::NoTarget),
    });
    if spec.new_cgroup_namespace {
        spaces.push(json!({"type": "cgroup"}));
    }
    let mut linux = json!({
        "namespaces": spaces,
        "cgroupsPath": cgroups_path(inputs.cgroup, inputs.by_systemd),
        "resources": resources(inputs.limits, inputs.devices),
        "devices": spec.devices.iter().filter(|device| !is_default(&device.path)).map(|device| json!({
            "path": device.path, "type": device.kind, "major": device.major, "minor": device.minor,
            "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
        })).collect::<Vec<_>>(),
        "maskedPaths": spec.masked_paths,
        "readonlyPaths": spec.readonly_paths,
    });
    if let Some(profile) = &inputs.seccomp {
        linux["seccomp"] = profile.clone();
    }
    if let Some(context) = &spec.rootfs.context {
        linux["mountLabel"] = json!(context);
    }
    Ok(json!({
        "ociVersion": VERSION,
        "process": process(&spec.process)?,
        "root": {"path": spec.rootfs.target, "readonly": spec.readonly_rootfs},
        "mounts": mounts(spec)?,
        "annotations": annotations(inputs),
        "linux": linux,
    }))
}

/// The root of a container whose shim mounts it itself, in containerd's words. Nothing is left to our launcher to mount then.
pub fn root_mounts(spec: &mut LaunchSpec) -> Result<Value, OciSpecError> {
    if let Some(mount) = spec.mounts.iter().find(|mount| mount.image.is_some()) {
        return Err(OciSpecError::NotOffered(format!("an image as a volume, for {},", mount.target)));
    }
    let root = &mut spec.rootfs;
    let lower = std::mem::take(&mut root.lower);
    Ok(match lower.as_slice() {
        [only] if root.upper.is_empty() => json!([{"type": "bind", "source": only, "options": ["bind", "ro"]}]),
        layers => {
            let mut options = vec![format!("lowerdir={}", layers.join(":"))];
            if !root.upper.is_empty() {
                options.extend([format!("upperdir={}", root.upper), format!("workdir={}", root.work)]);
            }
            // the quotes keep the commas of the categories
            options.extend(root.context.iter().map(|context| format!("context=\"{context}\"")));
            json!([{"type": "overlay", "source": "overlay", "options": options}])
        }
    })
}

/// `config.json` of the first container of a pod. `root` is an empty directory, `reaper` the program that is to be in it.
pub(super) fn sandbox_container(
    pod: &SandboxRecord,
    root: &Path,
    reaper: &Path,
    place: &str,
    by_systemd: bool,
) -> Value {
    let mut spaces = namespaces_of_pod(pod);
    spaces.push(json!({"type": "pid"}));
    let nothing = json!(["nosuid", "noexec", "nodev"]);
    json!({
        "ociVersion": VERSION,
        "process": {
            "args": [place], "cwd": "/", "user": {"uid": 65534, "gid": 65534}, "noNewPrivileges": true,
            "env": ["PATH=/"], "capabilities": {},
        },
        "root": {"path": root, "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": nothing},
            // some runtimes make devices wherever there is a root
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]},
            {"destination": place, "type": "bind", "source": reaper, "options": ["bind", "ro", "nosuid", "nodev"]},
        ],
        "annotations": annotations_of_pod(pod, "sandbox"),
        "linux": {
            "namespaces": spaces,
            "cgroupsPath": cgroups_path(&pod.cgroup, by_systemd),
            "resources": resources(&Resources::default(), &DeviceRule::defaults()),
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"],
        },
    })
}

/// The pod's namespaces are the shim's, or the host's.
fn namespaces_of_pod(pod: &SandboxRecord) -> Vec<Value> {
    let of_shim = |kind: &str, name: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{name}", pod.shim_pid)});
    let mut all = vec![json!({"type": "mount"})];
    if !pod.host_network() {
        all.extend([of_shim("network", "net"), of_shim("uts", "uts")]);
    }
    if pod.namespaces().ipc() != NamespaceMode::Node {
        all.push(of_shim("ipc", "ipc"));
    }
    all
}

fn cgroups_path(path: &CgroupPath, by_systemd: bool) -> String {
    if !by_systemd {
        return path.to_string();
    }
    let slice = path.parent().rsplit('/').next().unwrap_or_default();
    let scope = path.name().strip_suffix(".scope").unwrap_or(path.name());
    let (prefix, name) = scope.split_once('-').unwrap_or(("crio", scope));
    format!("{slice}:{prefix}:{name}")
}

/// A process; also `process.json`.
pub fn process(spec: &ProcessSpec) -> Result<Value, OciSpecError> {
    let text = |entry: &String| {
        let bytes = STANDARD.decode(entry).unwrap_or_default();
        String::from_utf8(bytes).map_err(|_| OciSpecError::Text { what: "a variable of the environment" })
    };
    let env = spec.env.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let limits = spec.rlimits.iter().filter_map(|(number, soft, hard)| {
        let name = rlimits::name(*number)?.to_ascii_uppercase();
        let (soft, hard) = within_reach(*number, *soft, *hard);
        Some(json!({"type": format!("RLIMIT_{name}"), "soft": soft, "hard": hard}))
    });
    let mut process = json!({
        "terminal": spec.terminal,
        "user": {"uid": spec.uid, "gid": spec.gid, "additionalGids": spec.groups},
        "args": spec.args,
        "env": env,
        "cwd": if spec.cwd.is_empty() { "/" } else { &spec.cwd },
        "capabilities": capabilities(&spec.capabilities),
        "rlimits": limits.collect::<Vec<_>>(),
        "noNewPrivileges": spec.no_new_privs,
    });
    let optional = [
        ("oomScoreAdj", json!(spec.oom_score_adj)),
        ("apparmorProfile", json!(spec.apparmor_profile)),
        ("selinuxLabel", json!(spec.selinux_label)),
    ];
    for (key, value) in optional {
        if !value.is_null() {
            process[key] = value;
        }
    }
    Ok(process)
}

/// Other runtimes fail on a limit that they may not set; without the right to raise one, the daemon's own is the most.
fn within_reach(number: u32, soft: u64, hard: u64) -> (u64, u64) {
    static MAY_RAISE: LazyLock<bool> = LazyLock::new(sys::may_raise_limits);
    let most = if *MAY_RAISE { None } else { sys::hard_limit(number) };
    let hard = most.map_or(hard, |most| hard.min(most));
    (soft.min(hard), hard)
}

fn capabilities(sets: &Capabilities) -> Value {
    let names = |set: u64| -> Vec<String> {
        let all = (0..).zip(capability::NAMES);
        all.filter(|(number, _)| set & (1_u64 << number) != 0).map(|(_, name)| format!("CAP_{name}")).collect()
    };
    json!({
        "bounding": names(sets.bounding), "effective": names(sets.effective), "permitted": names(sets.permitted),
        "inheritable": names(sets.inheritable), "ambient": names(sets.ambient),
    })
}

/// Every runtime makes these itself.
fn is_default(path: &str) -> bool {
    let names = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"];
    path.strip_prefix("/dev/").is_some_and(|name| names.contains(&name))
}

fn mounts(spec: &LaunchSpec) -> Result<Vec<Value>, OciSpecError> {
    let mut all = Vec::new();
    for mount in &spec.mounts {
        // its view of cgroups is made by the runtime, for the version that the host has
        if mount.target == "/sys/fs/cgroup" {
            let readonly = mount.readonly || mount.flags & MsFlags::MS_RDONLY.bits() != 0;
            let mut options = vec!["nosuid", "noexec", "nodev", "relatime"];
            options.extend(readonly.then_some("ro"));
            all.push(json!({"destination": mount.target, "type": "cgroup", "source": "cgroup", "options": options}));
        } else if !mount.target.starts_with("/sys/fs/cgroup/") {
            all.push(one_mount(mount)?);
        }
    }
    Ok(all)
}

fn one_mount(mount: &Mount) -> Result<Value, OciSpecError> {
    let names = [
        (MsFlags::MS_RDONLY, "ro"),
        (MsFlags::MS_NOSUID, "nosuid"),
        (MsFlags::MS_NODEV, "nodev"),
        (MsFlags::MS_NOEXEC, "noexec"),
        (MsFlags::MS_NOATIME, "noatime"),
        (MsFlags::MS_RELATIME, "relatime"),
        (MsFlags::MS_STRICTATIME, "strictatime"),
    ];
    let mut options: Vec<&str> =
        names.into_iter().filter(|(flag, _)| mount.flags & flag.bits() != 0).map(|(_, name)| name).collect();
    // the label is said once for all of them, by mountLabel
    options.extend(without_context(&mount.data).split(',').filter(|option| !option.is_empty()));
    if mount.readonly && !options.contains(&"ro") {
        options.push("ro");
    }
    if !mount.fstype.is_empty() {
        return Ok(json!({
            "destination": mount.target, "type": mount.fstype, "source": mount.source, "options": options,
        }));
    }
    options.push(if mount.recursive { "rbind" } else { "bind" });
    if mount.recursive_readonly {
        options.push("rro");
    }
    options.push(match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::Slave => "rslave",
        Propagation::Shared => {
            return Err(OciSpecError::NotOffered(format!("bidirectional propagation of {}", mount.target)));
        }
    });
    if mount.idmapped {
        return Err(OciSpecError::NotOffered(format!("mapped ids of {}", mount.target)));
    }
    let source = match &mount.image {
        Some(_) if !mount.sub_path.is_empty() => {
            return Err(OciSpecError::NotOffered(format!("a sub-path of an image, for {},", mount.target)));
        }
        // mounted there by the launcher
        Some(image) => &image.target,
        None => &mount.source,
    };
    Ok(json!({"destination": mount.target, "type": "bind", "source": source, "options": options}))
}

/// Limits as `update` takes them.
pub(super) fn limits(limits: &Resources) -> Value {
    let set = |pairs: Vec<(&str, Value)>| -> Value {
        let some = |value: &Value| !value.is_null() && *value != json!(0) && *value != json!("");
        Value::Object(
            pairs.into_iter().filter(|(_, value)| some(value)).map(|(key, value)| (key.to_owned(), value)).collect(),
        )
    };
    let cpu = set(vec![
        ("shares", json!(limits.cpu_shares)),
        ("quota", json!(limits.cpu_quota)),
        ("period", json!(limits.cpu_period)),
        ("cpus", json!(limits.cpuset_cpus)),
        ("mems", json!(limits.cpuset_mems)),
    ]);
    let memory = set(vec![("limit", json!(limits.memory)), ("swap", json!(limits.memory_and_swap))]);
    let mut all = json!({"cpu": cpu, "memory": memory});
    if limits.pids > 0 {
        all["pids"] = json!({"limit": limits.pids});
    }
    // kubelet sends a zero for every page size of the node
    let huge = limits.hugepages.iter().filter(|(_, limit)| **limit > 0);
    let huge: Vec<Value> = huge.map(|(size, limit)| json!({"pageSize": size, "limit": limit})).collect();
    if !huge.is_empty() {
        all["hugepageLimits"] = json!(huge);
    }
    if !limits.unified.is_empty() {
        all["unified"] = json!(limits.unified);
    }
    all
}

fn resources(wanted: &Resources, devices: &[DeviceRule]) -> Value {
    let mut all = limits(wanted);
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for rule in devices {
        let mut one = Map::from_iter([("allow".to_owned(), json!(true)), ("access".to_owned(), json!(rule.access))]);
        if rule.kind != 'a' {
            one.insert("type".to_owned(), json!(rule.kind.to_string()));
        }
        for (key, number) in [("major", rule.major), ("minor", rule.minor)] {
            if let Some(number) = number {
                one.insert(key.to_owned(), json!(number));
            }
        }
        rules.push(Value::Object(one));
    }
    all["devices"] = json!(rules);
    all
}

/// What runtimes that put a pod into one sandbox go by: containerd's names and CRI-O's.
fn annotations_of_pod(pod: &SandboxRecord, kind: &str) -> Map<String, Value> {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let mut all: Map<String, Value> =
        pod.config.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    for (key, value) in [
        ("io.kubernetes.cri.container-type", kind),
        ("io.kubernetes.cri.sandbox-id", &pod.id),
        ("io.kubernetes.cri.sandbox-name", &metadata.name),
        ("io.kubernetes.cri.sandbox-namespace", &metadata.namespace),
        ("io.kubernetes.cri.sandbox-uid", &metadata.uid),
        ("io.kubernetes.cri-o.ContainerType", kind),
        ("io.kubernetes.cri-o.SandboxID", &pod.id),
        ("io.kubernetes.cri-o.KubeName", &metadata.name),
        ("io.kubernetes.cri-o.Namespace", &metadata.namespace),
    ] {
        all.insert(key.to_owned(), json!(value));
    }
    all
}

fn annotations(inputs: &Inputs<'_>) -> Map<String, Value> {
    let mut all = annotations_of_pod(inputs.pod, "container");
    all.extend(inputs.config.annotations.iter().map(|(key, value)| (key.clone(), json!(value))));
    let name = inputs.config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
    let image = inputs.config.image.as_ref().map_or("", |image| image.image.as_str());
    for (key, value) in [
        ("io.kubernetes.cri.container-name", name),
        ("io.kubernetes.cri.image-name", image),
        ("io.kubernetes.cri-o.ContainerName", name),
        // what a container says of itself does not make it another pod's
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri-o.ContainerType", "container"),
        ("io.kubernetes.cri.sandbox-id", &inputs.pod.id),
        ("io.kubernetes.cri-o.SandboxID", &inputs.pod.id),
    ] {
        all.insert(key.to_owned(), json!(value));
    }
    all
}

#[cfg(test)]
#[path = "oci_spec_tests.rs"]
mod tests;
