//! All pods of the node.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use nodeagent_cri_api::{ContainerConfig, ContainerMetadata, PodSandboxConfig};

use super::flight::Flights;
use super::{Abandoned, Key, PodError, PodHandle, PodView, Shared, setup, task};
use crate::container::{self, ContainerError};
use crate::telemetry::chain;

type Request = (PodSandboxConfig, String);

/// All pods of the node. Cheap to clone.
#[derive(Clone)]
pub struct Pods {
    inner: Arc<Inner>,
}

struct Inner {
    environment: Shared,
    table: Arc<Table>,
    running: Flights<Key, Request, String, PodError>,
    creating: Flights<(String, ContainerMetadata), ContainerConfig, String, ContainerError>,
}

/// Pods by their id.
#[derive(Default)]
pub(super) struct Table {
    pods: RwLock<HashMap<String, PodHandle>>,
}

impl Table {
    pub(super) fn insert(&self, id: &str, pod: PodHandle) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), pod);
    }

    pub(super) fn remove(&self, id: &str) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn get(&self, id: &str) -> Option<PodHandle> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn all(&self) -> Vec<PodHandle> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Pods {
    /// No pods yet.
    pub fn new(environment: Shared) -> Self {
        Pods {
            inner: Arc::new(Inner {
                environment,
                table: Arc::default(),
                running: Flights::default(),
                creating: Flights::default(),
            }),
        }
    }

    /// What they are made with.
    pub fn environment(&self) -> &Shared {
        &self.inner.environment
    }

    /// Makes a pod and gives its id. The same request again gives the same pod while it is ready; a pod of that name
    /// which is not, or was asked for differently, is removed first. Goes on when the caller leaves.
    pub async fn run(&self, config: PodSandboxConfig, handler: String) -> Result<String, PodError> {
        let incomplete = || PodError::Invalid("the sandbox's metadata needs name, namespace and uid".to_owned());
        let key = Key::of(&config).ok_or_else(incomplete)?;
        let handlers = &self.inner.environment.host.handlers;
        if !handler.is_empty() && handlers.find(&handler).is_none() {
            return Err(PodError::Handler { name: handler, known: handlers.known() });
        }
        let request = (config, handler);
        let joined = self.inner.running.join(&key, &request, || {
            let (pods, key, request) = (self.clone(), key.clone(), request.clone());
            async move { pods.ensure(&key, request).await }
        });
        match joined.await {
            Ok(result) => result.map_err(PodError::Shared),
            Err(Abandoned) => Err(PodError::Stopping),
        }
    }

    /// Makes a container in a pod and gives its id; see [`container::create`]. Goes on when the caller leaves.
    pub async fn create_container(&self, pod: &PodHandle, config: ContainerConfig) -> Result<String, ContainerError> {
        let nameless = || ContainerError::Invalid("the container's metadata needs a name".to_owned());
        let metadata = config.metadata.clone().filter(|metadata| !metadata.name.is_empty());
        let key = (pod.view().sandbox.id.clone(), metadata.ok_or_else(nameless)?);
        let joined = self.inner.creating.join(&key, &config, || {
            container::create(Arc::clone(&self.inner.environment), pod.clone(), config.clone())
        });
        match joined.await {
            Ok(result) => result.map_err(ContainerError::Shared),
            Err(Abandoned) => Err(ContainerError::Stopping),
        }
    }

    async fn ensure(&self, key: &Key, (config, handler): Request) -> Result<String, PodError> {
        let named = self.all().into_iter().filter(|pod| Key::of(&pod.view().sandbox.config).as_ref() == Some(key));
        for pod in named {
            let sandbox = Arc::clone(&pod.view().sandbox);
            if sandbox.ready() && sandbox.config == config && sandbox.runtime_handler == handler {
                return Ok(sandbox.id.clone());
            }
            log::info!(id = sandbox.id.as_str(); "removing a stale sandbox that is asked for anew");
            if let Err(error) = pod.remove_pod().await {
                // it stays on the list, not ready, for kubelet to remove: no reason to keep the new one waiting
                log::warn!(id = sandbox.id.as_str(); "{}", chain(&error));
            }
        }
        match setup::make(&self.inner.environment, config, handler).await {
            Ok(made) => Ok(self.adopt(made)),
            Err(failed) => {
                failed.remains.map(|remains| self.adopt(remains));
                Err(failed.error)
            }
        }
    }

    /// Gives a pod its task and makes it known.
    pub(super) fn adopt(&self, made: task::Beginning) -> String {
        let id = made.record.id.clone();
        let handle = task::spawn(Arc::clone(&self.inner.environment), Arc::clone(&self.inner.table), made);
        self.inner.table.insert(&id, handle);
        id
    }

    /// Every pod, in no order.
    pub fn all(&self) -> Vec<PodHandle> {
        self.inner.table.all()
    }

    /// Every pod as it is now, newest first.
    pub fn views(&self) -> Vec<Arc<PodView>> {
        let mut views: Vec<_> = self.all().iter().map(PodHandle::view).collect();
        views.sort_by(|a, b| {
            b.sandbox.created_at.cmp(&a.sandbox.created_at).then_with(|| a.sandbox.id.cmp(&b.sandbox.id))
        });
        views
    }

    /// By id, or by the beginning of an id that only one pod has.
    pub fn find(&self, id: &str) -> Option<PodHandle> {
        self.inner
            .table
            .get(id)
            .or_else(|| only(self.all().into_iter().filter(|pod| begins(&pod.view().sandbox.id, id))))
    }

    /// The pod of a container, and the container's full id; by id or by the beginning of one.
    pub fn find_container(&self, id: &str) -> Option<(PodHandle, String)> {
        let mut candidates = Vec::new();
        for pod in self.all() {
            let view = pod.view();
            if view.container(id).is_some() {
                return Some((pod, id.to_owned()));
            }
            let begun = view.containers.iter().filter(|container| begins(&container.record.id, id));
            candidates.extend(begun.map(|container| (pod.clone(), container.record.id.clone())));
        }
        only(candidates.into_iter())
    }
}

fn begins(full: &str, id: &str) -> bool {
    !id.is_empty() && full.starts_with(id)
}

fn only<T>(mut candidates: impl Iterator<Item = T>) -> Option<T> {
    let first = candidates.next()?;
    candidates.next().is_none().then_some(first)
}
