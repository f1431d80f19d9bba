//! Making a pod: record, cgroup, files, supervisor, network. What fails is undone by the same steps that end a pod.

use std::sync::Arc;

use nodeagent_cri_api::{LinuxPodSandboxConfig, NamespaceMode, PodSandboxConfig, UpdatePodSandboxResourcesRequest};
use nodeagent_shim::protocol::PodSetup;
use tokio::sync::mpsc;

use super::record::namespaces;
use super::shim::ShimEvent;
use super::task::Beginning;
use super::{PodError, SandboxRecord, SandboxState, Shared, Shim, files, hostname, id_maps, teardown};
use crate::kernel::Kernel;
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
    check(&config, environment.host.kernel).map_err(refused)?;
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
fn check(config: &PodSandboxConfig, kernel: Kernel) -> Result<(), PodError> {
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
    let options = namespaces(config);
    let own_ids = id_maps(options.userns_options.as_ref()).map_err(PodError::Invalid)?.is_some();
    if own_ids && !kernel.mapped_layers {
        return invalid("user namespaces need a kernel that maps ids of overlay layers (5.19)".to_owned());
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
        netns,
        network_owed: false,
        ips: Vec::new(),
        resized: UpdatePodSandboxResourcesRequest::default(),
    })
}

async fn build(environment: &Shared, record: &mut SandboxRecord) -> Result<Connected, PodError> {
    let id = record.id.clone();
    save(environment, record)?;
    let socket = environment.paths.socket(&id);
    let shim_error = |action| {
        let id = id.clone();
        move |source| PodError::Shim { action, id, source }
    };
    record.shim_pid = environment.shims.launch(&id, &socket).await.map_err(shim_error("start the supervisor"))?;
    // cgroup and files while the new process loads
    let prepared = prepare(environment, record);
    let supervised = async {
        let (shim, events) = Shim::connect(&socket, &id).await.map_err(shim_error("reach the supervisor"))?;
        shim.setup(pod_setup(record)).await.map_err(shim_error("make namespaces"))?;
        Ok((shim, events))
    };
    let supervised: Result<Connected, PodError> = supervised.await;
    // waited for in any case: what it makes after a failure was undone would stay
    prepared.await.map_err(|_| PodError::Stopping)??;
    let (shim, events) = supervised?;
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
    record.state = SandboxState::Ready;
    save(environment, record)?;
    log::info!(id = id.as_str(), pid = record.shim_pid; "sandbox ready");
    Ok((shim, events))
}

fn prepare(environment: &Shared, record: &SandboxRecord) -> tokio::task::JoinHandle<Result<(), PodError>> {
    let (environment, record) = (Arc::clone(environment), record.clone());
    tokio::task::spawn_blocking(move || {
        let made = environment.cgroups.create(&record.cgroup);
        made.map_err(|source| PodError::Cgroup { id: record.id.clone(), source })?;
        files::make(&environment.paths.pod(&record.id), &record)
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
        shared_pid: options.pid() == NamespaceMode::Pod,
        netns_path: record.netns.clone(),
        hostname: new_net.then(|| hostname(&record.config)),
        sysctls,
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
