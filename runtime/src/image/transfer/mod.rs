//! Images as files: import from OCI layouts and from what `docker save` writes, export to an archive that is both.
//! For nodes that see no registry.

mod error;
mod export;
mod import;
mod plan;
mod source;

pub use error::TransferError;
pub use export::Format;
pub(super) use export::export;
