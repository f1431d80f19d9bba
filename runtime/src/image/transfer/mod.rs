//! Images as files: import from OCI layouts and from what `docker save` writes, export to an archive that is both.
//! For nodes that see no registry.
//!
//! `source` gives named bytes, `plan` says which of them make which images, `import` is the same for all of them. The
//! directories of other programs (`source::Store`) are recognised, and where they would be read is there: a source
//! whose layers are made again from their trees and tar-split records, as our own are from `archive.zst`, and a plan from
//! `repositories.json` or `overlay-images/images.json`. Until somebody needs that they are refused with what to do instead.

mod error;
mod export;
mod import;
mod plan;
mod source;

pub use error::TransferError;
pub use export::Format;
pub(super) use export::export;
