//! One layer of a pull: a task that downloads and unpacks, fits the result to the layers below, and commits it.
//!
//! Layers are downloaded side by side. Two things go from the bottom up: fitting, for which a layer needs the
//! directories of those below, and naming, so that whatever has its name stands on something that has one, too.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, oneshot};

use super::error::ImageError;
use super::error_code::ErrorCode;
use super::manifest::{Descriptor, ManifestError};
use super::progress::Progress;
use super::pull::Puller;
use super::registry::{Blob, Session};
use super::{artifact, blocking};
use crate::content::memory::Buffer;
use crate::content::{Digest, Kept};
use crate::snapshot::{Built, Feed, Form, LayerLimits, SnapshotError, Workers};

/// A download that has lasted so long is worth keeping what comes: a shorter one is faster begun anew than written
/// twice.
const SLOW: Duration = Duration::from_secs(1);

/// One layer on its way.
pub(super) struct Layer {
    pub puller: Arc<Puller>,
    pub session: Session,
    pub reference: String,
    pub descriptor: Descriptor,
    pub diff_id: Digest,
    /// Of an artifact: a file as it is.
    pub is_file: bool,
    /// Up to and including this layer.
    pub chain: Vec<Digest>,
    pub progress: Arc<Progress>,
    /// Its bytes are among those that the pull expects.
    pub expected: bool,
}

/// What a layer tells the one above it, and when.
pub(super) struct Above {
    settled: oneshot::Sender<Vec<Arc<File>>>,
    committed: oneshot::Sender<()>,
}

/// The same, from above.
pub(super) struct Below {
    /// The open directories of all layers below, bottom first: enough to fit another one onto them.
    settled: oneshot::Receiver<Vec<Arc<File>>>,
    /// Everything below has its name.
    committed: oneshot::Receiver<()>,
}

pub(super) fn handover() -> (Above, Below) {
    let (settled, below) = oneshot::channel();
    let (committed, all_below) = oneshot::channel();
    (Above { settled, committed }, Below { settled: below, committed: all_below })
}

impl Layer {
    /// Makes sure that the snapshot exists. Waiting is always for something lower in a chain, so it ends. When a
    /// lower layer fails, this one gives up in silence: the lower one reports why.
    pub(super) async fn fetch(
        self,
        slots: Arc<Semaphore>,
        below: Option<Below>,
        above: Above,
    ) -> Result<(), ImageError> {
        let Some(chain_id) = self.chain.last().copied() else { return Ok(()) };
        let _lock = self.puller.lock(chain_id).await;
        let store = self.puller.store.clone();
        let built = if store.snapshots.contains(chain_id) {
            if self.expected {
                // another pull was faster
                self.progress.correct(self.descriptor.size, 0);
            }
            None
        } else {
            let _slot = slots.acquire().await.map_err(|_| ImageError::ShuttingDown)?;
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
                if let Some(settled) = &settled {
                    store.snapshots.sync(&[settled]).map_err(|error| failed.with(error))?;
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
        self.progress.layer_done();
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
        let (partials, digest) = (self.puller.store.partials.clone(), self.descriptor.digest);
        let kept = self.kept().await?;
        let past = kept.as_ref().map(|kept| Ok((kept.start, kept.end, kept.reader()?))).transpose();
        let past = past.map_err(ImageError::disk("read what was kept of", digest.to_string()))?;
        let resumed = past.is_some();
        let memory = self.puller.memory.layer().await.ok_or(ImageError::ShuttingDown)?;
        let keeper = partials.keeper(digest, kept);
        let form = if self.is_file {
            Form::File(artifact::around(&self.descriptor).map_err(|source| self.unusable(source))?)
        } else {
            Form::Archive
        };
        let mut workers = self.puller.store.snapshots.start(self.diff_id, form, limits, memory, Some(keeper));
        let mut moved = 0;
        let transferred = self.transfer(blob, past, &mut workers, &mut moved).await;
        let Workers { feed, mut built, .. } = workers;
        drop(feed);
        if transferred.is_err() {
            // the next attempt counts from the beginning
            self.progress.correct(0, moved);
        }
        if transferred.is_err() && !built.is_finished() {
            // it notices that nothing comes any more and removes what it made
            let _ = (&mut built).await;
        }
        match &transferred {
            // before the sync, so that its bytes never have to reach the disk
            Ok(_) => partials.remove(digest),
            Err(error) if matches!(error.code(), ErrorCode::DigestMismatch | ErrorCode::InvalidImage) => {
                partials.remove(digest);
                if resumed {
                    log::info!(layer:% = digest; "what was kept of it is damaged, beginning anew");
                    return Box::pin(self.download_from(place)).await;
                }
            }
            // the next attempt goes on from there
            Err(_) => {}
        }
        transferred
    }

    fn unusable(&self, source: ManifestError) -> ImageError {
        let (reference, digest) = (self.reference.clone(), self.descriptor.digest);
        ImageError::Manifest { reference, what: "manifest", digest, source }
    }

    /// What an earlier download left.
    async fn kept(&self) -> Result<Option<Kept>, ImageError> {
        let (store, digest, size) = (self.puller.store.clone(), self.descriptor.digest, self.descriptor.size);
        blocking(move || {
            store.partials.find(digest, size).map_err(ImageError::disk("read what was kept of", digest.to_string()))
        })
        .await
    }

    /// Moves bytes from the registry to the workers, and compares their digest. `past` is what an earlier download
    /// kept, in the middle of the blob.
    async fn transfer(
        &self,
        mut blob: Blob,
        past: Option<(u64, u64, io::Take<File>)>,
        workers: &mut Workers,
        moved: &mut u64,
    ) -> Result<Built, ImageError> {
        let mut moving = Moving { layer: self, workers, hasher: Sha256::new(), failure: None, filling: None, moved };
        if let Some((start, end, input)) = past {
            blob.stop_at(start);
            moving.read_registry(&mut blob, None).await?;
            moving.read_kept(input).await?;
            blob.skip_to(end);
            log::info!(layer:% = self.descriptor.digest, bytes = end - start; "going on where an earlier download ended");
            // its copy is to have no gap
            moving.read_registry(&mut blob, Some(Instant::now())).await?;
        } else {
            moving.read_registry(&mut blob, Some(Instant::now() + SLOW)).await?;
        }
        moving.end(&blob).await
    }
}

/// A transfer under way.
struct Moving<'a> {
    layer: &'a Layer,
    workers: &'a mut Workers,
    hasher: Sha256,
    /// Why the workers ended early.
    failure: Option<SnapshotError>,
    filling: Option<Buffer>,
    moved: &'a mut u64,
}

impl Moving<'_> {
    /// All that the registry gives; what comes from a certain time on is kept.
    async fn read_registry(&mut self, blob: &mut Blob, keep_from: Option<Instant>) -> Result<(), ImageError> {
        while let Some(piece) = blob.next().await? {
            self.count(&piece);
            let mut rest = &piece[..];
            while !rest.is_empty() && self.failure.is_none() {
                let mut buffer = match self.filling.take() {
                    Some(buffer) => buffer,
                    None => self.workers.buffers.buffer().await,
                };
                rest = buffer.take(rest);
                if buffer.is_full() {
                    self.send(buffer, keep_from.is_some_and(|from| Instant::now() >= from)).await?;
                } else {
                    self.filling = Some(buffer);
                }
            }
        }
        match self.filling.take() {
            Some(last) if self.failure.is_none() => self.send(last, false).await,
            _ => Ok(()),
        }
    }

    async fn read_kept(&mut self, input: io::Take<File>) -> Result<(), ImageError> {
        let failed = || ImageError::disk("read what was kept of", self.layer.descriptor.digest.to_string());
        let wanted = input.limit();
        let mut input = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(input.into_inner()), wanted);
        while self.failure.is_none() {
            let mut buffer = self.workers.buffers.buffer().await;
            let length = tokio::io::AsyncReadExt::read(&mut input, buffer.space()).await.map_err(failed())?;
            if length == 0 {
                break;
            }
            buffer.add(length);
            self.count(buffer.as_ref());
            self.send(buffer, false).await?;
        }
        Ok(())
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.layer.progress.came(bytes.len());
        *self.moved += bytes.len() as u64;
    }

    async fn send(&mut self, buffer: Buffer, keep: bool) -> Result<(), ImageError> {
        let bytes = buffer.freeze();
        if self.workers.feed.send(if keep { Feed::Keep(bytes) } else { Feed::Data(bytes) }).await.is_ok() {
            return Ok(());
        }
        let error = finished(self.workers).await.err().unwrap_or(SnapshotError::ShuttingDown);
        if error.code() != ErrorCode::InvalidImage {
            return Err(self.layer.failed().with(error));
        }
        // if the rest shows that these are not the right bytes, that is the better explanation
        self.failure = Some(error);
        Ok(())
    }

    /// Compares the digest and waits for the workers.
    async fn end(self, blob: &Blob) -> Result<Built, ImageError> {
        let layer = self.layer;
        let actual = Digest::finish(self.hasher);
        if actual != layer.descriptor.digest {
            return Err(ImageError::LayerDigest {
                reference: layer.reference.clone(),
                registry: blob.registry().to_owned(),
                expected: layer.descriptor.digest,
                actual,
            });
        }
        if let Some(error) = self.failure {
            return Err(layer.failed().with(error));
        }
        // workers that are gone say why in their result
        let _ = self.workers.feed.send(Feed::End).await;
        finished(self.workers).await.map_err(|error| layer.failed().with(error))
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

async fn finished(workers: &mut Workers) -> Result<Built, SnapshotError> {
    (&mut workers.built).await.unwrap_or(Err(SnapshotError::ShuttingDown))
}
