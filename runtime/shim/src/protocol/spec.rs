//! What a launcher is to make: the container's file systems, its place and its process.

use serde::{Deserialize, Serialize};

/// Everything that is needed to launch a container; the launcher decides nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchSpec {
    /// Container id, 64 lower-case hex digits.
    pub container: String,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Mounted in this order, after the root file system.
    pub mounts: Vec<Mount>,
    /// Device nodes to be made in `/dev`.
    pub devices: Vec<Device>,
    /// Paths covered by an empty directory or `/dev/null`.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// Make the whole root file system read-only.
    pub readonly_rootfs: bool,
    /// Which PID namespace.
    pub pid_namespace: PidNamespace,
    /// Run in the pod's user namespace ([`PodSetup::user_namespace`](super::PodSetup::user_namespace)): ids of
    /// [`Self::process`] are those inside, and the root file system is mapped.
    pub user_namespace: bool,
    /// A cgroup namespace of its own (v2 only has a view worth hiding).
    pub new_cgroup_namespace: bool,
    /// Absolute paths of the cgroups to attach to: one for v2, one per controller for v1. The last component of each
    /// must contain [`Self::container`]: all that is in them is killed with the container.
    pub cgroups: Vec<String>,
    /// Who puts the process into its cgroup.
    pub placement: Placement,
    /// The process.
    pub process: ProcessSpec,
    /// Where the CRI log goes; none: output is dropped.
    pub log_path: Option<String>,
    /// Keep standard input open for attach.
    pub stdin: bool,
    /// Close standard input when the first attached client leaves.
    pub stdin_once: bool,
    /// Another runtime makes the container, by the `config.json` of this bundle; of all the above only the file systems of
    /// layers, the cgroups (to tell who is in there), the terminal, the streams and the log are ours then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciRuntime>,
    /// Programs that run while the container is made; a shim whose [`Hello`](super::Hello) does not speak of them would
    /// leave them out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Box<Hooks>>,
}

/// Programs that run while a container is made: hooks of the OCI runtime specification, as far as they are the launcher's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// The daemon runs some of its own, when all is mounted and before the container's root becomes the root: the launcher
    /// waits then for [`Call::Continue`](super::Call::Continue) after [`Event::Made`](super::Event::Made).
    pub outside: bool,
    /// Programs of the host, in the container's namespaces, before its root becomes the root (`createContainer`).
    pub create: Vec<Hook>,
    /// Programs of the container, with its rights, when all but the exec is done (`startContainer`).
    pub start: Vec<Hook>,
    /// What each of them reads: a JSON object, to which `pid` and `status` are added.
    pub state: String,
}

/// One such program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Absolute path.
    pub path: String,
    /// Its arguments, beginning with its own name; empty: the path alone.
    pub args: Vec<String>,
    /// `NAME=value`; there are no others.
    pub env: Vec<String>,
    /// Killed after that many milliseconds, and the start has failed.
    pub timeout_ms: u64,
}

/// An OCI runtime, by its command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OciRuntime {
    /// Absolute path of the program.
    pub program: String,
    /// Arguments before each command.
    pub options: Vec<String>,
    /// Directory with `config.json`; files of each step are written here too.
    pub bundle: String,
    /// What `create` leaves stands in for a container that another shim makes, perhaps in a machine of its own: it is told
    /// to have that killed (by signal 64), and only if that takes too long killed itself. A file `oom` in the bundle says
    /// that memory was short.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stand_in: bool,
}

/// Who attaches the launcher to the container's cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// The launcher itself, first thing; or it is born there, where that is one cgroup of v2.
    #[default]
    Attach,
    /// The daemon, over D-Bus: the launcher waits for [`Call::Continue`](super::Call::Continue) after [`Event::Launched`](super::Event::Launched).
    Wait,
}

/// Which PID namespace a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidNamespace {
    /// One of its own.
    #[default]
    New,
    /// The pod's shared one ([`PodSetup::shared_pid`](super::PodSetup::shared_pid)).
    Pod,
    /// The host's.
    Host,
    /// That of another container of the pod.
    Container(String),
}

/// The process to execute, for a container or inside a running one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessSpec {
    /// Program and arguments; the program is searched in `PATH` of [`Self::env`], inside the root file system.
    pub args: Vec<String>,
    /// `NAME=value`, base64 of bytes (values need not be UTF-8).
    pub env: Vec<String>,
    /// Working directory inside; created when missing.
    pub cwd: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, in order.
    pub groups: Vec<u32>,
    /// umask; `None` = 0022.
    pub umask: Option<u32>,
    /// Capability bits: bounding, effective, inheritable, permitted, ambient.
    pub capabilities: Capabilities,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// Resource limits: number of the resource, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Compiled seccomp filter, base64 of `struct sock_filter[]`; none: unconfined.
    pub seccomp: Option<String>,
    /// `/proc/self/attr/exec` for SELinux.
    pub selinux_label: Option<String>,
    /// Profile for `/proc/self/attr/apparmor/exec`.
    pub apparmor_profile: Option<String>,
    /// Allocate a terminal.
    pub terminal: bool,
}

/// Capability sets as bit masks (bit = capability number).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Ambient set.
    pub ambient: u64,
}

/// A root file system to be mounted by the launcher in its own mount namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rootfs {
    /// Lower layers, topmost first.
    pub lower: Vec<String>,
    /// Writable layer.
    pub upper: String,
    /// overlayfs work directory.
    pub work: String,
    /// Directory to mount it on.
    pub target: String,
    /// SELinux context of the mount.
    pub context: Option<String>,
}

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// File system type; empty = bind mount of [`Self::source`].
    pub fstype: String,
    /// Source path on the host (already resolved), or the file system's source.
    pub source: String,
    /// Path inside the container; opened within the root, created when missing.
    pub target: String,
    /// `MS_*` flags.
    pub flags: u64,
    /// File system options.
    pub data: String,
    /// Recursive bind.
    pub recursive: bool,
    /// Read-only (for a recursive bind: see [`Self::recursive_readonly`]).
    pub readonly: bool,
    /// Read-only for submounts too (`mount_setattr`).
    pub recursive_readonly: bool,
    /// `private`, `rslave` or `rshared`.
    pub propagation: Propagation,
    /// The source is a file: so is the target to be created.
    pub file: bool,
    /// Ids are mapped as in the pod's user namespace; for a bind mount only.
    pub idmapped: bool,
    /// An image's layers, mounted read-only, in the place of [`Self::source`].
    pub image: Option<Rootfs>,
    /// What of that image is shown: a path inside it, resolved there; empty for all.
    pub sub_path: String,
}

/// Propagation of a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// Host to container.
    Slave,
    /// Both ways.
    Shared,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Path inside the container.
    pub path: String,
    /// `c` or `b`.
    pub kind: String,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}
