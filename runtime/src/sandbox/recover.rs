//! What a new daemon does with what its predecessor left.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use nodeagent_shim::protocol::LaunchSpec;
use tokio::time::timeout;

use super::task::{self, Beginning};
use super::{PodError, Pods, SandboxRecord, SandboxState, Shared, files, setup, teardown};
use crate::container::{self, ContainerRecord, Phase};
use crate::id::is_id;
use crate::state::{Found, Kind, StateError};
use crate::telemetry::chain;

/// Pods that are looked at together; each waits for its shim.
const TOGETHER: usize = 16;

/// Plugins must not keep the node from starting.
const SWEEP: Duration = Duration::from_secs(30);

impl Pods {
    /// Meets the pods of an earlier daemon again, undoes what was half made, and sweeps what belongs to nobody.
    pub async fn recover(&self) -> Result<(), StateError> {
        let environment = self.environment();
        let pods = environment.store.load::<SandboxRecord>(Kind::Pod)?;
        let containers = environment.store.load::<ContainerRecord>(Kind::Container)?;
        let mut specs: HashMap<String, LaunchSpec> = HashMap::new();
        for found in environment.store.load::<LaunchSpec>(Kind::Spec)? {
            specs.insert(found.id, found.record);
        }
        let mut members: HashMap<String, Vec<(ContainerRecord, LaunchSpec)>> = HashMap::new();
        for Found { record, .. } in containers {
            match specs.remove(&record.id) {
                Some(spec) if record.phase != Phase::Creating => {
                    members.entry(record.sandbox.clone()).or_default().push((record, spec));
                }
                _ => undo_container(environment, &record).await,
            }
        }
        let mut work = tokio::task::JoinSet::new();
        for found in pods {
            let containers = members.remove(&found.record.id).unwrap_or_default();
            let pods = self.clone();
            if work.len() >= TOGETHER {
                work.join_next().await;
            }
            work.spawn(async move { pods.meet(found, containers).await });
        }
        while work.join_next().await.is_some() {}
        // containers whose pod is not on record
        for (record, _) in members.into_values().flatten() {
            undo_container(environment, &record).await;
        }
        self.sweep().await;
        Ok(())
    }

    async fn meet(&self, found: Found<SandboxRecord>, mut containers: Vec<(ContainerRecord, LaunchSpec)>) {
        let environment = self.environment();
        let Found { this_boot, mut record, .. } = found;
        if let Some(selinux) = &environment.host.selinux {
            selinux.levels.note(&record.selinux_level);
        }
        if record.state == SandboxState::Creating {
            log::info!(id = record.id.as_str(); "undoing a sandbox that was never finished");
            for (container, _) in &containers {
                undo_container(environment, container).await;
            }
            setup::undo(environment, record).await.map(|remains| self.adopt(remains));
            return;
        }
        containers.sort_by_key(|(container, _)| container.created_at);
        let socket = environment.paths.socket(&record.id);
        let met = if this_boot { task::meet(&socket, &record.id).await } else { None };
        let before = record.clone();
        let (shim, shim_events) = match met {
            Some((shim, events, states)) => {
                for (container, _) in &mut containers {
                    let state = states.iter().find(|state| state.container == container.id);
                    update(environment, container, |container| {
                        task::reconcile(container, state);
                    });
                }
                forget_strangers(&shim, &record.id, &states, &containers).await;
                let first_ended = states.iter().any(|one| one.container == record.id && one.exit_code.is_some());
                let handler = environment.host.handlers.find(&record.runtime_handler);
                if first_ended && handler.is_some_and(crate::handler::Handler::stands_in) {
                    // while nobody looked, its shim or its machine went
                    record.state = SandboxState::NotReady;
                }
                (Some(shim), Some(events))
            }
            None => {
                record.state = SandboxState::NotReady;
                for (container, _) in &mut containers {
                    kill(environment, container).await;
                    update(environment, container, |container| match this_boot {
                        true => drop(task::reconcile(container, None)),
                        false => task::end_with_boot(container),
                    });
                }
                (None, None)
            }
        };
        if record != before
            && let Err(error) = setup::save(environment, &record)
        {
            log::error!(id = record.id.as_str(); "{}", chain(&error));
        }
        log::info!(id = record.id.as_str(), ready = record.ready(), containers = containers.len(); "sandbox met again");
        self.adopt(Beginning { record, containers, shim, shim_events });
    }

    /// Removes networks, files and layers that no record names.
    async fn sweep(&self) {
        let environment = self.environment();
        let views = self.views();
        // A stopped pod's address returns in the background: where the daemon died over that, it is swept.
        let attached = views.iter().filter(|view| view.sandbox.network_owed);
        let known: Vec<String> = attached.map(|view| view.sandbox.id.clone()).collect();
        match timeout(SWEEP, environment.network.sweep(&known)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("networks of unknown sandboxes: {}", chain(&*error)),
            Err(_) => log::warn!("networks of unknown sandboxes: plugins take too long"),
        }
        let known_container = |id: &str| views.iter().any(|view| view.container(id).is_some());
        for id in environment.images.holders() {
            if !known_container(container::container_of(&id)) {
                log::info!(id = id.as_str(); "removing the layer of an unknown container");
                if let Err(error) = environment.images.release(&id).await {
                    log::warn!(id = id.as_str(); "{}", chain(&error));
                }
            }
        }
        let known_pod = |id: &str| views.iter().any(|view| view.sandbox.id == id);
        for id in leftovers(environment) {
            if !known_pod(&id)
                && let Err(error) = sweep_pod(environment, &id).await
            {
                log::warn!(id = id.as_str(); "{}", chain(&error));
            }
        }
    }
}

/// Pods that left files.
fn leftovers(environment: &Shared) -> Vec<String> {
    let names =
        [&environment.paths.pods, &environment.paths.shims].into_iter().filter_map(|dir| fs::read_dir(dir).ok());
    let names = names.flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut ids: Vec<String> =
        names.map(|name| name.trim_end_matches(".sock").to_owned()).filter(|id| is_id(id)).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// A pod whose record is lost: its shim is ended, its files go.
async fn sweep_pod(environment: &Shared, id: &str) -> Result<(), PodError> {
    log::info!(id = id; "removing what is left of an unknown sandbox");
    let socket = environment.paths.socket(id);
    if let Ok(shim) = super::Shim::connect_to_end(&socket, id).await {
        for result in [shim.stop_pod().await, shim.exit().await] {
            if let Err(error) = result {
                log::warn!(id = id; "{}", chain(&error));
            }
        }
    }
    let (dir, names, id) = (environment.paths.pod(id), environment.paths.netns.clone(), id.to_owned());
    teardown::blocking(move || {
        names.remove(&id).map_err(|source| PodError::Netns { id, source })?;
        files::remove(&dir)?;
        // a socket that is gone is as good
        let _ = fs::remove_file(socket);
        Ok(())
    })
    .await
}

async fn undo_container(environment: &Shared, record: &ContainerRecord) {
    log::info!(id = record.id.as_str(); "undoing a container that was never finished");
    kill(environment, record).await;
    if let Err(error) = container::erase(environment, record, None).await {
        log::error!(id = record.id.as_str(); "{}", chain(&error));
    }
}

async fn kill(environment: &Shared, container: &ContainerRecord) {
    if let Err(error) = environment.cgroups.kill(&container.cgroup).await {
        log::error!(id = container.id.as_str(); "{}", chain(&error));
    }
}

/// Containers that the shim knows and no record names: their creation was undone.
async fn forget_strangers(
    shim: &super::Shim,
    pod: &str,
    states: &[nodeagent_shim::protocol::ContainerState],
    containers: &[(ContainerRecord, LaunchSpec)],
) {
    for state in states {
        // the first container of a pod that another runtime makes has the pod's id
        if state.container == pod || containers.iter().any(|(container, _)| container.id == state.container) {
            continue;
        }
        // one that has ended cannot be killed
        let _ = shim.kill(&state.container).await;
        if let Err(error) = shim.forget(&state.container).await {
            log::warn!(id = state.container.as_str(); "{}", chain(&error));
        }
    }
}

fn update(environment: &Shared, container: &mut ContainerRecord, change: impl FnOnce(&mut ContainerRecord)) {
    let before = container.clone();
    change(container);
    if *container != before
        && let Err(error) = environment.store.write(Kind::Container, &container.id, container)
    {
        log::error!(id = container.id.as_str(); "{}", chain(&error));
    }
}
