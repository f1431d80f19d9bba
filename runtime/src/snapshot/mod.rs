//! Unpacked layers, one directory per chain id, shared by all images that begin with the same layers.
//!
//! `<root>/snapshots/<chain id>/fs` is a finished overlayfs lower layer; `layer.json` beside it says what it is. A
//! snapshot is built in the temporary directory and renamed into place when it is complete and on disk, so whatever
//! has its final name is whole. `pipeline` runs the work, `archive` reads tar, `unpack` writes files through `tree`,
//! `settle` fits the result to the layers below, `store` knows what is here.

mod archive;
mod attributes;
mod error;
mod frames;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod pipeline;
mod recipe;
mod settle;
mod spool;
mod store;
mod sync;
mod sys;
mod tree;
mod unpack;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

pub use archive::ArchiveError;
pub(crate) use attributes::hides_all_below;
pub use error::SnapshotError;
pub(crate) use pipeline::{Around, Built, Feed, Form, LayerLimits, Workers};
pub(crate) use store::Settled;
pub use store::{LayerRecord, Snapshots, chain_ids};

/// Bytes and inodes below a directory. What vanishes meanwhile is not counted; nothing is followed out of it.
pub(crate) fn measure(directory: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&path) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            inodes += 1;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}
