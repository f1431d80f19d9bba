//! From a container's configuration to a [`LaunchSpec`]: every decision is made here, the launcher makes none.

mod devices;
mod environment;
mod error;
mod layers;
mod mounts;
mod security;
mod signal;
mod user;

use std::path::{Component, Path, PathBuf};

use nodeagent_cri_api::{ContainerConfig, LinuxContainerSecurityContext, NamespaceMode};
use nodeagent_shim::protocol::{LaunchSpec, PidNamespace, Placement, ProcessSpec, Rootfs as LaunchRootfs};

pub use error::SpecError;
pub(super) use mounts::image_of;
pub use mounts::{with_context, without_context};
pub use signal::to_cri as to_cri_signal;

use super::record::User;
use super::{capabilities, cdi, seccomp};
use crate::cgroup::{CgroupPath, Cgroups, DeviceRule};
use crate::handler::Handlers;
use crate::image::{ImageConfig, Rootfs};
use crate::kernel::Kernel;
use crate::sandbox::SandboxRecord;
use crate::seccomp::Filters;
use crate::selinux::{Labels, Selinux};

/// What containers are given by default, and what the host can give.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// The daemon's own bounding set.
    pub bounding: u64,
    /// Capabilities of a container that asks for none.
    pub capabilities: Vec<String>,
    /// Resource limits: number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Most processes in one container; 0 for no limit of its own.
    pub pids_limit: u64,
    /// What the kernel can do.
    pub kernel: Kernel,
    /// Seccomp filters built so far.
    pub seccomp: Filters,
    /// Where vendors describe their devices; a later directory counts for more.
    pub cdi_dirs: Vec<PathBuf>,
    /// Other runtimes.
    pub handlers: Handlers,
    /// Labels, where SELinux is on.
    pub selinux: Option<Selinux>,
}

/// What a container is put together from.
pub struct Inputs<'a> {
    /// The container's id.
    pub id: &'a str,
    /// As it was asked for.
    pub config: &'a ContainerConfig,
    /// Its pod.
    pub pod: &'a SandboxRecord,
    /// Files of its pod.
    pub pod_dir: &'a Path,
    /// Defaults of its image.
    pub image: &'a ImageConfig,
    /// Its layers.
    pub rootfs: &'a Rootfs,
    /// Its cgroup.
    pub cgroup: &'a CgroupPath,
    /// The host's cgroups.
    pub cgroups: &'a Cgroups,
    /// The host.
    pub host: &'a HostFacts,
    /// The container named as target of its PID namespace, by its full id.
    pub target: Option<String>,
    /// Layers of the images that are mounted as volumes, in the order of their mounts.
    pub volumes: &'a [Rootfs],
    /// Its AppArmor profile, which is loaded.
    pub apparmor_profile: Option<String>,
}

impl Inputs<'_> {
    fn context(&self) -> LinuxContainerSecurityContext {
        let linux = self.config.linux.as_ref();
        linux.and_then(|linux| linux.security_context.clone()).unwrap_or_default()
    }
}

/// A container, put together.
#[derive(Debug)]
pub struct Built {
    /// For the shim.
    pub spec: LaunchSpec,
    /// Who runs in it.
    pub user: User,
    /// Signal number of a polite stop.
    pub stop_signal: i32,
    /// What its cgroup lets it use.
    pub device_rules: Vec<DeviceRule>,
    /// Label of its files, if they have one.
    pub file_label: Option<String>,
    /// Programs that its devices want to be run.
    pub hooks: Vec<cdi::Hook>,
}

/// Where the launcher mounts the root file system, in its own mount namespace.
pub fn mount_point(rootfs: &Rootfs) -> PathBuf {
    rootfs.container_dir.join("merged")
}

/// The layers of an image, without one to write to.
fn readonly_layers(rootfs: &Rootfs) -> LaunchRootfs {
    LaunchRootfs {
        lower: rootfs.lower.iter().map(|path| text(path)).collect(),
        target: text(&mount_point(rootfs)),
        ..LaunchRootfs::default()
    }
}

/// Puts a container together. Looks at the image's files and at mounts' sources on the host, hence blocks.
pub fn build(inputs: &Inputs<'_>) -> Result<Built, SpecError> {
    let context = inputs.context();
    security::check(&context, inputs.pod)?;
    let user = user::resolve(&context, inputs.image, inputs.rootfs)?;
    let sets = capabilities::sets(security::requested(&context), &inputs.host.capabilities, inputs.host.bounding)?;
    let edits = cdi::resolve(&inputs.host.cdi_dirs, &cdi::names(inputs.config)).map_err(SpecError::Cdi)?;
    let mut devices = devices::resolve(inputs.config, &edits.devices, context.privileged)?;
    let ids = inputs.pod.id_maps();
    if let Some(ids) = &ids {
        devices::map_owners(&mut devices.nodes, ids);
    }
    let labels = labels(inputs, &context)?;
    let file_label = labels.as_ref().map(|labels| labels.file.to_string());
    let resources = inputs.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let process = ProcessSpec {
        args: environment::arguments(inputs.config, inputs.image)?,
        env: environment::variables(inputs, &edits.env, &user),
        cwd: environment::working_dir(inputs.config, inputs.image),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.iter().chain(&edits.groups).copied().collect(),
        umask: None,
        capabilities: sets,
        no_new_privs: context.no_new_privs,
        rlimits: inputs.host.rlimits.clone(),
        oom_score_adj: resources.map(|resources| i32::try_from(resources.oom_score_adj).unwrap_or(0)),
        seccomp: seccomp::filter(&context, &inputs.host.seccomp, sets.bounding).map_err(SpecError::Seccomp)?,
        selinux_label: labels.as_ref().map(|labels| labels.process.to_string()),
        apparmor_profile: inputs.apparmor_profile.clone(),
        terminal: inputs.config.tty,
    };
    let unrestricted = context.privileged;
    let spec = LaunchSpec {
        container: inputs.id.to_owned(),
        rootfs: LaunchRootfs {
            upper: text(&inputs.rootfs.upper),
            work: text(&inputs.rootfs.work),
            context: file_label.clone(),
            ..readonly_layers(inputs.rootfs)
        },
        mounts: mounts::all(inputs, &edits.mounts, context.privileged, file_label.as_deref())?,
        devices: devices.nodes,
        masked_paths: if unrestricted { Vec::new() } else { context.masked_paths.clone() },
        readonly_paths: if unrestricted { Vec::new() } else { context.readonly_paths.clone() },
        readonly_rootfs: context.readonly_rootfs,
        pid_namespace: pid_namespace(&context, inputs.target.clone())?,
        user_namespace: ids.is_some(),
        // on v1 the view is made of bind mounts instead
        new_cgroup_namespace: inputs.cgroups.version() == 2 && !context.privileged,
        cgroups: inputs.cgroups.attach_dirs(inputs.cgroup),
        placement: if inputs.cgroups.made_by_systemd() { Placement::Wait } else { Placement::Attach },
        process,
        log_path: log_path(inputs.pod, inputs.config)?,
        stdin: inputs.config.stdin,
        stdin_once: inputs.config.stdin_once,
        oci: None,
        hooks: None,
    };
    let stop_signal = signal::of(inputs.config, inputs.image);
    let hooks = edits.hooks;
    Ok(Built { spec, user, stop_signal, device_rules: devices.rules, file_label, hooks })
}

/// The container's labels: its own options, else its pod's. One that may see the host's processes is not confined.
fn labels(inputs: &Inputs<'_>, context: &LinuxContainerSecurityContext) -> Result<Option<Labels>, SpecError> {
    let Some(selinux) = &inputs.host.selinux else { return Ok(None) };
    let options = context.namespace_options.clone().unwrap_or_default();
    let of_host = options.pid() == NamespaceMode::Node || options.ipc() == NamespaceMode::Node;
    let confined = !context.privileged && !of_host;
    let asked = context.selinux_options.as_ref().or_else(|| inputs.pod.selinux_options());
    let labels = selinux.labels(asked, &inputs.pod.selinux_level, confined);
    labels.map(Some).map_err(|error| SpecError::Invalid(error.to_string()))
}

fn pid_namespace(context: &LinuxContainerSecurityContext, target: Option<String>) -> Result<PidNamespace, SpecError> {
    let options = context.namespace_options.clone().unwrap_or_default();
    match (options.pid(), target) {
        (NamespaceMode::Pod, _) => Ok(PidNamespace::Pod),
        (NamespaceMode::Container, _) => Ok(PidNamespace::New),
        (NamespaceMode::Node, _) => Ok(PidNamespace::Host),
        (NamespaceMode::Target, Some(id)) => Ok(PidNamespace::Container(id)),
        (NamespaceMode::Target, None) => {
            Err(SpecError::Invalid("the PID namespace's target is not a running container of the pod".to_owned()))
        }
    }
}

/// The log's absolute path; none unless both halves are given. It stays below the pod's directory: the shim opens it as root.
fn log_path(pod: &SandboxRecord, config: &ContainerConfig) -> Result<Option<String>, SpecError> {
    let (directory, file) = (&pod.config.log_directory, Path::new(&config.log_path));
    if directory.is_empty() || config.log_path.is_empty() {
        return Ok(None);
    }
    if !file.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(SpecError::Invalid(format!("log_path `{}` leads out of the pod's log directory", config.log_path)));
    }
    Ok(Some(text(&Path::new(directory).join(file))))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
