//! Why an image cannot come in or go out as a file.

use std::io;
use std::path::PathBuf;

use crate::content::Digest;
use crate::image::manifest::ManifestError;

/// A file with images that is of no use, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Reading or writing it.
    #[error("cannot {action} it")]
    Disk {
        /// Verb.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("it is neither an OCI layout nor an archive with index.json or manifest.json")]
    Unknown,
    /// The directory in which another program keeps its images.
    #[error("it is the directory of {owner}: have its images written to a file by `{by}`, and import that")]
    Store {
        /// Whose.
        owner: &'static str,
        /// What writes them.
        by: &'static str,
    },
    /// A document in it.
    #[error("{name} in it cannot be used: {what}")]
    Document {
        /// The name within.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A manifest or config in it.
    #[error("{digest} in it cannot be used")]
    Manifest {
        /// Which one.
        digest: Digest,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// Bytes that are not what their name promises.
    #[error("{name} in it has digest {actual}")]
    Digest {
        /// The name within.
        name: String,
        /// What it hashes to.
        actual: Digest,
    },
    /// Something that is referred to.
    #[error("it lacks {name}")]
    Missing {
        /// The name within.
        name: String,
    },
    /// Nothing says what the image is called.
    #[error("image {id} in it has no name: give it one with --name")]
    Nameless {
        /// The image.
        id: Digest,
    },
    /// One name for several images.
    #[error("it has {count} images, which cannot all be called {name}")]
    Several {
        /// How many.
        count: usize,
        /// What was asked for.
        name: String,
    },
    /// A layer whose archive was not kept, or cannot be made again.
    #[error("layer {layer} cannot be made again: {what}")]
    Layer {
        /// Its identity.
        layer: Digest,
        /// Why.
        what: String,
    },
}

impl TransferError {
    pub(super) fn disk(action: &'static str) -> impl Fn(io::Error) -> TransferError {
        move |source| TransferError::Disk { action, source }
    }

    /// Which file this was about belongs to [`crate::image::ImageError::Transfer`].
    pub(crate) fn at(self, path: impl Into<PathBuf>) -> crate::image::ImageError {
        crate::image::ImageError::Transfer { path: path.into(), source: Box::new(self) }
    }
}
