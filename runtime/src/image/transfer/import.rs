//! Images from a file into the store, by the way that pulled ones take: verified, synced, then named.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::TransferError;
use super::plan::{Planned, PlannedLayer, plan};
use super::source::Source;
use crate::content::memory::Lease;
use crate::content::{Digest, Staged};
use crate::image::error::ImageError;
use crate::image::manifest::ManifestError;
use crate::image::model::Image;
use crate::image::progress::Progress;
use crate::image::pull::Puller;
use crate::image::reference::Reference;
use crate::image::store::ImageRecord;
use crate::image::{blocking, delete, trust};
use crate::snapshot::{Feed, Form, LayerLimits, Settled, Workers, chain_ids};

impl Puller {
    /// Imports every image of a file; `name` replaces the names that are in there.
    pub(crate) async fn import(
        self: Arc<Self>,
        path: PathBuf,
        name: Option<Reference>,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        let progress = self.running.start(path.display().to_string());
        let (source, transport, planned) = {
            let (puller, path) = (self.clone(), path.clone());
            blocking(move || {
                let opened = Source::open(&path, &puller.store.temporary, puller.config.limits.layer_bytes);
                let source = opened.map_err(|error| error.at(&path))?;
                let (transport, planned) = plan(&source, &puller.platform).map_err(|error| error.at(&path))?;
                Ok((Arc::new(source), transport, planned))
            })
            .await?
        };
        trust::check_archive(&self.config.trust, transport)
            .map_err(|source| ImageError::Trust { image: path.display().to_string(), source: Box::new(source) })?;
        if let Some(name) = &name
            && planned.len() != 1
        {
            return Err(TransferError::Several { count: planned.len(), name: name.to_string() }.at(&path));
        }
        let layers = || planned.iter().flat_map(|image| &image.layers);
        progress.expect(layers().count(), layers().map(|layer| layer.size).sum());
        let mut images = Vec::with_capacity(planned.len());
        for mut image in planned {
            if let Some(name) = &name {
                image.names = vec![name.clone()];
            }
            images.push(self.import_one(&source, &path, image, &progress).await?);
        }
        Ok(images)
    }

    async fn import_one(
        self: &Arc<Self>,
        source: &Arc<Source>,
        path: &Path,
        planned: Planned,
        progress: &Arc<Progress>,
    ) -> Result<Arc<Image>, ImageError> {
        self.acceptable(&planned).map_err(|error| error.at(path))?;
        let chain = chain_ids(&planned.config.diff_ids);
        let pin = self.store.snapshots.pin(&chain);
        let mut below: Vec<Arc<File>> = Vec::new();
        let mut settled: Vec<Settled> = Vec::new();
        // held until the layers have their names: a pull of the same layer waits and then finds them
        let mut locks = Vec::new();
        for (at, layer) in planned.layers.iter().enumerate() {
            let chain = chain[..=at].to_vec();
            let chain_id = chain[at];
            locks.push(self.lock(chain_id).await);
            let failed = {
                let (reference, digest) = (path.display().to_string(), planned.config.diff_ids[at]);
                move |source| ImageError::Layer { reference, layer: digest, source: Box::new(source) }
            };
            let store = self.store.clone();
            if store.snapshots.contains(chain_id) {
                progress.correct(layer.size, 0);
                below.push(blocking(move || store.snapshots.open_layer(chain_id).map_err(failed)).await?);
            } else {
                let built = self.unpack(source, path, layer, planned.config.diff_ids[at], progress).await?;
                let parents = below.clone();
                let done = blocking(move || store.snapshots.settle(built, &chain, &parents).map_err(failed)).await?;
                below.push(done.layer.clone());
                settled.push(done);
            }
            progress.layer_done();
        }
        let (store, path) = (self.store.clone(), path.to_owned());
        let image = blocking(move || {
            let (record, names) = record(&planned, chain);
            let staged: Result<Vec<Option<Staged>>, _> =
                planned.blobs.iter().map(|(digest, bytes)| store.content.stage(*digest, bytes)).collect();
            let staged =
                staged.map_err(|source| ImageError::Content { reference: path.display().to_string(), source })?;
            // one for the layers and the documents
            store.snapshots.sync(&settled.iter().collect::<Vec<_>>())?;
            for layer in settled {
                store.snapshots.commit(layer)?;
            }
            store.add(record, staged.into_iter().flatten().collect(), &names)
        })
        .await?;
        drop(locks);
        // before the sweep: when the image was removed again meanwhile, its layers were left to this one
        drop(pin);
        let store = self.store.clone();
        delete(blocking(move || store.sweep_old()).await?);
        log::info!(image = image.id.as_str(), names:? = image.tags; "image imported");
        Ok(image)
    }

    fn acceptable(&self, planned: &Planned) -> Result<(), TransferError> {
        let (layers, diff_ids) = (planned.layers.len(), planned.config.diff_ids.len());
        let wrong = |source| TransferError::Manifest { digest: planned.id, source };
        if layers != diff_ids {
            return Err(wrong(ManifestError::Layers { layers, diff_ids }));
        }
        if layers > self.config.limits.layers {
            return Err(wrong(ManifestError::TooManyLayers(layers)));
        }
        if planned.names.is_empty() {
            return Err(TransferError::Nameless { id: planned.id });
        }
        let platform = &planned.config.platform;
        if !platform.architecture.is_empty() && self.platform.rank(platform).is_none() {
            let what = format!("it is for {platform}, this host is {}", self.platform);
            return Err(TransferError::Document { name: planned.id.to_string(), what });
        }
        Ok(())
    }

    async fn unpack(
        &self,
        source: &Arc<Source>,
        path: &Path,
        layer: &PlannedLayer,
        diff_id: Digest,
        progress: &Arc<Progress>,
    ) -> Result<crate::snapshot::Built, ImageError> {
        let limits = &self.config.limits;
        let limits = LayerLimits { bytes: limits.layer_bytes, entries: limits.layer_entries };
        let memory = self.memory.layer().await.ok_or(ImageError::ShuttingDown)?;
        let Workers { buffers, feed, built } = self.store.snapshots.start(diff_id, Form::Archive, limits, memory, None);
        let fed = {
            let (source, path, progress) = (source.clone(), path.to_owned(), progress.clone());
            let (name, digest) = (layer.name.clone(), layer.digest);
            blocking(move || {
                let opened = source.reader(&name).map_err(|error| error.at(&path))?;
                let (reader, _) = opened.ok_or_else(|| TransferError::Missing { name: name.clone() }.at(&path))?;
                send(reader, (&buffers, &feed), &name, digest, &progress).map_err(|error| error.at(&path))
            })
            .await
        };
        let built = built.await.map_err(|_| ImageError::ShuttingDown)?;
        // what was read wrong explains what was unpacked wrong
        fed?;
        built.map_err(|source| ImageError::Layer {
            reference: path.display().to_string(),
            layer: diff_id,
            source: Box::new(source),
        })
    }
}

fn send(
    mut reader: impl Read,
    (buffers, feed): (&Lease, &mpsc::Sender<Feed>),
    name: &str,
    expected: Option<Digest>,
    progress: &Progress,
) -> Result<(), TransferError> {
    let mut hasher = Sha256::new();
    loop {
        let mut buffer = buffers.blocking_buffer();
        let length = reader.read(buffer.space()).map_err(TransferError::disk("read"))?;
        if length == 0 {
            break;
        }
        buffer.add(length);
        hasher.update(&buffer);
        progress.came(length);
        if feed.blocking_send(Feed::Data(buffer.freeze())).is_err() {
            // the worker says why in its result
            return Ok(());
        }
    }
    let actual = Digest::finish(hasher);
    if let Some(expected) = expected
        && expected != actual
    {
        return Err(TransferError::Digest { name: name.to_owned(), actual });
    }
    let _ = feed.blocking_send(Feed::End);
    Ok(())
}

/// The record and its names.
fn record(planned: &Planned, chain: Vec<Digest>) -> (ImageRecord, Vec<String>) {
    let mut record = ImageRecord::new(planned.id);
    let config_size = planned.blobs.last().map_or(0, |(_, bytes)| bytes.len() as u64);
    record.size = planned.layers.iter().fold(config_size, |sum, layer| sum.saturating_add(layer.size));
    record.chain_ids = chain;
    record.platform = planned.config.platform.to_string();
    record.created = planned.config.created.clone();
    record.config = planned.config.config.clone();
    record.blobs = planned.blobs.iter().map(|(digest, _)| *digest).collect();
    let mut names: Vec<String> = Vec::new();
    for reference in &planned.names {
        names.push(reference.stored_name());
        if let Some(digest) = planned.digest {
            names.push(reference.with_digest(digest));
        }
    }
    names.sort();
    names.dedup();
    (record, names)
}
