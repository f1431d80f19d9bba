//! What can go wrong with a layer.

use std::io;
use std::path::PathBuf;

use super::archive::ArchiveError;
use crate::content::Digest;
use crate::image::ErrorCode;

/// An operation on a layer that failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Reading or writing our own files.
    #[error("cannot {action} {path}")]
    Disk {
        /// Verb.
        action: &'static str,
        /// Object.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be read.
    #[error("layer is not a usable archive")]
    Archive(#[from] ArchiveError),
    /// A path that must not be.
    #[error("layer has an entry whose path {path:?} {why}")]
    Path {
        /// The path, shortened.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A hard link to something that neither this layer nor one below has.
    #[error("layer refers to {path:?}, which does not exist")]
    Missing {
        /// The path, shortened.
        path: String,
    },
    /// More than a layer may have.
    #[error("layer has more than {limit} {what}")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How much would have been fine.
        limit: u64,
    },
    /// The uncompressed bytes are not the ones that the image's config promises.
    #[error("layer unpacks to {actual}, the image says {expected}")]
    DiffId {
        /// As in the config.
        expected: Digest,
        /// As it came.
        actual: Digest,
    },
    /// The bytes stopped because whoever sends them failed; that failure is the one to report.
    #[error("the download of the layer stopped")]
    Stopped,
    /// A worker thread died or the runtime is going away.
    #[error("the daemon is stopping")]
    ShuttingDown,
}

impl SnapshotError {
    /// What kind of error this is.
    pub fn code(&self) -> ErrorCode {
        match self {
            SnapshotError::Disk { .. } => ErrorCode::Disk,
            SnapshotError::DiffId { .. } => ErrorCode::DigestMismatch,
            SnapshotError::Archive(_)
            | SnapshotError::Path { .. }
            | SnapshotError::Missing { .. }
            | SnapshotError::TooMuch { .. } => ErrorCode::InvalidImage,
            SnapshotError::Stopped => ErrorCode::RegistryUnavailable,
            SnapshotError::ShuttingDown => ErrorCode::ShuttingDown,
        }
    }

    pub(crate) fn disk(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SnapshotError {
        let path = path.into();
        move |source| SnapshotError::Disk { action, path, source }
    }
}
