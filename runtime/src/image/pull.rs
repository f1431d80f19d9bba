//! One pull: from a reference to an image in the store.
//!
//! Manifest, config, then all layers that are not here yet, a few at a time (see [`super::layer`]). Layers that are
//! committed stay even when the pull fails, so that the next one continues from there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio::task::JoinSet;

use super::config::ImagesConfig;
use super::credentials::Credentials;
use super::error::ImageError;
use super::layer::{Below, Layer, handover};
use super::manifest::{self, Config, Document, Manifest, ManifestError};
use super::model::Image;
use super::platform::Platform;
use super::progress::{self, Progress, Running};
use super::reference::Reference;
use super::registry::{Registry, Session};
use super::store::{ImageRecord, Store};
use super::{artifact, blocking, delete, trust};
use crate::content::{Digest, Memory, Staged};
use crate::snapshot::chain_ids;

/// Layers of one image at a time: more do not help a disk, fewer do not fill a network.
const LAYERS_PER_PULL: usize = 3;
const MAX_CONFIG: u64 = 8 << 20;
/// An index may hold an index; deeper nobody goes.
const MAX_DEPTH: usize = 4;

/// What all pulls share.
#[derive(Debug)]
pub(crate) struct Puller {
    pub(super) config: ImagesConfig,
    pub(super) store: Arc<Store>,
    registry: Arc<Registry>,
    pub(super) platform: Platform,
    /// For the layers of all images together.
    pub(super) memory: Memory,
    pub(super) running: Running,
    /// Two images with the same layer download it once.
    locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// An image's documents.
struct Described {
    /// What the registry gave for the reference.
    digest: Digest,
    id: Digest,
    manifest: Manifest,
    config: Config,
    /// To be kept with the image.
    blobs: Vec<Digest>,
    /// Those of them that are new.
    staged: Vec<Staged>,
}

impl Puller {
    pub(crate) fn new(config: ImagesConfig, store: Arc<Store>) -> Puller {
        let memory = Memory::new();
        let registry = Arc::new(Registry::new(config.timeouts, memory.clone()));
        Puller {
            config,
            store,
            registry,
            platform: Platform::host(),
            memory,
            running: Running::default(),
            locks: Mutex::default(),
        }
    }

    /// Pulls one image. Dropping the future stops it; workers clean up behind them.
    pub(crate) async fn pull(
        self: Arc<Self>,
        reference: Reference,
        credentials: Option<Credentials>,
    ) -> Result<Arc<Image>, ImageError> {
        match self.attempt(&reference, credentials.as_ref()).await {
            // its documents were here at first, and went with an image that was removed meanwhile
            Err(ImageError::NotHere { .. }) => self.attempt(&reference, credentials.as_ref()).await,
            other => other,
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Arc<Image>, ImageError> {
        let started = std::time::Instant::now();
        let progress = self.running.start(reference.to_string());
        let mut session = self.registry.session(&self.config, reference, credentials).await?;
        let described = self.describe(&mut session, reference).await?;
        let chain = chain_ids(&described.config.diff_ids);
        // before looking which are here: a removal at the same moment must not take them away
        let pin = self.store.snapshots.pin(&chain);
        let incomplete = chain.iter().any(|id| !self.store.snapshots.contains(*id));
        if incomplete {
            let fetching = self.fetch_layers(&session, reference, &described, &chain, &progress);
            let fetched = told_of(fetching, &progress).await;
            self.forget_locks();
            fetched?;
        }
        let image = self.record(reference, described, chain, incomplete).await?;
        // before the sweep: when the image was removed again meanwhile, its layers were left to this one
        drop(pin);
        let store = self.store.clone();
        // and layers of pulls that never came to an end
        delete(blocking(move || store.sweep_old()).await?);
        log::info!(reference:% = reference, image = image.id.as_str(), elapsed:? = started.elapsed(); "image pulled");
        Ok(image)
    }

    async fn describe(&self, session: &mut Session, reference: &Reference) -> Result<Described, ImageError> {
        let unusable = |what, digest| {
            let reference = reference.to_string();
            move |source| ImageError::Manifest { reference, what, digest, source }
        };
        let top = session.resolve().await?;
        let mut blobs = vec![(top.digest, top.bytes)];
        let mut document = manifest::parse(&blobs[0].1).map_err(unusable("manifest", top.digest))?;
        let mut manifest_digest = top.digest;
        let manifest = loop {
            let offered = match document {
                Document::Manifest(manifest) => break manifest,
                Document::Index(_) if blobs.len() >= MAX_DEPTH => {
                    return Err(unusable("manifest", manifest_digest)(ManifestError::Nested));
                }
                Document::Index(offered) => offered,
            };
            let chosen = manifest::choose(&offered, &self.platform)
                .ok_or_else(|| self.no_platform(reference, manifest::offered(&offered)))?;
            manifest_digest = chosen.digest;
            let bytes = match self.kept(manifest_digest).await? {
                Some(bytes) => bytes,
                None => session.manifest(manifest_digest).await?.bytes,
            };
            document = manifest::parse(&bytes).map_err(unusable("manifest", manifest_digest))?;
            blobs.push((manifest_digest, bytes));
        };
        self.enforce(session, reference, &[top.digest, manifest_digest]).await?;
        let (id, config) = if manifest.artifact.is_some() {
            // what it calls its config is often the same two bytes for all of them, and nothing for us
            let files = artifact::identities(&manifest).map_err(unusable("manifest", manifest_digest))?;
            (manifest_digest, Config::of_files(files))
        } else {
            let id = manifest.config.digest;
            if manifest.config.size > MAX_CONFIG {
                return Err(unusable("config", id)(ManifestError::Size));
            }
            let bytes = match self.kept(id).await? {
                Some(bytes) => bytes,
                None => session.small_blob(id, manifest.config.size).await?,
            };
            let config = manifest::parse_config(&bytes).map_err(unusable("config", id))?;
            blobs.push((id, bytes));
            (id, config)
        };
        self.check(reference, &manifest, manifest_digest, &config)?;
        let names = blobs.iter().map(|(digest, _)| *digest).collect();
        let staged = self.stage(reference, blobs).await?;
        Ok(Described { digest: top.digest, id, manifest, config, blobs: names, staged })
    }

    /// The policy comes before anything of the image is used.
    async fn enforce(&self, session: &Session, reference: &Reference, manifests: &[Digest]) -> Result<(), ImageError> {
        let untrusted = |source| ImageError::Trust { image: reference.to_string(), source: Box::new(source) };
        let applied = {
            let (config, reference) = (self.config.trust.clone(), reference.clone());
            let read = tokio::task::spawn_blocking(move || trust::for_reference(&config, &reference));
            read.await.map_err(|_| ImageError::ShuttingDown)?.map_err(untrusted)?
        };
        match applied {
            Some(applied) => applied.enforce(session, reference, manifests).await.map_err(untrusted),
            None => Ok(()),
        }
    }

    /// Writes documents before the layers, so that one sync covers all of it.
    async fn stage(&self, reference: &Reference, blobs: Vec<(Digest, Vec<u8>)>) -> Result<Vec<Staged>, ImageError> {
        let (store, reference) = (self.store.clone(), reference.to_string());
        blocking(move || {
            let staged = blobs.iter().map(|(digest, bytes)| store.content.stage(*digest, bytes));
            let staged: Result<Vec<Option<Staged>>, _> = staged.collect();
            staged
                .map(|staged| staged.into_iter().flatten().collect())
                .map_err(|source| ImageError::Content { reference, source })
        })
        .await
    }

    fn check(
        &self,
        reference: &Reference,
        manifest: &Manifest,
        digest: Digest,
        config: &Config,
    ) -> Result<(), ImageError> {
        // a config that names no platform comes from a simple builder, for whom there is only one
        if !config.platform.architecture.is_empty() && self.platform.rank(&config.platform).is_none() {
            return Err(self.no_platform(reference, vec![config.platform.to_string()]));
        }
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
        let wrong = if layers != diff_ids {
            ManifestError::Layers { layers, diff_ids }
        } else if layers > self.config.limits.layers {
            ManifestError::TooManyLayers(layers)
        } else if total_size(manifest).is_none() {
            ManifestError::Size
        } else if manifest.artifact.is_some() {
            return Ok(());
        } else {
            let odd = manifest.layers.iter().find(|layer| !manifest::is_layer(&layer.media_type));
            let Some(layer) = odd else { return Ok(()) };
            return Err(ImageError::MediaType {
                reference: reference.to_string(),
                layer: layer.digest,
                media_type: layer.media_type.chars().take(120).collect(),
            });
        };
        Err(ImageError::Manifest { reference: reference.to_string(), what: "manifest", digest, source: wrong })
    }

    fn no_platform(&self, reference: &Reference, offered: Vec<String>) -> ImageError {
        ImageError::NoMatchingPlatform { reference: reference.to_string(), wanted: self.platform.to_string(), offered }
    }

    /// A document that an earlier pull left here.
    async fn kept(&self, digest: Digest) -> Result<Option<Vec<u8>>, ImageError> {
        let store = self.store.clone();
        blocking(move || {
            let kept = store.content.get(digest);
            kept.map_err(|source| ImageError::Content { reference: digest.to_string(), source })
        })
        .await
    }

    async fn fetch_layers(
        self: &Arc<Self>,
        session: &Session,
        reference: &Reference,
        described: &Described,
        chain: &[Digest],
        progress: &Arc<Progress>,
    ) -> Result<(), ImageError> {
        let layers = &described.manifest.layers;
        let missing: Vec<bool> = chain.iter().map(|id| !self.store.snapshots.contains(*id)).collect();
        let expected = layers.iter().zip(&missing).filter(|(_, missing)| **missing).map(|(layer, _)| layer.size);
        progress.expect(layers.len(), expected.sum());
        let slots = Arc::new(Semaphore::new(LAYERS_PER_PULL));
        let mut tasks = JoinSet::new();
        let mut below: Option<Below> = None;
        for (at, descriptor) in layers.iter().enumerate() {
            let (above, next) = handover();
            let layer = Layer {
                puller: self.clone(),
                session: session.clone(),
                reference: reference.to_string(),
                descriptor: descriptor.clone(),
                diff_id: described.config.diff_ids[at],
                is_file: described.manifest.artifact.is_some(),
                chain: chain[..=at].to_vec(),
                progress: progress.clone(),
                expected: missing[at],
            };
            tasks.spawn(layer.fetch(slots.clone(), below.replace(next), above));
        }
        let mut first: Option<ImageError> = None;
        while let Some(result) = tasks.join_next().await {
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tasks.abort_all();
                    first.get_or_insert(error);
                }
                Err(error) if error.is_cancelled() => {}
                Err(_) => {
                    first.get_or_insert(ImageError::ShuttingDown);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    async fn record(
        &self,
        reference: &Reference,
        described: Described,
        chain: Vec<Digest>,
        synced: bool,
    ) -> Result<Arc<Image>, ImageError> {
        let mut record = ImageRecord::new(described.id);
        record.size = total_size(&described.manifest).unwrap_or(u64::MAX);
        record.chain_ids = chain;
        record.platform = described.config.platform.to_string();
        record.created = described.config.created;
        record.config = described.config.config;
        record.artifact = described.manifest.artifact;
        let mut names = vec![reference.with_digest(described.digest)];
        // beside a digest, a tag was not looked at
        if reference.digest().is_none() {
            names.push(reference.stored_name());
        }
        record.blobs = described.blobs;
        let (store, staged) = (self.store.clone(), described.staged);
        blocking(move || {
            if !synced {
                // no new layer took them along
                let synced: Result<(), _> = staged.iter().try_for_each(Staged::sync);
                synced.map_err(|source| ImageError::Content { reference: names.join(", "), source })?;
            }
            store.add(record, staged, &names)
        })
        .await
    }

    /// Holds the right to make one snapshot.
    pub(super) async fn lock(&self, chain_id: Digest) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = locks.entry(chain_id).or_default();
            slot.upgrade().unwrap_or_else(|| {
                let fresh = Arc::new(tokio::sync::Mutex::new(()));
                *slot = Arc::downgrade(&fresh);
                fresh
            })
        };
        mutex.lock_owned().await
    }

    fn forget_locks(&self) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, slot| slot.strong_count() > 0);
    }
}

/// Waits for the layers and says in the log how far they are.
async fn told_of<T>(fetching: impl Future<Output = T>, progress: &Progress) -> T {
    tokio::pin!(fetching);
    let mut often = tokio::time::interval(progress::LOG_EVERY);
    often.tick().await;
    loop {
        // cancel safety: the pull is polled in place, a tick that is lost comes again
        tokio::select! {
            fetched = &mut fetching => return fetched,
            _ = often.tick() => progress.log(),
        }
    }
}

/// Compressed layers and config; `None` when that is no number.
fn total_size(manifest: &Manifest) -> Option<u64> {
    manifest.layers.iter().try_fold(manifest.config.size, |sum, layer| sum.checked_add(layer.size))
}
