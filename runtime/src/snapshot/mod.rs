//! Unpacked layers, one directory per chain id, shared by all images that begin with the same layers.
//!
//! `<root>/snapshots/<chain id>/fs` is a finished overlayfs lower layer; `layer.json` beside it says what it is. A
//! snapshot is built in the temporary directory and renamed into place when it is complete and on disk, so whatever
//! has its final name is whole.

mod error;
mod store;

pub use error::SnapshotError;
pub(crate) use store::Pin;
pub use store::{LayerRecord, Snapshots, chain_ids};
