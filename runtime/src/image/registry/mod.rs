//! The client side of the distribution specification.
//!
//! [`Registry`] holds the HTTP clients; a [`Session`] is one image at its possible places, with the proof of identity
//! that each of them asked for. HTTPS with the platform's trust store, always, except for registries that the
//! configuration calls insecure and for loopback addresses, where plain HTTP is tried when TLS does not answer.

mod blob;
mod challenge;
mod client;
mod conf;
mod endpoint;
mod error;
mod hosts;
mod ranges;
mod request;
mod scheme;
mod token;

use std::sync::Arc;

pub(crate) use blob::Blob;
pub use conf::ConfError;
pub(crate) use conf::{Conf, load as load_conf, text as conf_text};
pub use error::RegistryError;

use client::Clients;
pub(crate) use client::proxy_for;
pub(crate) use endpoint::{Endpoint, resolve};
use request::Place;
use scheme::{Scheme, Schemes};

use reqwest::Url;

use super::auth_file;
use super::config::{ImagesConfig, Timeouts};
use super::credentials::Credentials;
use super::error_code::ErrorCode;
use super::manifest::ACCEPT;
use super::reference::Reference;
use crate::content::memory::Lease;
use crate::content::{Digest, Memory};

/// The distribution specification asks for at least 4 MiB; nobody publishes more.
const MAX_MANIFEST: u64 = 4 << 20;
/// What a registry says a manifest hashes to.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// HTTP clients and what was learned about hosts.
#[derive(Debug)]
pub(crate) struct Registry {
    clients: Clients,
    timeouts: Timeouts,
    /// For parts of blobs.
    memory: Memory,
    schemes: Schemes,
}

impl Registry {
    pub(crate) fn new(timeouts: Timeouts, memory: Memory) -> Registry {
        Registry { clients: Clients::new(timeouts), timeouts, memory, schemes: Schemes::default() }
    }

    /// Prepares for one image.
    pub(crate) async fn session(
        self: &Arc<Self>,
        config: &ImagesConfig,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Session, RegistryError> {
        let credentials = credentials.filter(|credentials| !credentials.is_empty());
        let resolved = {
            let (config, reference) = (config.clone(), reference.clone());
            let resolve = tokio::task::spawn_blocking(move || endpoint::resolve(&reference, &config));
            resolve.await.unwrap_or_else(|_| Err(RegistryError::Stopping))?
        };
        let helpers = resolved.credential_helpers.as_deref();
        let mut places = Vec::with_capacity(resolved.endpoints.len());
        for endpoint in resolved.endpoints {
            // what the reference calls the registry is what credentials are named after
            let (host, name) = if endpoint.origin {
                (reference.domain(), reference.name())
            } else {
                (endpoint.host.as_str(), format!("{}/{}", endpoint.host, endpoint.repository))
            };
            let own = match credentials.filter(|credentials| credentials.are_for(host, endpoint.origin)) {
                Some(given) => Some(given.clone()),
                None => auth_file::lookup(&config.auth_files, helpers, &name).await?,
            };
            places.push(Arc::new(Place::new(endpoint, own)));
        }
        Ok(Session { registry: self.clone(), reference: reference.clone(), places })
    }

    /// For a request to a URL that `endpoint` is or leads to. `scheme` is what is known of the endpoint's host.
    fn client(&self, endpoint: &Endpoint, url: &Url, scheme: Option<Scheme>) -> Result<reqwest::Client, RegistryError> {
        // where any certificate is fine, there is no trust store to load
        let asking = scheme.is_none() && !endpoint.tls.skip_verify;
        if url.scheme() == "http" || asking {
            return self.clients.trustless();
        }
        self.clients.get(&endpoint.host, &endpoint.tls)
    }
}

/// One image at its possible places.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    registry: Arc<Registry>,
    reference: Reference,
    places: Vec<Arc<Place>>,
}

/// A manifest or index as it came.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub bytes: Vec<u8>,
    pub digest: Digest,
}

impl Session {
    /// Asks for what the reference names. The place that answers is asked first from then on.
    pub(crate) async fn resolve(&mut self) -> Result<Fetched, RegistryError> {
        let wanted = match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => "latest".to_owned(),
        };
        let mut last = None;
        for at in 0..self.places.len() {
            let place = self.places[at].clone();
            match self.manifest_from(&place, &wanted, self.reference.digest()).await {
                Ok(fetched) => {
                    self.places[..=at].rotate_right(1);
                    return Ok(fetched);
                }
                Err(error) => {
                    if at + 1 < self.places.len() {
                        log::info!(registry = place.endpoint.host.as_str(), reference:% = self.reference, error:% = error; "asking the next registry");
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| self.nowhere()))
    }

    /// A manifest that an index names.
    pub(crate) async fn manifest(&self, digest: Digest) -> Result<Fetched, RegistryError> {
        let mut last = None;
        for place in &self.places {
            match self.manifest_from(place, &digest.to_string(), Some(digest)).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.nowhere()))
    }

    async fn manifest_from(
        &self,
        place: &Arc<Place>,
        wanted: &str,
        expected: Option<Digest>,
    ) -> Result<Fetched, RegistryError> {
        let path = format!("manifests/{wanted}");
        let response = self.request(place, &path, Some(ACCEPT), None).await?;
        let announced = response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok()?.parse().ok());
        let bytes = self.body(place, response, "manifest", MAX_MANIFEST).await?;
        let digest = Digest::of(&bytes);
        // of a tag nobody else says what it has to be
        let expected = expected.or(announced);
        match expected {
            Some(expected) if expected != digest => Err(RegistryError::Digest {
                registry: place.endpoint.host.clone(),
                reference: self.reference.to_string(),
                expected,
                actual: digest,
            }),
            _ => Ok(Fetched { bytes, digest }),
        }
    }

    /// A small blob, verified. Tries every place.
    pub(crate) async fn small_blob(&self, digest: Digest, size: u64) -> Result<Vec<u8>, RegistryError> {
        let mut last = None;
        for place in 0..self.places.len() {
            match self.small_blob_from(place, digest, size).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.nowhere()))
    }

    async fn small_blob_from(&self, place: usize, digest: Digest, size: u64) -> Result<Vec<u8>, RegistryError> {
        let mut blob = self.blob(place, digest, size)?;
        let mut bytes = Vec::new();
        while let Some(piece) = blob.next().await? {
            bytes.extend_from_slice(&piece);
        }
        let actual = Digest::of(&bytes);
        if actual == digest {
            return Ok(bytes);
        }
        Err(RegistryError::Digest {
            registry: blob.registry().to_owned(),
            reference: self.reference.to_string(),
            expected: digest,
            actual,
        })
    }

    /// The manifest of a tag beside the one that was asked for; `None` where nobody has it.
    pub(crate) async fn tagged(&self, tag: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        let mut failed = None;
        for place in &self.places {
            match self.manifest_from(place, tag, None).await {
                Ok(fetched) => return Ok(Some(fetched.bytes)),
                Err(error) if error.code() == ErrorCode::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// A small document from anywhere, without credentials; `None` where there is none.
    pub(crate) async fn signature(&self, url: &str, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let address = |location: &str| RegistryError::Address {
            location: location.to_owned(),
            reference: self.reference.to_string(),
        };
        let parsed = Url::parse(url).map_err(|_| address(url))?;
        let host = parsed.host_str().ok_or_else(|| address(url))?.to_owned();
        let endpoint = Endpoint::plain(&host);
        let client = self.registry.client(&endpoint, &parsed, Some(Scheme::Https))?;
        let place = Arc::new(Place::new(endpoint, None));
        let response = client.get(parsed).send().await.map_err(|source| self.unreachable(&place, source))?;
        if response.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !response.status().is_success() {
            return Err(self.refused(&place, response).await);
        }
        self.body(&place, response, "signature", limit).await.map(Some)
    }

    /// Room for one part of a blob.
    fn part(&self) -> Option<Lease> {
        self.registry.memory.part()
    }

    fn stalled(&self, place: &Place, digest: Digest) -> RegistryError {
        RegistryError::Stalled {
            registry: place.endpoint.host.clone(),
            reference: self.reference.to_string(),
            digest,
            least: blob::LEAST,
            time: self.stall(),
        }
    }

    /// How long a server may keep us waiting.
    fn stall(&self) -> std::time::Duration {
        self.registry.timeouts.stall
    }

    /// How many places there are to ask.
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// Starts reading a blob of known size from one of the places.
    pub(crate) fn blob(&self, place: usize, digest: Digest, size: u64) -> Result<Blob, RegistryError> {
        let place = self.places.get(place).ok_or_else(|| self.nowhere())?;
        Ok(Blob::new(self.clone(), place.clone(), digest, size))
    }

    fn nowhere(&self) -> RegistryError {
        RegistryError::Address { location: String::new(), reference: self.reference.to_string() }
    }

    /// A body of bounded size.
    async fn body(
        &self,
        place: &Place,
        mut response: reqwest::Response,
        what: &str,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|source| self.unreachable(place, source))? {
            if bytes.len() as u64 + piece.len() as u64 > limit {
                return Err(RegistryError::TooLarge {
                    registry: place.endpoint.host.clone(),
                    reference: self.reference.to_string(),
                    what: what.to_owned(),
                    limit,
                });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    fn unreachable(&self, place: &Place, source: reqwest::Error) -> RegistryError {
        RegistryError::Unreachable {
            registry: place.endpoint.host.clone(),
            reference: self.reference.to_string(),
            // the URL of a redirect may hold a signature, which is as good as a password
            source: source.without_url(),
        }
    }
}

/// Parses text as `registries.conf` and as `hosts.toml`, and resolves a reference by the former.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_configuration(text: &str, path: &std::path::Path) {
    if let Ok(file) = conf::parse(text, path)
        && let Ok(reference) = Reference::parse("docker.io/library/busybox:1")
    {
        let _ = endpoint::endpoints(&reference, &file.registries);
    }
    let _ = hosts::parse(text, path, "registry.example:5000");
}

/// Parses the header by which a registry asks for credentials.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_challenge(text: &str) {
    let _ = challenge::parse(text);
}
