//! One pull: from a reference to an image in the store.
//!
//! Manifest, config, then all layers that are not here yet, a few at a time. Each layer is one task that downloads,
//! unpacks and waits for the layer below before it is committed; what is committed stays even when the pull fails, so
//! that the next one continues from there.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::config::ImagesConfig;
use super::credentials::Credentials;
use super::error::{ErrorCode, ImageError};
use super::manifest::{self, Config, Descriptor, Document, Manifest, ManifestError};
use super::model::Image;
use super::platform::Platform;
use super::reference::Reference;
use super::registry::{Blob, Registry, Session};
use super::store::{ImageRecord, Store};
use super::{blocking, delete};
use crate::content::{Digest, Staged};
use crate::snapshot::{Built, Feed, LayerLimits, SnapshotError, chain_ids};

/// Layers of one image at a time: more do not help a disk, fewer do not fill a network.
const LAYERS_PER_PULL: usize = 3;
/// Layers of all images together. Each takes about 2 MiB of memory.
const LAYERS: usize = 6;
const MAX_CONFIG: u64 = 8 << 20;

/// What all pulls share.
#[derive(Debug)]
pub(crate) struct Puller {
    config: ImagesConfig,
    store: Arc<Store>,
    registry: Arc<Registry>,
    platform: Platform,
    layers: Arc<Semaphore>,
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
    pub(crate) fn new(config: ImagesConfig, store: Arc<Store>) -> Result<Puller, ImageError> {
        let registry = Arc::new(Registry::new(config.timeouts)?);
        Ok(Puller {
            config,
            store,
            registry,
            platform: Platform::host(),
            layers: Arc::new(Semaphore::new(LAYERS)),
            locks: Mutex::default(),
        })
    }

    /// Pulls one image. Dropping the future stops it; workers clean up behind them.
    pub(crate) async fn pull(
        self: Arc<Self>,
        reference: Reference,
        credentials: Option<Credentials>,
    ) -> Result<Arc<Image>, ImageError> {
        let started = std::time::Instant::now();
        let mut session = self.registry.session(&self.config, &reference, credentials.as_ref())?;
        let described = self.describe(&mut session, &reference).await?;
        let chain = chain_ids(&described.config.diff_ids);
        // before looking which are here: a removal at the same moment must not take them away
        let _pin = self.store.snapshots.pin(&chain);
        let synced = chain.iter().any(|id| !self.store.snapshots.contains(*id));
        let fetched = self.fetch_layers(&session, &reference, &described, &chain).await;
        self.forget_locks();
        fetched?;
        let image = self.record(&reference, described, chain, synced).await?;
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
        let document = manifest::parse(&blobs[0].1).map_err(unusable("manifest", top.digest))?;
        let (manifest, manifest_digest) = match document {
            Document::Manifest(manifest) => (manifest, top.digest),
            Document::Index(offered) => {
                let chosen = manifest::choose(&offered, &self.platform)
                    .ok_or_else(|| self.no_platform(reference, manifest::offered(&offered)))?;
                let digest = chosen.digest;
                let bytes = match self.kept(digest).await? {
                    Some(bytes) => bytes,
                    None => session.manifest(digest).await?.bytes,
                };
                let parsed = manifest::parse(&bytes).map_err(unusable("manifest", digest))?;
                blobs.push((digest, bytes));
                match parsed {
                    Document::Manifest(manifest) => (manifest, digest),
                    Document::Index(_) => return Err(unusable("manifest", digest)(ManifestError::Unknown)),
                }
            }
        };
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
        self.check(reference, &manifest, manifest_digest, &config)?;
        let names = blobs.iter().map(|(digest, _)| *digest).collect();
        let staged = self.stage(reference, blobs).await?;
        Ok(Described { digest: top.digest, id, manifest, config, blobs: names, staged })
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
    ) -> Result<(), ImageError> {
        let slots = Arc::new(Semaphore::new(LAYERS_PER_PULL));
        let mut tasks = JoinSet::new();
        let mut below: Option<Below> = None;
        for (at, descriptor) in described.manifest.layers.iter().enumerate() {
            let (above, next) = handover();
            let layer = Layer {
                puller: self.clone(),
                session: session.clone(),
                reference: reference.to_string(),
                descriptor: descriptor.clone(),
                diff_id: described.config.diff_ids[at],
                chain: chain[..=at].to_vec(),
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
        let mut names = vec![reference.with_digest(described.digest)];
        // beside a digest, a tag was not looked at
        if reference.digest().is_none() {
            names.push(reference.stored_name());
        }
        record.blobs = described.blobs;
        let (store, staged) = (self.store.clone(), described.staged);
        let image = blocking(move || {
            if !synced {
                // no new layer took them along
                let synced: Result<(), _> = staged.iter().try_for_each(Staged::sync);
                synced.map_err(|source| ImageError::Content { reference: names.join(", "), source })?;
            }
            store.add(record, staged, &names)
        })
        .await?;
        let store = self.store.clone();
        // layers of pulls that never came to an end
        delete(blocking(move || store.sweep_old()).await?);
        Ok(image)
    }

    /// Holds the right to make one snapshot.
    async fn lock(&self, chain_id: Digest) -> OwnedMutexGuard<()> {
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

/// Compressed layers and config; `None` when that is no number.
fn total_size(manifest: &Manifest) -> Option<u64> {
    manifest.layers.iter().try_fold(manifest.config.size, |sum, layer| sum.checked_add(layer.size))
}

/// One layer on its way.
struct Layer {
    puller: Arc<Puller>,
    session: Session,
    reference: String,
    descriptor: Descriptor,
    diff_id: Digest,
    /// Up to and including this layer.
    chain: Vec<Digest>,
}

/// What a layer tells the one above it, and when.
struct Above {
    settled: oneshot::Sender<Vec<Arc<File>>>,
    committed: oneshot::Sender<()>,
}

/// The same, from above.
struct Below {
    /// The open directories of all layers below, bottom first: enough to fit another one onto them.
    settled: oneshot::Receiver<Vec<Arc<File>>>,
    /// Everything below has its name.
    committed: oneshot::Receiver<()>,
}

fn handover() -> (Above, Below) {
    let (settled, below) = oneshot::channel();
    let (committed, all_below) = oneshot::channel();
    (Above { settled, committed }, Below { settled: below, committed: all_below })
}

impl Layer {
    /// Makes sure that the snapshot exists. Waiting is always for something lower in a chain, so it ends. When a
    /// lower layer fails, this one gives up in silence: the lower one reports why.
    async fn fetch(self, slots: Arc<Semaphore>, below: Option<Below>, above: Above) -> Result<(), ImageError> {
        let Some(chain_id) = self.chain.last().copied() else { return Ok(()) };
        let _lock = self.puller.lock(chain_id).await;
        let store = self.puller.store.clone();
        let built = if store.snapshots.contains(chain_id) {
            None
        } else {
            let _slot = slots.acquire().await.map_err(|_| ImageError::ShuttingDown)?;
            let _place = self.puller.layers.acquire().await.map_err(|_| ImageError::ShuttingDown)?;
            Some(self.download().await?)
        };
        let (settled, committed) = below.map_or((None, None), |below| (Some(below.settled), Some(below.committed)));
        let mut layers = match settled {
            None => Vec::new(),
            Some(settled) => match settled.await {
                Ok(layers) => layers,
                Err(_) => return aside(built).await,
            },
        };
        let (chain, failed) = (self.chain.clone(), self.failed());
        let settled = {
            let (store, failed) = (store.clone(), failed.clone());
            blocking(move || match built {
                None => Ok((store.snapshots.open_layer(chain_id).map_err(|error| failed.with(error))?, layers, None)),
                Some(built) => {
                    let settled = store.snapshots.settle(built, &chain, &layers).map_err(|error| failed.with(error))?;
                    let own = settled.layer.clone();
                    Ok((own, std::mem::take(&mut layers), Some(settled)))
                }
            })
            .await?
        };
        let (own, mut layers, settled) = settled;
        layers.push(own);
        // nobody above is fine, here and below
        let _ = above.settled.send(layers);
        let settled = blocking({
            let (store, failed) = (store.clone(), failed.clone());
            move || {
                if settled.is_some() {
                    store.snapshots.sync().map_err(|error| failed.with(error))?;
                }
                Ok(settled)
            }
        })
        .await?;
        if let Some(committed) = committed
            && committed.await.is_err()
        {
            return aside(settled).await;
        }
        if let Some(settled) = settled {
            blocking(move || store.snapshots.commit(settled).map_err(|error| failed.with(error))).await?;
        }
        let _ = above.committed.send(());
        Ok(())
    }

    fn failed(&self) -> Failed {
        Failed { reference: self.reference.clone(), layer: self.descriptor.digest }
    }

    /// Downloads and unpacks, from the next place when one sends something wrong.
    async fn download(&self) -> Result<Built, ImageError> {
        let mut place = 0;
        loop {
            match self.download_from(place).await {
                Err(error)
                    if place + 1 < self.session.places()
                        && matches!(
                            error.code(),
                            ErrorCode::DigestMismatch
                                | ErrorCode::RegistryUnavailable
                                | ErrorCode::NotFound
                                | ErrorCode::Unauthorized
                        ) =>
                {
                    log::warn!(layer:% = self.descriptor.digest, error:% = error; "trying the next registry");
                    place += 1;
                }
                other => return other,
            }
        }
    }

    async fn download_from(&self, place: usize) -> Result<Built, ImageError> {
        let limits = &self.puller.config.limits;
        let limits = LayerLimits { bytes: limits.layer_bytes, entries: limits.layer_entries };
        let blob = self.session.blob(place, self.descriptor.digest, self.descriptor.size)?;
        let (feed, mut worker) = self.puller.store.snapshots.start(self.diff_id, limits);
        let transferred = self.transfer(blob, feed, &mut worker).await;
        if transferred.is_err() && !worker.is_finished() {
            // it notices that nothing comes any more and removes what it made
            let _ = finished(&mut worker).await;
        }
        transferred
    }

    /// Moves bytes from the registry to the worker, and compares their digest.
    async fn transfer(
        &self,
        mut blob: Blob,
        feed: mpsc::Sender<Feed>,
        worker: &mut JoinHandle<Result<Built, SnapshotError>>,
    ) -> Result<Built, ImageError> {
        let failed = self.failed();
        let mut failure = None;
        let mut hasher = Sha256::new();
        while let Some(piece) = blob.next().await? {
            hasher.update(&piece);
            if failure.is_none() && feed.send(Feed::Data(piece)).await.is_err() {
                let error = finished(worker).await.err().unwrap_or(SnapshotError::ShuttingDown);
                if error.code() != ErrorCode::InvalidImage {
                    return Err(failed.with(error));
                }
                // if the rest shows that these are not the right bytes, that is the better explanation
                failure = Some(error);
            }
        }
        let actual = Digest::finish(hasher);
        if actual != self.descriptor.digest {
            return Err(ImageError::LayerDigest {
                reference: self.reference.clone(),
                registry: blob.registry().to_owned(),
                expected: self.descriptor.digest,
                actual,
            });
        }
        if let Some(error) = failure {
            return Err(failed.with(error));
        }
        // a worker that is gone says why in its result
        let _ = feed.send(Feed::End).await;
        finished(worker).await.map_err(|error| failed.with(error))
    }
}

/// Deleting what is not wanted after all is disk work.
async fn aside<T: Send + 'static>(unwanted: T) -> Result<(), ImageError> {
    blocking(move || {
        drop(unwanted);
        Ok(())
    })
    .await
}

/// Which layer of which image an error is about.
#[derive(Clone)]
struct Failed {
    reference: String,
    layer: Digest,
}

impl Failed {
    fn with(&self, source: SnapshotError) -> ImageError {
        ImageError::Layer { reference: self.reference.clone(), layer: self.layer, source: Box::new(source) }
    }
}

async fn finished(worker: &mut JoinHandle<Result<Built, SnapshotError>>) -> Result<Built, SnapshotError> {
    worker.await.unwrap_or(Err(SnapshotError::ShuttingDown))
}
