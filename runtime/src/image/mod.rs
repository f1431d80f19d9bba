//! Images: pulling them, knowing them, lending them to containers.
//!
//! [`Images`] is the face. Behind it, `registry` speaks to registries, `pull` turns a reference into layers, the
//! `content` and `snapshot` modules keep what came, and `store` records which image is what.

pub mod admin;
mod artifact;
mod auth_file;
mod config;
mod credentials;
mod error;
mod error_code;
mod explain;
mod layer;
mod manifest;
mod model;
mod pinned;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod rootfs;
mod short_name;
mod store;
mod tasks;
mod transfer;
mod trust;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use auth_file::AuthFileError;
pub use config::{ImagesConfig, Limits, MirrorConfig, PullFrom, RegistryConfig, Timeouts, TrustConfig};
pub use credentials::{AuthFieldError, Credentials};
pub use error::ImageError;
pub use error_code::ErrorCode;
pub use explain::{CandidateExplained, EndpointExplained, Explanation};
pub use manifest::ManifestError;
pub use model::{FsUsage, Image, ImageConfig, Rootfs};
pub use progress::PullProgress;
pub use reference::{Reference, ReferenceError};
pub use registry::{ConfError, RegistryError};
pub use transfer::{Format, TransferError};
pub use trust::TrustError;

use crate::content::disk;
use pull::Puller;
use registry::{Conf, load_conf};
use short_name::Candidate;
use store::Store;
use tasks::Tasks;
use usage::ContainerUsage;

/// How long another process, a command or a daemon that stops, may still have the store.
const LOCK_TIME: Duration = Duration::from_secs(10);

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
        let store = Arc::new(blocking(move || Store::open(&root, LOCK_TIME)).await?);
        let container_usage = ContainerUsage::new(store.containers_directory());
        let puller = Arc::new(Puller::new(config, store.clone()));
        Ok(Images { inner: Arc::new(Inner { store, puller, tasks: Tasks::default(), container_usage }) })
    }

    /// Pulls an image for this host's platform.
    ///
    /// Callers that ask for the same reference with the same credentials at the same time share one task, which goes
    /// on when a caller goes away. The registry is asked every time: a finished pull is never served again.
    pub async fn pull(&self, reference: &str, auth: Option<Credentials>) -> Result<Arc<Image>, ImageError> {
        let candidates = self.candidates(reference).await?;
        let mut last = None;
        for Candidate { reference, .. } in candidates {
            let (puller, auth) = (self.inner.puller.clone(), auth.clone());
            let key = (reference.clone(), auth.clone());
            let asked = reference.clone();
            match self.inner.tasks.join(key, move || puller.pull(asked, auth)).await {
                Ok(image) => return Ok(image),
                Err(error) => {
                    log::info!(reference:% = reference, error:% = error; "a short name does not mean this one");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or(ImageError::NotHere { image: reference.to_owned() }))
    }

    /// What a name may mean, by the configuration of this moment.
    async fn candidates(&self, text: &str) -> Result<Vec<Candidate>, ImageError> {
        let (path, text) = (self.inner.puller.config.registries_conf.clone(), text.to_owned());
        blocking(move || candidates(path.as_deref(), &text)).await
    }

    /// Where a name would be looked for, and why.
    pub async fn explain(&self, name: &str) -> Result<Explanation, ImageError> {
        let (config, name) = (self.inner.puller.config.clone(), name.to_owned());
        blocking(move || explain::explain(&config, &name)).await
    }

    /// Imports every image of a file or OCI layout; `name` replaces the names that are in there.
    pub async fn import(&self, path: &Path, name: Option<&str>) -> Result<Vec<Arc<Image>>, ImageError> {
        let name = name.map(Reference::parse).transpose()?;
        self.inner.puller.clone().import(path.to_owned(), name).await
    }

    /// Writes images to a file or directory that does not exist yet.
    pub async fn export(&self, images: &[String], path: &Path, format: Format) -> Result<(), ImageError> {
        let progress = self.inner.puller.running.start(path.display().to_string());
        // by their ids: a short name means here what it means everywhere
        let known = images.iter().map(|name| match self.find(name) {
            Some(image) => Ok(image.id.clone()),
            None => Err(ImageError::NotHere { image: name.clone() }),
        });
        let known = known.collect::<Result<Vec<_>, _>>()?;
        let (store, path) = (self.inner.store.clone(), path.to_owned());
        let exporting = blocking(move || {
            let exported = transfer::export(&store, &known, &path, format, &progress);
            // layers that a removal left because they were being read
            Ok((exported, store.sweep_old()?))
        });
        let (exported, swept) = exporting.await?;
        delete(swept);
        exported
    }

    /// Pulls that are under way.
    pub fn progress(&self) -> Vec<PullProgress> {
        self.inner.puller.running.list()
    }

    /// Whether the configuration wants the image to stay.
    pub fn is_pinned(&self, image: &Image) -> bool {
        pinned::is_pinned(image, &self.inner.puller.config.pinned)
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
        if reference::is_short(reference_or_id)
            && let Some(path) = &self.inner.puller.config.registries_conf
        {
            // an unusable configuration shows when something is pulled, not here
            let candidates = candidates(Some(path), reference_or_id).unwrap_or_default();
            let found = candidates.iter().find_map(|one| self.inner.store.find(&one.reference.to_string()));
            if found.is_some() {
                return found;
            }
        }
        self.inner.store.find(reference_or_id)
    }

    /// Removes an image with all its tags. An unknown one is fine, one in use is not.
    pub async fn remove(&self, reference_or_id: &str) -> Result<(), ImageError> {
        let Some(image) = self.find(reference_or_id) else { return Ok(()) };
        let store = self.inner.store.clone();
        let aside = blocking(move || store.remove(&image.id)).await?;
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

/// What a name may mean. Reads files.
fn candidates(registries_conf: Option<&Path>, text: &str) -> Result<Vec<Candidate>, ImageError> {
    if !reference::is_short(text) {
        return short_name::candidates(text, &Conf::default());
    }
    let conf = registries_conf.map_or(Ok(Conf::default()), load_conf).map_err(RegistryError::from)?;
    short_name::candidates(text, &conf)
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

/// Parses what a registry sends.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_manifest(bytes: &[u8]) {
    if let Ok(manifest::Document::Index(offered)) = manifest::parse(bytes) {
        let _ = manifest::choose(&offered, &platform::Platform::host());
        let _ = manifest::offered(&offered);
    }
    let _ = manifest::parse_config(bytes);
}

/// Parses configuration of registries, and looks something up in it.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_registries(text: &str, path: &std::path::Path) {
    registry::fuzz_configuration(text, path);
}

/// Reads certificates and signed messages.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_openpgp(bytes: &[u8]) {
    trust::fuzz_openpgp(bytes);
}

/// Parses what the node and its registries say about credentials and signatures.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_settings(text: &str) {
    auth_file::fuzz(text);
    registry::fuzz_challenge(text);
    trust::fuzz_policy(text);
}
