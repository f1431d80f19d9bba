//! The end of a pod. Every step can be done again, and finds it fine when there is nothing to do.

use std::time::Duration;

use super::{PodError, SandboxRecord, Shared, Shim, files, shim};
use crate::cgroup::CgroupPath;
use crate::state::Kind;
use crate::telemetry::chain;

/// How long a shim may take to end after it said that it would, or was killed.
const EXIT: Duration = Duration::from_secs(2);
/// How often is looked whether one that was killed is gone: it may be nobody's child any more.
const LOOK: Duration = Duration::from_millis(10);

/// Kills what runs in the pod: by its supervisor, and where that does not do it, by the cgroups of its containers. Whether
/// the supervisor did it.
pub(super) async fn kill(
    environment: &Shared,
    record: &SandboxRecord,
    shim: Option<&Shim>,
    cgroups: &[CgroupPath],
) -> bool {
    if let Some(shim) = shim {
        match shim.stop_pod().await {
            Ok(()) => return true,
            Err(error) => {
                log::warn!(id = record.id.as_str(); "stepping over the shim: {}", chain(&error));
            }
        }
    }
    for cgroup in cgroups {
        if let Err(error) = environment.cgroups.kill(cgroup).await {
            log::error!(id = record.id.as_str(); "{}", chain(&error));
        }
    }
    false
}

/// Takes the network down and lets go of its namespace, which stays while plugins may still be needed in it.
pub(super) async fn disconnect(environment: &Shared, record: &SandboxRecord) -> Result<(), PodError> {
    detach(environment, record).await?;
    unbind(environment, record).await
}

async fn detach(environment: &Shared, record: &SandboxRecord) -> Result<(), PodError> {
    if !record.network_owed {
        return Ok(());
    }
    let detached = environment.network.detach(record).await;
    detached.map_err(|source| PodError::Network { action: "take down", id: record.id.clone(), source })
}

async fn unbind(environment: &Shared, record: &SandboxRecord) -> Result<(), PodError> {
    if record.netns.is_none() {
        return Ok(());
    }
    let (names, id) = (environment.paths.netns.clone(), record.id.clone());
    blocking(move || names.remove(&id).map_err(|source| PodError::Netns { id, source })).await
}

/// Removes everything of a pod whose containers are gone: processes, network, files, cgroup, record, in this order, so
/// that what fails can be tried again by whoever finds the record.
pub(super) async fn erase(environment: &Shared, record: &SandboxRecord, shim: Option<Shim>) -> Result<(), PodError> {
    let socket = environment.paths.socket(&record.id);
    let shim = match shim {
        Some(shim) => Some(shim),
        None => Shim::connect_to_end(&socket, &record.id).await.ok(),
    };
    let answers = kill(environment, record, shim.as_ref(), &[]).await;
    let detached = detach(environment, record).await;
    unbind(environment, record).await?;
    let ended = match &shim {
        Some(shim) => answers && end(shim).await,
        None => false,
    };
    if !ended {
        kill_silent(shim.as_ref().map_or(record.shim_pid, Shim::pid), &record.id).await;
    }
    let (files_dir, socket_path) = (environment.paths.pod(&record.id), socket);
    blocking(move || {
        files::remove(&files_dir)?;
        remove_socket(socket_path)
    })
    .await?;
    if let Err(error) = detached {
        detach_again(environment, record, error).await?;
    }
    if let Some(handler) = environment.host.handlers.find(&record.runtime_handler) {
        let deleted = handler.delete(&record.id).await;
        deleted.map_err(|source| PodError::Runtime { id: record.id.clone(), source })?;
    }
    let removed = environment.cgroups.remove(&record.cgroup).await;
    removed.map_err(|source| PodError::Cgroup { id: record.id.clone(), source })?;
    if record.made_parent {
        environment.cgroups.remove_empty_parent(record.cgroup.parent());
    }
    let removed = environment.store.remove(Kind::Pod, &record.id);
    removed.map_err(|source| PodError::Record { id: record.id.clone(), source })?;
    if let Some(selinux) = &environment.host.selinux {
        selinux.levels.free(&record.selinux_level);
    }
    Ok(())
}

/// Without its namespace, a network has no links left that could not be removed; addresses may be.
async fn detach_again(environment: &Shared, record: &SandboxRecord, first: PodError) -> Result<(), PodError> {
    let Err(error) = detach(environment, record).await else { return Ok(()) };
    if !record.ips.is_empty() {
        return Err(error);
    }
    // it never got an address; a configuration that can neither add nor remove must not keep the pod forever
    log::warn!(id = record.id.as_str(); "giving up on a network that was never set up: {}", chain(&first));
    Ok(())
}

/// Asks the shim to end; whether it did.
async fn end(shim: &Shim) -> bool {
    shim.exit().await.is_ok() && tokio::time::timeout(EXIT, shim.closed()).await.is_ok()
}

/// Kills a shim that lives and does not do what it is asked, or that nobody can ask any more. With it go the namespaces
/// that it holds.
async fn kill_silent(pid: i32, id: &str) {
    if !shim::is_of(pid, id) {
        return;
    }
    log::warn!(id = id, pid = pid; "killing a shim that does not end");
    if let Err(error) = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL) {
        log::warn!(id = id, pid = pid; "cannot kill the shim: {error}");
    }
    let gone = async {
        while shim::is_of(pid, id) {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(EXIT, gone).await.is_err() {
        log::warn!(id = id, pid = pid; "the shim is not gone yet after it was killed");
    }
}

fn remove_socket(path: std::path::PathBuf) -> Result<(), PodError> {
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(PodError::File { action: "remove", path, source })
        }
        _ => Ok(()),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodError> + Send + 'static,
) -> Result<T, PodError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| PodError::Stopping)?
}
