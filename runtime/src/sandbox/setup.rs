//! Making a pod: record, cgroup, files, supervisor, network. What fails is undone by the same steps that end a pod.

use std::sync::Arc;

use nodeagent_cri_api::{LinuxPodSandboxConfig, NamespaceMode, PodSandboxConfig, UpdatePodSandboxResourcesRequest};
use nodeagent_shim::protocol::PodSetup;
use tokio::sync::mpsc;

use super::record::namespaces;
use super::shim::ShimEvent;
use super::task::Beginning;
use super::{PodError, SandboxRecord, SandboxState, Shared, Shim, files, hostname, id_maps, teardown};
use crate::handler;
use crate::kernel::Kernel;
use crate::selinux::Labels;
use crate::state::Kind;
use crate::telemetry::chain;
use crate::{clock, id};

type Connected = (Shim, mpsc::Receiver<ShimEvent>);

/// A pod that could not be made, and what could not be undone of it.
pub(super) struct Failed {
    pub error: PodError,
    pub remains: Option<Beginning>,
}

fn refused(error: PodError) -> Box<Failed> {
    Box::new(Failed { error, remains: None })
}

/// Makes a pod. On failure, nothing of it is left; if something is, it is given back as a pod that is not ready, for
/// kubelet to remove.
pub(super) async fn make(
    environment: &Shared,
    config: PodSandboxConfig,
    handler: String,
) -> Result<Beginning, Box<Failed>> {
    check(&config, &handler, environment.host.kernel).map_err(refused)?;
    let mut record = plan(environment, config, handler).map_err(refused)?;
    match build(environment, &mut record).await {
        Ok((shim, events)) => {
            Ok(Beginning { record, containers: Vec::new(), shim: Some(shim), shim_events: Some(events) })
        }
        Err(error) => {
            let remains = undo(environment, record).await;
            Err(Box::new(Failed { error, remains }))
        }
    }
}

/// Undoes a pod that was never finished. What resists is given back.
pub(super) async fn undo(environment: &Shared, mut record: SandboxRecord) -> Option<Beginning> {
    let error = teardown::erase(environment, &record, None).await.err()?;
    log::error!(id = record.id.as_str(); "cannot undo a sandbox: {}", chain(&error));
    record.state = SandboxState::NotReady;
    if let Err(error) = save(environment, &record) {
        log::error!(id = record.id.as_str(); "{}", chain(&error));
    }
    Some(Beginning { record, containers: Vec::new(), shim: None, shim_events: None })
}

/// Refuses what cannot be, before anything is touched.
fn check(config: &PodSandboxConfig, handler: &str, kernel: Kernel) -> Result<(), PodError> {
    let invalid = |message: String| Err(PodError::Invalid(message));
    let metadata = config.metadata.clone().unwrap_or_default();
    for (what, value) in [("name", metadata.name), ("namespace", metadata.namespace), ("uid", metadata.uid)] {
        if value.is_empty() {
            return invalid(format!("the sandbox's metadata has no {what}"));
        }
    }
    if config.hostname.len() > files::MAX_HOSTNAME {
        let most = files::MAX_HOSTNAME;
        return invalid(format!("host name `{}` has more than {most} characters", config.hostname));
    }
    for mapping in config.port_mappings.iter().filter(|mapping| !mapping.host_ip.is_empty()) {
        if mapping.host_ip.parse::<std::net::IpAddr>().is_err() {
            // without it the port would be open on all addresses
            return invalid(format!("host port {}: `{}` is no address", mapping.host_port, mapping.host_ip));
        }
    }
    let options = namespaces(config);
    let own_ids = id_maps(options.userns_options.as_ref()).map_err(PodError::Invalid)?.is_some();
    if own_ids && !kernel.mapped_layers {
        return invalid("user namespaces need a kernel that maps ids of overlay layers (5.19)".to_owned());
    }
    if own_ids && !handler.is_empty() {
        return invalid(format!("runtime handler {handler} offers no user namespaces"));
    }
    for (what, mode) in [("network", options.network()), ("ipc", options.ipc()), ("pid", options.pid())] {
        if mode == NamespaceMode::Target {
            return invalid(format!("a sandbox cannot have the {what} namespace of a container"));
        }
    }
    let sysctls = config.linux.iter().flat_map(|linux| linux.sysctls.keys());
    for name in sysctls {
        if options.network() == NamespaceMode::Node && name.starts_with("net.") {
            return invalid(format!("sysctl {name} cannot be set in the host's network namespace"));
        }
        let of_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        if options.ipc() == NamespaceMode::Node && of_ipc.iter().any(|prefix| name.starts_with(prefix)) {
            return invalid(format!("sysctl {name} cannot be set in the host's IPC namespace"));
        }
    }
    Ok(())
}

fn plan(environment: &Shared, config: PodSandboxConfig, handler: String) -> Result<SandboxRecord, PodError> {
    let id = id::random().map_err(PodError::Id)?;
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    let cgroup = environment.cgroups.path_of(parent, &id);
    let cgroup = cgroup.map_err(|source| PodError::Cgroup { id: id.clone(), source })?;
    let selinux_level = level(environment, &config, &id)?;
    let own_network = namespaces(&config).network() != NamespaceMode::Node;
    let netns = own_network.then(|| environment.paths.netns.name(&id).to_string_lossy().into_owned());
    Ok(SandboxRecord {
        created_at: clock::now(),
        state: SandboxState::Creating,
        made_parent: !environment.cgroups.has_parent(cgroup.parent()),
        id,
        config,
        runtime_handler: handler,
        cgroup,
        shim_pid: 0,
        first_pid: 0,
        selinux_level,
        netns,
        network_owed: false,
        ips: Vec::new(),
        resized: UpdatePodSandboxResourcesRequest::default(),
    })
}

/// The level asked for, else one that no other pod has. Given back when the pod is erased.
fn level(environment: &Shared, config: &PodSandboxConfig, id: &str) -> Result<String, PodError> {
    let Some(selinux) = &environment.host.selinux else { return Ok(String::new()) };
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.selinux_options.as_ref());
    if let Some(asked) = options.map(|options| options.level.as_str()).filter(|level| !level.is_empty()) {
        selinux.levels.note(asked);
        return Ok(asked.to_owned());
    }
    // identifiers are random
    let seed = id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
    let none = || PodError::Invalid("there are as many pods as SELinux has pairs of categories".to_owned());
    selinux.levels.take(seed).ok_or_else(none)
}

/// Labels of what the pod itself has, which is files.
fn labels(environment: &Shared, record: &SandboxRecord) -> Result<Option<Labels>, PodError> {
    let Some(selinux) = &environment.host.selinux else { return Ok(None) };
    let options = record.namespaces();
    let confined = options.pid() != NamespaceMode::Node && options.ipc() != NamespaceMode::Node;
    let labels = selinux.labels(record.selinux_options(), &record.selinux_level, confined);
    labels.map(Some).map_err(|error| PodError::Invalid(error.to_string()))
}

async fn build(environment: &Shared, record: &mut SandboxRecord) -> Result<Connected, PodError> {
    let id = record.id.clone();
    save(environment, record)?;
    let labels = labels(environment, record)?;
    let socket = environment.paths.socket(&id);
    let shim_error = |action| {
        let id = id.clone();
        move |source| PodError::Shim { action, id, source }
    };
    // cgroup and files while the new process loads
    let prepared = prepare(environment, record, labels);
    let supervised = async {
        let launched = environment.shims.launch(&id, &socket).await;
        record.shim_pid = launched.map_err(shim_error("start the supervisor"))?;
        let (shim, events) = Shim::connect(&socket, &id).await.map_err(shim_error("reach the supervisor"))?;
        shim.setup(pod_setup(record)).await.map_err(shim_error("make namespaces"))?;
        Ok((shim, events))
    };
    let supervised: Result<Connected, PodError> = supervised.await;
    // waited for in any case: what it makes after a failure was undone would stay
    prepared.await.map_err(|_| PodError::Stopping)??;
    let (shim, events) = supervised?;
    // of its first container
    environment.cgroups.expect_move();
    if record.netns.is_some() {
        // a plugin that is interrupted may have done its work
        record.network_owed = true;
        save(environment, record)?;
        match environment.network.attach(record).await {
            Ok(ips) => record.ips = ips,
            Err(source) => {
                // Taken down as at a pod's end; but a plugin whose configuration is so broken that it cannot even do that
                // would fail for ever, and must not keep the whole sandbox.
                if let Err(error) = environment.network.detach(record).await {
                    log::warn!(id = id.as_str(); "given up: {error}");
                }
                record.network_owed = false;
                return Err(PodError::Network { action: "set up", id, source });
            }
        }
    }
    if let Some(handler) = environment.host.handlers.find(&record.runtime_handler) {
        let started = handler::start(environment, handler, record, &shim).await;
        let name = record.runtime_handler.clone();
        record.first_pid = started.map_err(|source| PodError::First { id: id.clone(), name, source })?;
    }
    record.state = SandboxState::Ready;
    save(environment, record)?;
    log::info!(id = id.as_str(), pid = record.shim_pid; "sandbox ready");
    Ok((shim, events))
}

fn prepare(
    environment: &Shared,
    record: &SandboxRecord,
    labels: Option<Labels>,
) -> tokio::task::JoinHandle<Result<(), PodError>> {
    let (environment, record) = (Arc::clone(environment), record.clone());
    tokio::task::spawn_blocking(move || {
        let made = environment.cgroups.create(&record.cgroup);
        made.map_err(|source| PodError::Cgroup { id: record.id.clone(), source })?;
        let label = labels.map(|labels| labels.file.to_string());
        files::make(&environment.paths.pod(&record.id), &record, label.as_deref())
    })
}

fn pod_setup(record: &SandboxRecord) -> PodSetup {
    let options = record.namespaces();
    let new_net = options.network() != NamespaceMode::Node;
    // a name of its own makes sense only where the node's is not meant
    let sysctls = record.config.linux.as_ref().map(sysctls).unwrap_or_default();
    PodSetup {
        new_net,
        new_ipc: options.ipc() != NamespaceMode::Node,
        new_uts: new_net,
        // another runtime makes it with the pod's first container
        shared_pid: options.pid() == NamespaceMode::Pod && record.runtime_handler.is_empty(),
        netns_path: record.netns.clone(),
        hostname: new_net.then(|| hostname(&record.config)),
        sysctls,
        // policies let no container_t begin with a program in memory, which is what the reaper is
        selinux_label: None,
        user_namespace: record.id_maps(),
    }
}

/// In a fixed order, so that the same request always does the same.
fn sysctls(linux: &LinuxPodSandboxConfig) -> Vec<(String, String)> {
    let mut sysctls: Vec<_> = linux.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    sysctls.sort();
    sysctls
}

pub(super) fn save(environment: &Shared, record: &SandboxRecord) -> Result<(), PodError> {
    let written = environment.store.write(Kind::Pod, &record.id, record);
    written.map_err(|source| PodError::Record { id: record.id.clone(), source })
}
