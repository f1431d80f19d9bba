//! What can go wrong between fork and exec.

use nix::errno::Errno;

use crate::protocol::ErrorKind;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Descriptors 0, 1, 2.
    #[error("set up standard stream {number}")]
    Stdio { number: i32, source: Errno },
    #[error("make a session")]
    Session { source: Errno },
    #[error("wait for the cgroup")]
    Placement { source: Errno },
    #[error("attach to cgroup {dir}")]
    Cgroup { dir: String, source: Errno },
    #[error("enter or make {what} namespace")]
    Namespace { what: &'static str, source: Errno },
    #[error("set oom_score_adj to {value}")]
    OomScore { value: i32, source: Errno },
    #[error("set resource limit {resource} to {soft}:{hard}")]
    Rlimit { resource: u32, soft: u64, hard: u64, source: Errno },
    #[error("root file system has no layers")]
    NoLayers,
    #[error("mount the layers at {target}")]
    Rootfs { target: String, source: Errno },
    #[error("map the ids of {path}: its file system may not support that")]
    IdMapped { path: String, source: Errno },
    #[error("id {id} is not mapped in the pod's user namespace")]
    UnmappedId { id: u32 },
    #[error("the pod has no user namespace")]
    NoUserNamespace,
    #[error("give {path} to the container's root")]
    Owner { path: String, source: Errno },
    #[error("enter the pod's user namespace")]
    UserNamespace { source: Errno },
    #[error("open {path}")]
    Open { path: String, source: Errno },
    #[error("open mount source {path}")]
    MountSource { path: String, source: Errno },
    #[error("make or open {path} in the container")]
    Target { path: String, source: Errno },
    #[error("mount {what} on {target}")]
    Mount { what: String, target: String, source: Errno },
    #[error("{target} was replaced while {what} was mounted on it")]
    Replaced { what: String, target: String },
    #[error("set attributes of the mount at {target}")]
    Attributes { target: String, source: Errno },
    #[error("make device {path}")]
    Device { path: String, source: Errno },
    #[error("device {path} has kind {kind:?}: it must be c or b")]
    DeviceKind { path: String, kind: String },
    #[error("mask {path}")]
    Mask { path: String, source: Errno },
    #[error("make {path} read-only")]
    Readonly { path: String, source: Errno },
    #[error("/dev/null is not the null device")]
    NotNull,
    #[error("{stage} hook {path}: {how}")]
    Hook { stage: &'static str, path: String, how: String },
    #[error("run {stage} hook {path}")]
    RunHook { stage: &'static str, path: String, source: Errno },
    #[error("make the container's root the root")]
    Pivot { source: Errno },
    #[error("set up the terminal")]
    Terminal { source: Errno },
    #[error("decode {what} of the launch request")]
    Encoding { what: &'static str },
    #[error("{what} contains a zero byte")]
    ZeroByte { what: &'static str },
    #[error("go to working directory {path}")]
    Cwd { path: String, source: Errno },
    #[error("working directory {path} is outside the container")]
    CwdOutside { path: String },
    #[error("set {what} label {label:?}")]
    Label { what: &'static str, label: String, source: Errno },
    #[error("set user and groups {uid}:{gid}")]
    User { uid: u32, gid: u32, source: Errno },
    #[error("set capabilities")]
    Capabilities { source: Errno },
    #[error("set no_new_privs")]
    NoNewPrivs { source: Errno },
    #[error("load the seccomp filter")]
    Seccomp { source: Errno },
    #[error("no program to execute is given")]
    NoProgram,
    #[error("execute {program:?}")]
    Execute { program: String, source: Errno },
    #[error("{program:?}: executable file not found in PATH")]
    NotInPath { program: String },
}

impl LaunchError {
    /// Class and exit code of this failure, the codes being those of shells.
    pub fn class(&self) -> (ErrorKind, i32) {
        match self {
            Self::NotInPath { .. } => (ErrorKind::CannotExecute, 127),
            Self::Execute { source: Errno::ENOENT | Errno::ENOTDIR, .. } => (ErrorKind::CannotExecute, 127),
            Self::Execute { .. } => (ErrorKind::CannotExecute, 126),
            Self::NoLayers
            | Self::DeviceKind { .. }
            | Self::UnmappedId { .. }
            | Self::NoUserNamespace
            | Self::Encoding { .. }
            | Self::ZeroByte { .. }
            | Self::NoProgram => (ErrorKind::Invalid, 128),
            _ => (ErrorKind::System, 128),
        }
    }
}

/// An error with its causes, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
