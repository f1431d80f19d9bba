//! Content by digest: manifests and configs of the images on this node.
//!
//! Layers are unpacked while they arrive and are not kept in compressed form: the snapshot is what containers need,
//! and a node has better uses for its disk.

mod digest;
pub(crate) mod disk;
pub(crate) mod memory;
mod partial;
mod store;

pub use digest::{Digest, DigestError};
pub(crate) use memory::Memory;
pub(crate) use partial::{Keeper, Kept, Partials};
pub(crate) use store::Staged;
pub use store::{ContentError, ContentStore};
