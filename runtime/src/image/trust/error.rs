//! Why an image is not trusted.

use std::io;
use std::path::PathBuf;

use crate::image::registry::RegistryError;

/// An image that the policy does not let in, or a policy that cannot be enforced.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file that the policy needs.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file that makes no sense.
    #[error("{path}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the key it is about.
        what: String,
    },
    /// A key that cannot be used.
    #[error("key {key}: {what}")]
    Key {
        /// Its file, or that it is written into the policy.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// The policy says no.
    #[error("the policy rejects it ({scope})")]
    Rejected {
        /// The part of the policy that applies.
        scope: String,
    },
    /// The policy wants a signature, and no acceptable one was found.
    #[error("the policy wants a signature ({scope}), and there is no acceptable one: {tried}")]
    Unsigned {
        /// The part of the policy that applies.
        scope: String,
        /// What was found, and why that is not enough.
        tried: String,
    },
    /// Signatures could not be fetched.
    #[error("cannot fetch signatures")]
    Fetch(#[source] Box<RegistryError>),
}
