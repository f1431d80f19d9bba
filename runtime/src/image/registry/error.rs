//! What registries do wrong, and what they say about it.

use std::path::PathBuf;
use std::time::Duration;

use super::conf::ConfError;
use crate::content::Digest;
use crate::image::auth_file::AuthFileError;
use crate::image::error_code::ErrorCode;

/// A request to a registry that failed. `registry` is the host that was asked, which may be a mirror.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client cannot be made.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// Files that say where and how to pull.
    #[error("the configuration of registries cannot be used")]
    Configuration(#[from] ConfError),
    /// Files with credentials.
    #[error("stored credentials cannot be used")]
    StoredCredentials(#[from] AuthFileError),
    /// A certificate or key that the configuration names.
    #[error("certificate {path} for registry {registry} cannot be used: {detail}")]
    Certificate {
        /// Whom it is for.
        registry: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The configuration forbids it.
    #[error("registry {registry} is blocked by the configuration, {reference} cannot be pulled")]
    Blocked {
        /// Prefix of the configuration.
        registry: String,
        /// The image.
        reference: String,
    },
    /// The host and path do not make a URL.
    #[error("{location:?} is not the address of a registry, for {reference}")]
    Address {
        /// As configured.
        location: String,
        /// The image.
        reference: String,
    },
    /// No answer.
    #[error("registry {registry} cannot be reached for {reference}")]
    Unreachable {
        /// Who was asked.
        registry: String,
        /// The image.
        reference: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// Something comes, but far too slowly.
    #[error("registry {registry} sends blob {digest} of {reference} too slowly: less than {least} bytes in {time:?}")]
    Stalled {
        /// Who was asked.
        registry: String,
        /// The image.
        reference: String,
        /// The blob.
        digest: Digest,
        /// Bytes that would have been enough.
        least: u64,
        /// For how long it was watched.
        time: Duration,
    },
    /// An answer that says no.
    #[error("registry {registry} answered HTTP {status} for {reference}{}", after_colon(detail))]
    Status {
        /// Who was asked.
        registry: String,
        /// The image.
        reference: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words.
        detail: String,
    },
    /// Credentials that we were given make no sense.
    #[error("credentials for {registry} are unusable")]
    Credentials {
        /// Who would have got them.
        registry: String,
        /// What is wrong.
        #[source]
        source: crate::image::AuthFieldError,
    },
    /// The token endpoint does not give a token.
    #[error("token endpoint {realm} of registry {registry} gives no token for {reference}: {detail}")]
    Token {
        /// Who was asked.
        registry: String,
        /// The image.
        reference: String,
        /// The token endpoint.
        realm: String,
        /// Why.
        detail: String,
        /// HTTP status, when there was one.
        status: Option<u16>,
    },
    /// More than was announced or than is reasonable.
    #[error("registry {registry} sent more than {limit} bytes as {what} of {reference}")]
    TooLarge {
        /// Who was asked.
        registry: String,
        /// The image.
        reference: String,
        /// Manifest, blob.
        what: String,
        /// What would have been fine.
        limit: u64,
    },
    /// Less than was announced, and asking again does not help.
    #[error("registry {registry} sent {got} of {expected} bytes of blob {digest} of {reference}")]
    Short {
        /// Who was asked.
        registry: String,
        /// The image.
        reference: String,
        /// The blob.
        digest: Digest,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// The content is not the one that was asked for.
    #[error("registry {registry} sent {actual} instead of {expected} for {reference}")]
    Digest {
        /// Who was asked.
        registry: String,
        /// The image.
        reference: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// A redirect that leads nowhere, or where we do not go.
    #[error("registry {registry} redirects {reference} to {target:?}, which is refused: {why}")]
    Redirect {
        /// Who was asked.
        registry: String,
        /// The image.
        reference: String,
        /// The `Location`.
        target: String,
        /// The reason.
        why: &'static str,
    },
    /// A worker thread died or the runtime is going away.
    #[error("the daemon is stopping")]
    Stopping,
    /// A server that asks us to come back much later.
    #[error("registry {registry} is overloaded (HTTP {status}) and {reference} did not get through in {waited:?}")]
    Overloaded {
        /// Who was asked.
        registry: String,
        /// The image.
        reference: String,
        /// The last HTTP status.
        status: u16,
        /// How long we tried.
        waited: Duration,
    },
}

fn after_colon(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

impl RegistryError {
    /// What kind of error this is.
    pub fn code(&self) -> ErrorCode {
        match self {
            RegistryError::Status { status: 401 | 403, .. }
            | RegistryError::Token { status: Some(400..=403), .. }
            | RegistryError::Credentials { .. } => ErrorCode::Unauthorized,
            RegistryError::Status { status: 404, .. } => ErrorCode::NotFound,
            RegistryError::Digest { .. } | RegistryError::Short { .. } | RegistryError::TooLarge { .. } => {
                ErrorCode::DigestMismatch
            }
            RegistryError::Blocked { .. } => ErrorCode::Blocked,
            RegistryError::Configuration(_)
            | RegistryError::StoredCredentials(_)
            | RegistryError::Certificate { .. } => ErrorCode::Disk,
            RegistryError::Address { .. } => ErrorCode::InvalidReference,
            RegistryError::Stopping => ErrorCode::ShuttingDown,
            RegistryError::Client(_)
            | RegistryError::Unreachable { .. }
            | RegistryError::Status { .. }
            | RegistryError::Token { .. }
            | RegistryError::Redirect { .. }
            | RegistryError::Stalled { .. }
            | RegistryError::Overloaded { .. } => ErrorCode::RegistryUnavailable,
        }
    }
}

/// The message of a registry's error document, or the start of whatever it sent.
pub(super) fn detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Document>(body) {
        Ok(document) => {
            let parts: Vec<String> = document
                .errors
                .iter()
                .map(|item| format!("{} {}", item.code, item.message).trim().to_owned())
                .collect();
            parts.join("; ")
        }
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    text.chars().filter(|character| !character.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_own_words_are_kept_short_and_clean() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(detail(body), "MANIFEST_UNKNOWN manifest unknown");
        assert_eq!(detail(b"nope\x1b[31m\n"), "nope[31m");
        assert_eq!(detail(&[b'a'; 5000]).len(), 300);
    }
}
