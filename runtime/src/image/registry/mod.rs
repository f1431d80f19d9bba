//! The client side of the distribution specification.
//!
//! [`Registry`] holds the HTTP clients; a [`Session`] is one image at its possible places, with the proof of identity
//! that each of them asked for. HTTPS with the platform's trust store, always, except for registries that the
//! configuration calls insecure and for loopback addresses, where plain HTTP is tried when TLS does not answer.

mod blob;
mod challenge;
mod endpoint;
mod error;
mod request;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use blob::Blob;
pub use error::RegistryError;

use endpoint::Endpoint;
use request::Place;

use super::config::{ImagesConfig, Timeouts};
use super::credentials::Credentials;
use super::manifest::ACCEPT;
use super::reference::Reference;
use crate::content::Digest;

/// The distribution specification asks for at least 4 MiB; nobody publishes more.
const MAX_MANIFEST: u64 = 4 << 20;

/// HTTP clients and what was learned about hosts.
#[derive(Debug)]
pub(crate) struct Registry {
    /// Verifies certificates.
    strict: reqwest::Client,
    /// Does not, for registries that are configured so.
    lax: reqwest::Client,
    timeouts: Timeouts,
    /// Hosts that turned out to speak plain HTTP.
    plain: Mutex<HashMap<String, ()>>,
}

impl Registry {
    pub(crate) fn new(timeouts: Timeouts) -> Result<Registry, RegistryError> {
        // the first provider stays; somebody else having set one is fine
        let _ = rustls::crypto::ring::default_provider().install_default();
        let build = |verify: bool| {
            reqwest::Client::builder()
                .user_agent(concat!("nodeagent/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(timeouts.connect)
                .read_timeout(timeouts.stall)
                // followed by us, so that credentials do not go along
                .redirect(reqwest::redirect::Policy::none())
                .http2_max_header_list_size(64 << 10)
                .pool_max_idle_per_host(4)
                .tls_danger_accept_invalid_certs(!verify)
                .build()
                .map_err(RegistryError::Client)
        };
        Ok(Registry { strict: build(true)?, lax: build(false)?, timeouts, plain: Mutex::default() })
    }

    /// Prepares for one image.
    pub(crate) fn session(
        self: &Arc<Self>,
        config: &ImagesConfig,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Session, RegistryError> {
        let credentials = credentials.filter(|credentials| !credentials.is_empty());
        let places = endpoint::endpoints(reference, &config.registries)?
            .into_iter()
            .map(|endpoint| {
                // what the reference calls the registry is what credentials are named after
                let named = if endpoint.origin { reference.domain() } else { &endpoint.host };
                let own = credentials.filter(|credentials| credentials.are_for(named, endpoint.origin)).cloned();
                Arc::new(Place::new(endpoint, own))
            })
            .collect();
        Ok(Session { registry: self.clone(), reference: reference.clone(), places })
    }

    fn client(&self, endpoint: &Endpoint) -> &reqwest::Client {
        if endpoint.insecure { &self.lax } else { &self.strict }
    }

    fn speaks_plain_http(&self, host: &str) -> bool {
        self.plain.lock().unwrap_or_else(PoisonError::into_inner).contains_key(host)
    }

    fn remember_plain_http(&self, host: &str) {
        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        if plain.len() > 1024 {
            plain.clear();
        }
        plain.insert(host.to_owned(), ());
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
        let bytes = self.body(place, response, "manifest", MAX_MANIFEST).await?;
        let digest = Digest::of(&bytes);
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
