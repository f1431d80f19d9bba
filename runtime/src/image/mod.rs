//! Images: pulling them, knowing them, lending them to containers.
//!
//! [`Images`] is the face. Behind it, `registry` speaks to registries, `pull` turns a reference into layers, the
//! `content` and `snapshot` modules keep what came, and `store` records which image is what.

mod auth_file;
mod config;
mod credentials;
mod error;
mod layer;
mod manifest;
mod model;
mod platform;
mod pull;
mod reference;
mod registry;
mod rootfs;
mod store;
mod tasks;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;

pub use auth_file::AuthFileError;
pub use config::{ImagesConfig, Limits, MirrorConfig, PullFrom, RegistryConfig, Timeouts};
pub use credentials::{AuthFieldError, Credentials};
pub use error::{ErrorCode, ImageError};
pub use manifest::ManifestError;
pub use model::{FsUsage, Image, ImageConfig, Rootfs};
pub use reference::{Reference, ReferenceError};
pub use registry::{ConfError, RegistryError};

use crate::content::disk;
use pull::Puller;
use store::Store;
use tasks::Tasks;
use usage::ContainerUsage;

/// All images of this node. Clones share one store.
#[derive(Clone, Debug)]
pub struct Images {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    puller: Arc<Puller>,
    tasks: Tasks,
    container_usage: ContainerUsage,
}

impl Images {
    /// Opens the store under `config.root`, dropping what a crash left unfinished.
    pub async fn open(config: ImagesConfig) -> Result<Images, ImageError> {
        let root = config.root.clone();
        let store = Arc::new(blocking(move || Store::open(&root)).await?);
        let container_usage = ContainerUsage::new(store.containers_directory());
        let puller = Arc::new(Puller::new(config, store.clone()));
        Ok(Images { inner: Arc::new(Inner { store, puller, tasks: Tasks::default(), container_usage }) })
    }

    /// Pulls an image for this host's platform.
    ///
    /// Callers that ask for the same reference with the same credentials at the same time share one task, which goes
    /// on when a caller goes away. The registry is asked every time: a finished pull is never served again.
    pub async fn pull(&self, reference: &str, auth: Option<Credentials>) -> Result<Arc<Image>, ImageError> {
        let reference = Reference::parse(reference)?;
        let puller = self.inner.puller.clone();
        let key = (reference.clone(), auth.clone());
        self.inner.tasks.join(key, move || puller.pull(reference, auth)).await
    }

    /// Stops all pulls and waits until their tasks are gone. What they committed stays.
    pub async fn shutdown(&self) {
        self.inner.tasks.shutdown().await;
    }

    /// Every image, in a stable order.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.store.list()
    }

    /// By tag, digest, id (`sha256:…` or bare), or the unique beginning of an id.
    pub fn find(&self, reference_or_id: &str) -> Option<Arc<Image>> {
        self.inner.store.find(reference_or_id)
    }

    /// Removes an image with all its tags. An unknown one is fine, one in use is not.
    pub async fn remove(&self, reference_or_id: &str) -> Result<(), ImageError> {
        let (store, text) = (self.inner.store.clone(), reference_or_id.to_owned());
        let aside = blocking(move || store.remove(&text)).await?;
        delete(aside);
        Ok(())
    }

    /// Space used by images.
    pub fn usage(&self) -> FsUsage {
        self.inner.store.usage()
    }

    /// Space used by containers' writable layers: at most half a minute old, renewed in the background.
    pub fn container_usage(&self) -> FsUsage {
        self.inner.container_usage.get()
    }

    /// Makes the writable layer for a container and holds the image for it, also across restarts. Doing it again
    /// gives the same.
    pub async fn prepare(&self, image_id: &str, container_id: &str) -> Result<Rootfs, ImageError> {
        let (store, image, container) = (self.inner.store.clone(), image_id.to_owned(), container_id.to_owned());
        blocking(move || store.prepare(&image, &container)).await
    }

    /// Removes a container's writable layer and lets go of the image. An unknown container is fine.
    pub async fn release(&self, container_id: &str) -> Result<(), ImageError> {
        let (store, container) = (self.inner.store.clone(), container_id.to_owned());
        let aside = blocking(move || store.release(&container)).await?;
        delete(aside);
        Ok(())
    }

    /// Containers that hold an image, for a daemon that starts and compares them with those it knows.
    pub fn containers(&self) -> Vec<String> {
        self.inner.store.containers()
    }
}

/// Runs disk work on a worker thread. It runs to its end even when the caller goes away.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ImageError::ShuttingDown)?
}

/// Deletes in the background: it is out of the way already and may be large.
fn delete(aside: impl IntoIterator<Item = PathBuf>) {
    let aside: Vec<PathBuf> = aside.into_iter().collect();
    if !aside.is_empty() {
        tokio::task::spawn_blocking(move || aside.iter().for_each(|path| disk::remove_all(path)));
    }
}
