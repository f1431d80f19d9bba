//! Everything that can go wrong with an image, and what kind of wrong it is.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::content::{ContentError, Digest};
use crate::snapshot::SnapshotError;

use super::error_code::ErrorCode;
use super::manifest::ManifestError;
use super::reference::ReferenceError;
use super::registry::RegistryError;
use super::transfer::TransferError;
use super::trust::TrustError;

/// An operation on images that failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference cannot be parsed.
    #[error("invalid image reference")]
    Reference(#[from] ReferenceError),
    /// A name without a registry, where the configuration wants it to be clear.
    #[error("{name:?} could mean {}: name the registry, or add an alias to registries.conf (short-name-mode is enforcing)", choices.join(" or "))]
    Ambiguous {
        /// The name.
        name: String,
        /// What it may stand for.
        choices: Vec<String>,
    },
    /// No such image on this node.
    #[error("image {image} is not on this node")]
    NotHere {
        /// What was asked for.
        image: String,
    },
    /// Somebody uses the image.
    #[error("image {image} is in use by {}", by.join(", "))]
    InUse {
        /// The image's id.
        image: String,
        /// The containers that use it.
        by: Vec<String>,
    },
    /// A name from outside that cannot be a file name.
    #[error("{id:?} is not a container id")]
    ContainerId {
        /// What was given.
        id: String,
    },
    /// Another process works with the store.
    #[error("another process works with the images, it holds {path}")]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
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
    /// A record on disk that cannot be understood.
    #[error("record {path} is damaged")]
    Record {
        /// The record's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Storing a manifest or config.
    #[error("cannot store content of {reference}")]
    Content {
        /// The image.
        reference: String,
        /// The cause.
        #[source]
        source: ContentError,
    },
    /// A layer could not be unpacked or committed.
    #[error("cannot unpack layer {layer} of {reference}")]
    Layer {
        /// The image.
        reference: String,
        /// The layer's digest.
        layer: Digest,
        /// The cause.
        #[source]
        source: Box<SnapshotError>,
    },
    /// A layer is of a kind that we cannot unpack.
    #[error("layer {layer} of {reference} has the unsupported media type {media_type:?}")]
    MediaType {
        /// The image.
        reference: String,
        /// The layer's digest.
        layer: Digest,
        /// As in the manifest.
        media_type: String,
    },
    /// The registry, or the way to it.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// What the registry gave is no image that we can use.
    #[error("{what} {digest} of {reference} is unusable")]
    Manifest {
        /// The image.
        reference: String,
        /// Manifest, config.
        what: &'static str,
        /// Which one.
        digest: Digest,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// The image exists, for other machines.
    #[error("{reference} has no image for {wanted}, only for {}", offered_or_none(offered))]
    NoMatchingPlatform {
        /// The image.
        reference: String,
        /// This host.
        wanted: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// Bytes that are not what their name promises.
    #[error("layer {expected} of {reference} from {registry} has digest {actual}")]
    LayerDigest {
        /// The image.
        reference: String,
        /// Who sent it.
        registry: String,
        /// As in the manifest.
        expected: Digest,
        /// As it came.
        actual: Digest,
    },
    /// The signature policy does not let the image in, or cannot be enforced.
    #[error("{image} is not trusted")]
    Trust {
        /// The reference or archive.
        image: String,
        /// The cause.
        #[source]
        source: Box<TrustError>,
    },
    /// A file with images that cannot be read or written.
    #[error("cannot use {path} for images")]
    Transfer {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<TransferError>,
    },
    /// The snapshot store.
    #[error("snapshot store failed")]
    Snapshots(#[source] Box<SnapshotError>),
    /// A worker thread died or the runtime is going away.
    #[error("the daemon is stopping")]
    ShuttingDown,
    /// The result of a task that several callers waited for.
    #[error(transparent)]
    Shared(Arc<ImageError>),
}

impl ImageError {
    /// What kind of error this is.
    pub fn code(&self) -> ErrorCode {
        match self {
            ImageError::Reference(_) | ImageError::Ambiguous { .. } => ErrorCode::InvalidReference,
            ImageError::NotHere { .. } => ErrorCode::NotFound,
            ImageError::InUse { .. } => ErrorCode::InUse,
            ImageError::ContainerId { .. } => ErrorCode::InvalidReference,
            ImageError::Disk { .. } | ImageError::Record { .. } | ImageError::Locked { .. } => ErrorCode::Disk,
            ImageError::Content { source: ContentError::Mismatch { .. }, .. } => ErrorCode::DigestMismatch,
            ImageError::Content { .. } => ErrorCode::Disk,
            ImageError::MediaType { .. } | ImageError::Manifest { .. } => ErrorCode::InvalidImage,
            ImageError::Registry(source) => source.code(),
            ImageError::NoMatchingPlatform { .. } => ErrorCode::NoMatchingPlatform,
            ImageError::LayerDigest { .. } => ErrorCode::DigestMismatch,
            ImageError::Layer { source, .. } | ImageError::Snapshots(source) => source.code(),
            ImageError::Transfer { source, .. } => match **source {
                TransferError::Disk { .. } | TransferError::Layer { .. } => ErrorCode::Disk,
                TransferError::Digest { .. } => ErrorCode::DigestMismatch,
                _ => ErrorCode::InvalidImage,
            },
            ImageError::Trust { .. } => ErrorCode::Untrusted,
            ImageError::ShuttingDown => ErrorCode::ShuttingDown,
            ImageError::Shared(inner) => inner.code(),
        }
    }

    pub(crate) fn disk(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageError {
        let path = path.into();
        move |source| ImageError::Disk { action, path, source }
    }
}

impl From<RegistryError> for ImageError {
    fn from(error: RegistryError) -> ImageError {
        ImageError::Registry(Box::new(error))
    }
}

impl From<SnapshotError> for ImageError {
    fn from(error: SnapshotError) -> ImageError {
        ImageError::Snapshots(Box::new(error))
    }
}

fn offered_or_none(offered: &[String]) -> String {
    if offered.is_empty() { "unnamed platforms".to_owned() } else { offered.join(", ") }
}
