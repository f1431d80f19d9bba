//! What can go wrong with a layer.

use std::io;
use std::path::PathBuf;

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
}

impl SnapshotError {
    /// What kind of error this is.
    pub fn code(&self) -> ErrorCode {
        match self {
            SnapshotError::Disk { .. } => ErrorCode::Disk,
        }
    }

    pub(crate) fn disk(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SnapshotError {
        let path = path.into();
        move |source| SnapshotError::Disk { action, path, source }
    }
}
