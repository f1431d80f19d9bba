//! Finished snapshots: which exist, what they use, who still needs them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pipeline::Temporary;
use super::sync::{GroupSync, Since};
use super::{Built, SnapshotError, recipe, settle};
use crate::content::{Digest, disk};

const VERSION: u32 = 1;

/// What a snapshot is made of and what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Version of this format.
    pub version: u32,
    /// The identity of this layer on top of all below it.
    pub chain_id: Digest,
    /// The chain id of what is below; none for a bottom layer.
    pub parent: Option<Digest>,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Bytes on disk.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

impl LayerRecord {
    pub(crate) fn new(
        chain_id: Digest,
        parent: Option<Digest>,
        diff_id: Digest,
        bytes: u64,
        inodes: u64,
    ) -> LayerRecord {
        LayerRecord { version: VERSION, chain_id, parent, diff_id, bytes, inodes }
    }
}

/// The chain id of each layer, from the bottom up, as the OCI image specification defines it.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => *diff_id,
            Some(below) => above(*below, *diff_id),
        };
        chain.push(next);
    }
    chain
}

fn above(below: Digest, diff_id: Digest) -> Digest {
    Digest::of(format!("{below} {diff_id}").as_bytes())
}

/// A layer that is complete but has no name yet. Dropped, it removes itself.
#[derive(Debug)]
pub(crate) struct Settled {
    directory: Temporary,
    record: LayerRecord,
    since: Since,
    /// Its root directory, for the layers above.
    pub(crate) layer: Arc<File>,
}

/// All snapshots of this node.
#[derive(Debug)]
pub struct Snapshots {
    directory: PathBuf,
    temporary: PathBuf,
    layers: RwLock<Layers>,
    pins: Arc<Mutex<HashMap<Digest, usize>>>,
    pub(super) syncing: Arc<GroupSync>,
}

/// The records, and the sum of what they use: nobody has to add it up.
#[derive(Debug, Default)]
struct Layers {
    records: HashMap<Digest, LayerRecord>,
    used: (u64, u64),
    /// Unneeded when an image was removed, but pinned then: the next sweep takes them, however young they are.
    owed: HashSet<Digest>,
}

impl Layers {
    fn insert(&mut self, record: LayerRecord) {
        self.remove(&record.chain_id);
        self.used = (self.used.0 + record.bytes, self.used.1 + record.inodes);
        self.records.insert(record.chain_id, record);
    }

    fn remove(&mut self, id: &Digest) {
        self.owed.remove(id);
        if let Some(record) = self.records.remove(id) {
            self.used = (self.used.0.saturating_sub(record.bytes), self.used.1.saturating_sub(record.inodes));
        }
    }
}

/// Keeps snapshots from being swept while a pull counts on them. Released when dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Mutex<HashMap<Digest, usize>>>,
    chain: Vec<Digest>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &self.chain {
            if let Some(count) = pins.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(id);
                }
            }
        }
    }
}

impl Snapshots {
    /// Opens the store; `temporary` must be on the same file system.
    pub fn open(root: &Path, temporary: &Path) -> Result<Snapshots, SnapshotError> {
        let directory = root.join("snapshots");
        std::fs::create_dir_all(&directory).map_err(SnapshotError::disk("create", &directory))?;
        let mut layers = Layers::default();
        let listing = std::fs::read_dir(&directory).map_err(SnapshotError::disk("list", &directory))?;
        for entry in listing {
            let entry = entry.map_err(SnapshotError::disk("list", &directory))?;
            let Ok(chain_id) = Digest::from_hex(&entry.file_name().to_string_lossy()) else { continue };
            match read_record(&entry.path()) {
                Some(record) if record.chain_id == chain_id && record.version <= VERSION => {
                    layers.insert(record);
                }
                _ => {
                    // committed layers are synced before they get their name, so this disk has lost something;
                    // only this layer is fetched again, not the whole store
                    log::warn!(path:% = entry.path().display(); "layer is damaged and will be fetched again");
                    if let Some(aside) = disk::set_aside(&entry.path(), temporary)
                        .map_err(SnapshotError::disk("set aside", entry.path()))?
                    {
                        disk::remove_all(&aside);
                    }
                }
            }
        }
        let syncing = Arc::new(GroupSync::new(&directory));
        Ok(Snapshots {
            directory,
            temporary: temporary.to_owned(),
            layers: RwLock::new(layers),
            pins: Arc::default(),
            syncing,
        })
    }

    /// The directory that overlayfs gets as a lower layer.
    pub fn path(&self, chain_id: Digest) -> PathBuf {
        self.directory.join(chain_id.hex()).join("fs")
    }

    /// Where all snapshots are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether a snapshot is here.
    pub fn contains(&self, chain_id: Digest) -> bool {
        self.layers.read().unwrap_or_else(PoisonError::into_inner).records.contains_key(&chain_id)
    }

    /// Writes the archive that a layer was unpacked from; the number of bytes.
    pub(crate) fn archive(
        &self,
        chain_id: Digest,
        output: Option<&mut dyn std::io::Write>,
    ) -> Result<u64, SnapshotError> {
        recipe::replay(&self.directory.join(chain_id.hex()), output)
    }

    /// What the archive of a layer has to hash to.
    pub(crate) fn diff_id(&self, chain_id: Digest) -> Option<Digest> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner).records.get(&chain_id).map(|layer| layer.diff_id)
    }

    /// Every snapshot.
    pub fn list(&self) -> Vec<LayerRecord> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner).records.values().cloned().collect()
    }

    /// Bytes and inodes of all snapshots.
    pub fn usage(&self) -> (u64, u64) {
        self.layers.read().unwrap_or_else(PoisonError::into_inner).used
    }

    /// Protects a chain from [`Snapshots::sweep`], whether its layers exist yet or not.
    pub(crate) fn pin(&self, chain: &[Digest]) -> Pin {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for id in chain {
            *pins.entry(*id).or_default() += 1;
        }
        Pin { pins: self.pins.clone(), chain: chain.to_vec() }
    }

    /// Opens a snapshot for the layers above it.
    pub(crate) fn open_layer(&self, chain_id: Digest) -> Result<Arc<File>, SnapshotError> {
        let path = self.path(chain_id);
        File::open(&path).map(Arc::new).map_err(SnapshotError::disk("open", path))
    }

    /// Fits an unpacked layer to the ones below it. `chain` ends with the layer itself; `below` are the open
    /// directories of the others, bottom first.
    pub(crate) fn settle(&self, built: Built, chain: &[Digest], below: &[Arc<File>]) -> Result<Settled, SnapshotError> {
        let Built { unpacked, diff_id, directory, since } = built;
        let parents: Vec<Arc<File>> = below.iter().rev().cloned().collect();
        let path = directory.0.join("fs");
        let (bytes, inodes) = settle::settle(&path, unpacked, &parents)?;
        let (chain_id, parent) = match chain {
            [.., parent, own] => (*own, Some(*parent)),
            [own] => (*own, None),
            [] => (diff_id, None),
        };
        let record = LayerRecord::new(chain_id, parent, diff_id, bytes, inodes);
        let bytes = serde_json::to_vec(&record)
            .map_err(|error| SnapshotError::disk("write", directory.0.join("layer.json"))(error.into()))?;
        std::fs::write(directory.0.join("layer.json"), bytes)
            .map_err(SnapshotError::disk("write", directory.0.join("layer.json")))?;
        let layer = File::open(&path).map(Arc::new).map_err(SnapshotError::disk("open", path))?;
        Ok(Settled { directory, record, since, layer })
    }

    /// Waits until these layers and everything else written so far is on disk: one call for ten thousand files instead of
    /// an fsync for each, and one for all layers that get ready meanwhile.
    pub(crate) fn sync(&self, layers: &[&Settled]) -> Result<(), SnapshotError> {
        let since = layers.iter().map(|layer| layer.since).min().unwrap_or_else(|| self.syncing.begin());
        self.syncing.sync(since).map_err(SnapshotError::disk("sync", &self.directory))
    }

    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Gives a settled and synced layer its name. The rename reaches the disk with the record of the image: a crash
    /// before that leaves an image that is not known and a layer that is complete or absent.
    pub(crate) fn commit(&self, settled: Settled) -> Result<(), SnapshotError> {
        let Settled { mut directory, record, .. } = settled;
        let target = self.directory.join(record.chain_id.hex());
        std::fs::rename(&directory.0, &target).map_err(SnapshotError::disk("commit", &target))?;
        // renamed: there is nothing left to clean up
        directory.0 = PathBuf::new();
        self.layers.write().unwrap_or_else(PoisonError::into_inner).insert(record);
        Ok(())
    }

    /// Takes every snapshot out of the store that is neither needed nor pinned and has at least the given age; without
    /// an age, those that are pinned go with the next sweep. What is returned is out of the way already and only has to
    /// be deleted ([`disk::remove_all`]), which takes long.
    pub(crate) fn sweep(&self, needed: &HashSet<Digest>, age: Duration) -> Result<Vec<PathBuf>, SnapshotError> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        layers.owed.retain(|id| !needed.contains(id));
        let unneeded = layers.records.keys().copied().filter(|id| !needed.contains(id));
        let (pinned, unneeded): (Vec<Digest>, Vec<Digest>) = unneeded.partition(|id| pins.contains_key(id));
        if age.is_zero() {
            layers.owed.extend(pinned);
        }
        let mut aside = Vec::with_capacity(unneeded.len());
        for id in unneeded {
            let path = self.directory.join(id.hex());
            if !age.is_zero() && !layers.owed.contains(&id) && age_of(&path).is_none_or(|own| own < age) {
                continue;
            }
            aside.extend(disk::set_aside(&path, &self.temporary).map_err(SnapshotError::disk("set aside", &path))?);
            layers.remove(&id);
        }
        Ok(aside)
    }
}

fn age_of(path: &Path) -> Option<Duration> {
    // layer.json is the last thing that is made in it
    std::fs::symlink_metadata(path).ok()?.modified().ok()?.elapsed().ok()
}

fn read_record(snapshot: &Path) -> Option<LayerRecord> {
    if !snapshot.join("fs").is_dir() {
        return None;
    }
    serde_json::from_slice(&std::fs::read(snapshot.join("layer.json")).ok()?).ok()
}

#[cfg(test)]
impl Snapshots {
    /// An empty layer, for tests of those who use snapshots.
    pub(crate) fn add_empty(&self, chain_id: Digest) {
        let built = disk::unique(&self.temporary);
        std::fs::create_dir_all(built.join("fs")).unwrap();
        let record = LayerRecord::new(chain_id, None, chain_id, 4096, 1);
        std::fs::write(built.join("layer.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        let layer = Arc::new(File::open(&built).unwrap());
        self.commit(Settled { directory: Temporary(built), record, since: self.syncing.begin(), layer }).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let layers = [Digest::of(b"a"), Digest::of(b"b")];
        let expected = Digest::of(format!("{} {}", layers[0], layers[1]).as_bytes());
        assert_eq!(chain_ids(&layers), vec![layers[0], expected]);
        assert_eq!(chain_ids(&[]), vec![]);
    }

    #[test]
    fn a_sweep_leaves_what_is_needed_or_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let snapshots = Snapshots::open(dir.path(), &temporary).unwrap();
        let [needed, pinned, other] = [Digest::of(b"1"), Digest::of(b"2"), Digest::of(b"3")];
        for id in [needed, pinned, other] {
            snapshots.add_empty(id);
        }
        assert_eq!(snapshots.usage(), (3 * 4096, 3));
        let pin = snapshots.pin(&[pinned]);
        let keep = HashSet::from([needed]);
        assert_eq!(snapshots.sweep(&keep, Duration::ZERO).unwrap().len(), 1);
        assert!(snapshots.contains(pinned) && !snapshots.contains(other) && !snapshots.path(other).exists());
        drop(pin);
        assert_eq!(snapshots.sweep(&keep, Duration::from_secs(60)).unwrap().len(), 1, "it was to go already");
        assert_eq!(Snapshots::open(dir.path(), &temporary).unwrap().list().len(), 1);
    }

    #[test]
    fn a_young_snapshot_goes_only_when_a_removal_wanted_it_gone() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let snapshots = Snapshots::open(dir.path(), &temporary).unwrap();
        let id = Digest::of(b"1");
        snapshots.add_empty(id);
        let (nothing, age) = (HashSet::new(), Duration::from_secs(60));
        let swept = |needed: &HashSet<Digest>, age| snapshots.sweep(needed, age).unwrap().len();
        let pin = snapshots.pin(&[id]);
        assert_eq!(swept(&nothing, age), 0);
        drop(pin);
        assert_eq!(swept(&nothing, age), 0, "nobody removed anything");
        let pin = snapshots.pin(&[id]);
        assert_eq!(swept(&nothing, Duration::ZERO), 0);
        drop(pin);
        assert_eq!(swept(&HashSet::from([id]), age), 0, "another image has it by now");
        assert_eq!(swept(&nothing, age), 0, "and what it leaves is as old as it is");
    }

    #[test]
    fn a_damaged_snapshot_is_dropped_alone() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let snapshots = Snapshots::open(dir.path(), &temporary).unwrap();
        let [good, bad] = [Digest::of(b"1"), Digest::of(b"2")];
        snapshots.add_empty(good);
        snapshots.add_empty(bad);
        std::fs::write(dir.path().join("snapshots").join(bad.hex()).join("layer.json"), b"{").unwrap();
        let reopened = Snapshots::open(dir.path(), &temporary).unwrap();
        assert!(reopened.contains(good) && !reopened.contains(bad) && !reopened.path(bad).exists());
    }
}
