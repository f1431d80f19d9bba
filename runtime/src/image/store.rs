//! Image records: which images are here and under which names.
//!
//! One JSON file per image, written durably. A tag belongs to one image; should a crash leave it in two records, the
//! newer generation wins. Everything here blocks on the disk: callers use worker threads. Readers never wait for
//! writers' disk work: they look at an index that is swapped under a short lock.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::error::ImageError;
use super::model::{Image, ImageConfig};
use super::reference::Reference;
use super::rootfs::RootfsRecord;
use crate::content::{ContentStore, Digest, Partials, Staged, disk};
use crate::snapshot::Snapshots;

const VERSION: u32 = 1;
/// Shorter ids are more likely a name that happens to be hexadecimal.
const MIN_ID_PREFIX: usize = 3;
/// How long layers of a failed pull wait for the next attempt.
const ORPHAN_AGE: Duration = Duration::from_secs(3600);

/// An image as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub version: u32,
    pub id: Digest,
    /// Manifests, indexes and the config in the content store.
    pub blobs: Vec<Digest>,
    pub names: Vec<Name>,
    pub size: u64,
    pub chain_ids: Vec<Digest>,
    pub platform: String,
    pub created: Option<String>,
    pub config: ImageConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
}

/// `name:tag` or `name@digest`, and when it was given to the image, counted over all images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Name {
    pub name: String,
    pub generation: u64,
}

impl ImageRecord {
    pub(crate) fn new(id: Digest) -> ImageRecord {
        ImageRecord {
            version: VERSION,
            id,
            blobs: Vec::new(),
            names: Vec::new(),
            size: 0,
            chain_ids: Vec::new(),
            platform: String::new(),
            created: None,
            config: ImageConfig::default(),
            artifact: None,
        }
    }

    fn image(&self) -> Image {
        let (mut digests, mut tags): (Vec<String>, Vec<String>) =
            self.names.iter().map(|name| name.name.clone()).partition(|name| name.contains('@'));
        digests.sort();
        tags.sort();
        Image {
            id: self.id.to_string(),
            tags,
            digests,
            size: self.size,
            config: self.config.clone(),
            chain_ids: self.chain_ids.clone(),
            created: self.created.clone(),
            platform: self.platform.clone(),
            artifact: self.artifact.clone(),
        }
    }
}

#[derive(Debug, Default)]
struct Index {
    records: HashMap<Digest, ImageRecord>,
    images: HashMap<Digest, Arc<Image>>,
    names: HashMap<String, Digest>,
}

impl Index {
    fn insert(&mut self, record: ImageRecord) {
        self.remove(record.id);
        for name in &record.names {
            self.names.insert(name.name.clone(), record.id);
        }
        self.images.insert(record.id, Arc::new(record.image()));
        self.records.insert(record.id, record);
    }

    fn remove(&mut self, id: Digest) {
        self.images.remove(&id);
        if let Some(record) = self.records.remove(&id) {
            for name in &record.names {
                if self.names.get(&name.name) == Some(&id) {
                    self.names.remove(&name.name);
                }
            }
        }
    }
}

/// Records of images and of the containers that use them.
#[derive(Debug)]
pub(crate) struct Store {
    pub(super) root: PathBuf,
    pub(super) temporary: PathBuf,
    directory: PathBuf,
    pub(super) content: ContentStore,
    pub(super) snapshots: Snapshots,
    pub(super) partials: Partials,
    index: RwLock<Index>,
    pub(super) containers: RwLock<HashMap<String, RootfsRecord>>,
    /// Held by whoever changes files; the value is the next generation.
    writer: Mutex<u64>,
    /// Held as long as this store is open: a second one would sweep away what the first is about to write.
    _lock: Flock<File>,
}

impl Store {
    /// Opens everything below `root` and drops what a crash left unfinished. Another process that has the store, a
    /// command or a daemon that stops, is waited for so long.
    pub(crate) fn open(root: &Path, wait: Duration) -> Result<Store, ImageError> {
        let temporary = root.join("tmp");
        let directory = root.join("images");
        for path in [&temporary, &directory] {
            std::fs::create_dir_all(path).map_err(ImageError::disk("create", path))?;
        }
        let lock = lock(root, wait)?;
        let unfinished = std::fs::read_dir(&temporary).map_err(ImageError::disk("list", &temporary))?;
        for entry in unfinished.flatten() {
            log::info!(path:% = entry.path().display(); "dropping what was not finished");
            disk::remove_all(&entry.path());
        }
        let content = ContentStore::open(root, &temporary)
            .map_err(|source| ImageError::Content { reference: "the store".to_owned(), source })?;
        let snapshots = Snapshots::open(root, &temporary)?;
        let partials = Partials::open(root).map_err(ImageError::disk("create", root.join("partial")))?;
        partials.sweep(ORPHAN_AGE);
        let (index, generation) = load(&directory, &snapshots)?;
        let containers = super::rootfs::load(root)?;
        Ok(Store {
            root: root.to_owned(),
            temporary,
            directory,
            content,
            snapshots,
            partials,
            index: RwLock::new(index),
            containers: RwLock::new(containers),
            writer: Mutex::new(generation),
            _lock: lock,
        })
    }

    pub(super) fn writer(&self) -> MutexGuard<'_, u64> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every image, in a stable order.
    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = self.read().images.values().cloned().collect();
        images.sort_by(|a, b| a.id.cmp(&b.id));
        images
    }

    /// By id, tag, digest, or the beginning of an id.
    pub(crate) fn find(&self, text: &str) -> Option<Arc<Image>> {
        let index = self.read();
        if let Ok(id) = text.parse::<Digest>().or_else(|_| Digest::from_hex(text)) {
            return index.images.get(&id).cloned();
        }
        if let Ok(reference) = Reference::parse(text)
            && let Some(id) = index.names.get(&reference.stored_name())
        {
            return index.images.get(id).cloned();
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let hex = prefix.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !hex || prefix.len() < MIN_ID_PREFIX {
            return None;
        }
        let mut matching = index.images.iter().filter(|(id, _)| id.hex().starts_with(prefix)).map(|(_, image)| image);
        match (matching.next(), matching.next()) {
            (Some(image), None) => Some(image.clone()),
            _ => None,
        }
    }

    /// The record behind an image.
    pub(crate) fn record(&self, id: Digest) -> Option<ImageRecord> {
        self.read().records.get(&id).cloned()
    }

    /// Adds an image or more names for one. Its snapshots are there already and pinned by the caller. Names that
    /// another image had move here.
    pub(crate) fn add(
        &self,
        mut record: ImageRecord,
        staged: Vec<Staged>,
        names: &[String],
    ) -> Result<Arc<Image>, ImageError> {
        // blobs get their names under the same lock, or a sweep could take them before the record names them
        let mut generation = self.writer();
        for blob in staged {
            self.content.commit(blob).map_err(|source| ImageError::Content { reference: names.join(", "), source })?;
        }
        // those that were here before may have gone with an image that was removed meanwhile
        if record.blobs.iter().any(|blob| !self.content.path(*blob).exists()) {
            return Err(ImageError::NotHere { image: record.id.to_string() });
        }
        if let Some(existing) = self.record(record.id) {
            record.names = existing.names;
            for blob in existing.blobs {
                if !record.blobs.contains(&blob) {
                    record.blobs.push(blob);
                }
            }
        }
        record.names.retain(|name| !names.contains(&name.name));
        record.names.extend(names.iter().map(|name| Name { name: name.clone(), generation: *generation }));
        *generation += 1;
        let mut poorer: Vec<ImageRecord> = Vec::new();
        for name in names {
            let owner = self.read().names.get(name).copied();
            if let Some(owner) = owner.filter(|owner| *owner != record.id)
                && !poorer.iter().any(|other| other.id == owner)
            {
                poorer.extend(self.record(owner));
            }
        }
        // the new owner first: after a crash in between, its newer generation wins
        self.write(&record, &[self.snapshots.directory(), self.content.directory()])?;
        let id = record.id;
        {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            index.insert(record);
        }
        for mut other in poorer {
            other.names.retain(|name| !names.contains(&name.name));
            self.write(&other, &[])?;
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            // its old names must not take the index entry of the new owner along
            index.insert(other);
        }
        self.read().images.get(&id).cloned().ok_or_else(|| ImageError::NotHere { image: id.to_string() })
    }

    /// Removes an image with all its names, and the layers that nothing else needs. Returns what is left to delete.
    pub(crate) fn remove(&self, text: &str) -> Result<Vec<PathBuf>, ImageError> {
        let _writer = self.writer();
        let Some(image) = self.find(text) else { return Ok(Vec::new()) };
        let mut by: Vec<String> = {
            let containers = self.containers.read().unwrap_or_else(PoisonError::into_inner);
            containers.iter().filter(|(_, used)| used.image == image.id).map(|(id, _)| id.clone()).collect()
        };
        if !by.is_empty() {
            by.sort();
            return Err(ImageError::InUse { image: image.id.clone(), by });
        }
        if let Ok(id) = image.id.parse::<Digest>() {
            let path = self.record_path(id);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ImageError::disk("remove", path)(source));
                }
                _ => {}
            }
            disk::sync_directory(&self.directory).map_err(ImageError::disk("sync", &self.directory))?;
            self.index.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        }
        self.sweep_locked(Duration::ZERO)
    }

    /// Takes out of the way what pulls left behind that never came to an end, once it is old: until then the next
    /// attempt continues from it. Returns what is left to delete.
    pub(crate) fn sweep_old(&self) -> Result<Vec<PathBuf>, ImageError> {
        self.partials.sweep(ORPHAN_AGE);
        let _writer = self.writer();
        self.sweep_locked(ORPHAN_AGE)
    }

    fn sweep_locked(&self, age: Duration) -> Result<Vec<PathBuf>, ImageError> {
        let (mut chains, mut blobs) = (HashSet::new(), HashSet::new());
        for record in self.read().records.values() {
            chains.extend(record.chain_ids.iter().copied());
            blobs.extend(record.blobs.iter().copied());
        }
        for used in self.containers.read().unwrap_or_else(PoisonError::into_inner).values() {
            chains.extend(used.chain_ids.iter().copied());
        }
        let content = |source| ImageError::Content { reference: "removed images".to_owned(), source };
        for blob in self.content.list().map_err(content)? {
            if !blobs.contains(&blob) {
                self.content.remove(blob).map_err(content)?;
            }
        }
        Ok(self.snapshots.sweep(&chains, age)?)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_path(&self, id: Digest) -> PathBuf {
        self.directory.join(format!("{}.json", id.hex()))
    }

    /// What the record names, in these directories, is there before the record is, on every file system.
    fn write(&self, record: &ImageRecord, named: &[&Path]) -> Result<(), ImageError> {
        let path = self.record_path(record.id);
        let bytes = serde_json::to_vec(record).map_err(|source| ImageError::Record { path: path.clone(), source })?;
        disk::write_durably(&self.temporary, &path, &bytes, named).map_err(ImageError::disk("write", path))
    }
}

/// Takes the store for this process.
fn lock(root: &Path, wait: Duration) -> Result<Flock<File>, ImageError> {
    let path = root.join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(ImageError::disk("open", &path))?;
    let failed = |error| ImageError::disk("lock", &path)(error);
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, error)) => return Err(failed(error.into())),
    };
    // the kernel has no wait with an end: the thread stays until the lock is free, and when nobody wants it any more by
    // then, it is let go with the message that nobody takes
    let (got, waiting) = std::sync::mpsc::sync_channel(1);
    let waiter = move || {
        let mut file = file;
        let locked = loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Err((again, Errno::EINTR)) => file = again,
                other => break other.map_err(|(_, error)| error),
            }
        };
        let _ = got.send(locked);
    };
    std::thread::Builder::new().name("image lock".to_owned()).spawn(waiter).map_err(&failed)?;
    match waiting.recv_timeout(wait) {
        Ok(locked) => locked.map_err(|error| failed(error.into())),
        Err(_) => Err(ImageError::Locked { path }),
    }
}

/// Reads all records. An image whose layers are not all here is not listed, so that the next pull repairs it.
fn load(directory: &Path, snapshots: &Snapshots) -> Result<(Index, u64), ImageError> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(ImageError::disk("list", directory))? {
        let path = entry.map_err(ImageError::disk("list", directory))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(ImageError::disk("read", &path))?;
        match serde_json::from_slice::<ImageRecord>(&bytes) {
            Ok(record) if record.version > VERSION => {
                log::warn!(path:% = path.display(), version = record.version; "image record is of a newer version");
            }
            Ok(record) => match record.chain_ids.iter().find(|id| !snapshots.contains(**id)) {
                None => records.push(record),
                Some(missing) => {
                    log::warn!(image:% = record.id, layer:% = missing; "image lacks a layer, it must be pulled again");
                }
            },
            Err(error) => {
                log::warn!(path:% = path.display(), error:% = error; "image record is damaged, its image must be pulled again");
            }
        }
    }
    let mut newest: HashMap<String, u64> = HashMap::new();
    for name in records.iter().flat_map(|record| &record.names) {
        let generation = newest.entry(name.name.clone()).or_default();
        *generation = name.generation.max(*generation);
    }
    let mut index = Index::default();
    for mut record in records {
        record.names.retain(|name| newest.get(&name.name) == Some(&name.generation));
        index.insert(record);
    }
    let next = newest.values().max().map_or(1, |generation| generation + 1);
    Ok((index, next))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
