//! Containers' writable layers, and through them the references that keep images here.
//!
//! `<root>/rootfs/<container>/` holds `upper`, `work` and a record of the image. It is made aside and renamed into
//! place, so a container either has all of it or nothing. No fsync: after a reboot the container is gone anyway.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::error::ImageError;
use super::model::Rootfs;
use super::store::Store;
use crate::content::{Digest, disk};
use crate::snapshot::hides_all_below;

const VERSION: u32 = 1;
const MAX_CONTAINER_ID: usize = 128;

/// Which image a container uses. The layers are named too: they stay even if the image's record is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootfsRecord {
    pub version: u32,
    pub image: String,
    pub chain_ids: Vec<Digest>,
}

fn directory(root: &Path) -> PathBuf {
    root.join("rootfs")
}

/// Reads the records of all containers. One without a readable record was half-made when the power went.
pub(super) fn load(root: &Path) -> Result<HashMap<String, RootfsRecord>, ImageError> {
    let directory = directory(root);
    std::fs::create_dir_all(&directory).map_err(ImageError::disk("create", &directory))?;
    let mut containers = HashMap::new();
    for entry in std::fs::read_dir(&directory).map_err(ImageError::disk("list", &directory))? {
        let entry = entry.map_err(ImageError::disk("list", &directory))?;
        let record = std::fs::read(entry.path().join("record.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<RootfsRecord>(&bytes).ok());
        match record {
            Some(record) => {
                containers.insert(entry.file_name().to_string_lossy().into_owned(), record);
            }
            None => {
                log::info!(path:% = entry.path().display(); "dropping a container layer without a record");
                disk::remove_all(&entry.path());
            }
        }
    }
    Ok(containers)
}

impl Store {
    /// Makes a container's writable layer; the second call for the same container returns the first one's.
    pub(crate) fn prepare(&self, image_id: &str, container: &str) -> Result<Rootfs, ImageError> {
        check_id(container)?;
        // against a removal of the image at the same moment
        let _writer = self.writer();
        if let Some(record) = self.used_by(container) {
            return Ok(self.rootfs(container, &record.chain_ids));
        }
        let image = self.find(image_id).ok_or_else(|| ImageError::NotHere { image: image_id.to_owned() })?;
        let rootfs = self.rootfs(container, &image.chain_ids);
        let record = RootfsRecord { version: VERSION, image: image.id.clone(), chain_ids: image.chain_ids.clone() };
        let bytes = serde_json::to_vec(&record)
            .map_err(|source| ImageError::Record { path: rootfs.container_dir.clone(), source })?;
        if image.chain_ids.is_empty() {
            std::fs::create_dir_all(self.empty_layer()).map_err(ImageError::disk("create", self.empty_layer()))?;
        }
        let built = disk::unique(&self.temporary);
        let made = make(&built, &rootfs.lower, &bytes).and_then(|()| std::fs::rename(&built, &rootfs.container_dir));
        if let Err(source) = made {
            disk::remove_all(&built);
            return Err(ImageError::disk("create", rootfs.container_dir)(source));
        }
        self.containers.write().unwrap_or_else(PoisonError::into_inner).insert(container.to_owned(), record);
        Ok(rootfs)
    }

    /// Drops a container's writable layer and its hold on the image. Returns what is left to delete.
    pub(crate) fn release(&self, container: &str) -> Result<Option<PathBuf>, ImageError> {
        check_id(container)?;
        let _writer = self.writer();
        let path = directory(&self.root).join(container);
        let aside = disk::set_aside(&path, &self.temporary).map_err(ImageError::disk("set aside", path))?;
        self.containers.write().unwrap_or_else(PoisonError::into_inner).remove(container);
        Ok(aside)
    }

    /// Containers that have a writable layer here.
    pub(crate) fn containers(&self) -> Vec<String> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Where containers' writable layers are.
    pub(crate) fn containers_directory(&self) -> PathBuf {
        directory(&self.root)
    }

    fn used_by(&self, container: &str) -> Option<super::rootfs::RootfsRecord> {
        self.containers.read().unwrap_or_else(PoisonError::into_inner).get(container).cloned()
    }

    fn empty_layer(&self) -> PathBuf {
        self.root.join("empty")
    }

    fn rootfs(&self, container: &str, chain: &[Digest]) -> Rootfs {
        let container_dir = directory(&self.root).join(container);
        let mut lower = Vec::with_capacity(chain.len());
        for id in chain.iter().rev() {
            let layer = self.snapshots.path(*id);
            let last = hides_all_below(&layer);
            lower.push(layer);
            if last {
                break;
            }
        }
        if lower.is_empty() {
            // overlayfs wants at least one
            lower.push(self.empty_layer());
        }
        Rootfs { lower, upper: container_dir.join("upper"), work: container_dir.join("work"), container_dir }
    }
}

fn make(built: &Path, lower: &[PathBuf], record: &[u8]) -> io::Result<()> {
    std::fs::create_dir(built)?;
    // the daemon's umask must not decide what containers see
    std::fs::set_permissions(built, std::fs::Permissions::from_mode(0o700))?;
    let upper = built.join("upper");
    std::fs::create_dir(&upper)?;
    std::fs::create_dir(built.join("work"))?;
    if let Some(top) = lower.first() {
        // in the merged tree, the root's owner and mode are those of the uppermost directory
        let metadata = std::fs::metadata(top)?;
        let own = std::fs::metadata(&upper)?;
        if (own.uid(), own.gid()) != (metadata.uid(), metadata.gid()) {
            chown(&upper, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    std::fs::write(built.join("record.json"), record)
}

/// Container ids become file names.
fn check_id(id: &str) -> Result<(), ImageError> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if id.is_empty() || id.len() > MAX_CONTAINER_ID || id.starts_with('.') || !id.bytes().all(fine) {
        return Err(ImageError::ContainerId { id: id.chars().take(MAX_CONTAINER_ID).collect() });
    }
    Ok(())
}
