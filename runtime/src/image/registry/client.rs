//! HTTP clients, one for each way to talk TLS. Made when first needed: loading the platform's trust store takes memory
//! that a node without pulls need not spend.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::RegistryError;
use super::hosts::Tls;
use crate::image::config::Timeouts;

/// More different settings than this, and the oldest connections are not worth keeping.
const MAX_CLIENTS: usize = 64;

/// Of one answer: what a connection of 80 Mbit/s carries in a tenth of a second.
const STREAM_WINDOW: u32 = 1 << 20;
/// Of all answers of a host together.
const CONNECTION_WINDOW: u32 = 4 << 20;

#[derive(Debug)]
pub(super) struct Clients {
    timeouts: Timeouts,
    made: Mutex<HashMap<Tls, reqwest::Client>>,
    /// Believes no certificate: for plain HTTP, and for finding out who speaks it.
    trustless: Mutex<Option<reqwest::Client>>,
}

impl Clients {
    pub(super) fn new(timeouts: Timeouts) -> Clients {
        // the first provider stays; somebody else having set one is fine
        let _ = rustls::crypto::ring::default_provider().install_default();
        Clients { timeouts, made: Mutex::default(), trustless: Mutex::default() }
    }

    pub(super) fn get(&self, registry: &str, tls: &Tls) -> Result<reqwest::Client, RegistryError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(tls) {
            return Ok(client.clone());
        }
        let client = self.make(registry, tls)?;
        if made.len() >= MAX_CLIENTS {
            made.clear();
        }
        made.insert(tls.clone(), client.clone());
        Ok(client)
    }

    pub(super) fn trustless(&self) -> Result<reqwest::Client, RegistryError> {
        let mut made = self.trustless.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.as_ref() {
            return Ok(client.clone());
        }
        let client = self.builder().tls_certs_only([]).build().map_err(RegistryError::Client)?;
        Ok(made.insert(client).clone())
    }

    fn make(&self, registry: &str, tls: &Tls) -> Result<reqwest::Client, RegistryError> {
        let unusable = |path: &Path, detail: String| RegistryError::Certificate {
            registry: registry.to_owned(),
            path: path.to_owned(),
            detail,
        };
        let read = |path: &Path| std::fs::read(path).map_err(|error| unusable(path, error.to_string()));
        let mut builder = self.builder();
        if tls.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let mut authorities = Vec::new();
        for path in &tls.ca {
            let parsed = reqwest::Certificate::from_pem_bundle(&read(path)?);
            authorities.extend(parsed.map_err(|error| unusable(path, error.to_string()))?);
        }
        if !authorities.is_empty() {
            builder = builder.tls_certs_merge(authorities);
        }
        if let Some((certificate, key)) = &tls.client {
            let mut pem = read(certificate)?;
            if certificate != key {
                pem.push(b'\n');
                pem.extend(read(key)?);
            }
            let identity = reqwest::Identity::from_pem(&pem);
            builder = builder.identity(identity.map_err(|error| unusable(certificate, error.to_string()))?);
        }
        builder.build().map_err(RegistryError::Client)
    }

    /// What all of them have in common.
    fn builder(&self) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .user_agent(concat!("nodeagent/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.timeouts.connect)
            .read_timeout(self.timeouts.stall)
            // followed by us, so that credentials do not go along
            .redirect(reqwest::redirect::Policy::none())
            .http2_max_header_list_size(64 << 10)
            // what a server may send before we read it: memory, too
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .pool_max_idle_per_host(4)
    }
}

/// The proxy that a request to `url` takes, as the environment says and the client decides; without its password.
pub(crate) fn proxy_for(url: &str) -> Option<String> {
    let matcher = hyper_util::client::proxy::matcher::Matcher::from_env();
    let intercept = matcher.intercept(&url.parse().ok()?)?;
    let uri = intercept.uri();
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?.as_str().rsplit('@').next()?))
}
