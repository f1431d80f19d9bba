//! Whether a host talks TLS or plain HTTP, where the latter is allowed too: found out by asking, and remembered.
//!
//! The question is put with a client that trusts nobody, so a server that does talk TLS refuses itself by its certificate
//! before anything was said to it. That way a node that only ever pulls from plain HTTP does not load the platform's
//! trust store, which takes more time than a small image.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};

use super::endpoint::Endpoint;

/// More hosts than this, and what was learned about them is learned again.
const MAX_HOSTS: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Https,
    Http,
}

/// What hosts turned out to speak.
#[derive(Debug, Default)]
pub(super) struct Schemes {
    learned: Mutex<HashMap<String, Scheme>>,
}

impl Schemes {
    /// `None` when that has to be found out.
    pub(super) fn of(&self, endpoint: &Endpoint) -> Option<Scheme> {
        if endpoint.http {
            return Some(Scheme::Http);
        }
        if !endpoint.may_use_http() {
            return Some(Scheme::Https);
        }
        self.learned().get(&endpoint.host).copied()
    }

    /// A request to `endpoint` failed while its scheme was `tried`. True when that says to try it otherwise.
    pub(super) fn learn(&self, endpoint: &Endpoint, tried: Option<Scheme>, error: &reqwest::Error) -> bool {
        if endpoint.http || !endpoint.may_use_http() || !error.is_connect() {
            return false;
        }
        if tried.is_some() {
            // perhaps it was not up when it was asked
            self.learned().remove(&endpoint.host);
            return false;
        }
        self.remember(endpoint, if refused_certificate(error) { Scheme::Https } else { Scheme::Http });
        true
    }

    /// `endpoint` answered over HTTPS.
    pub(super) fn answered(&self, endpoint: &Endpoint) {
        self.remember(endpoint, Scheme::Https);
    }

    fn remember(&self, endpoint: &Endpoint, scheme: Scheme) {
        let mut learned = self.learned();
        if learned.len() > MAX_HOSTS {
            learned.clear();
        }
        learned.insert(endpoint.host.clone(), scheme);
    }

    fn learned(&self) -> std::sync::MutexGuard<'_, HashMap<String, Scheme>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether TLS failed because there was a certificate.
fn refused_certificate(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // an `io::Error` hides what it wraps from `source`
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
            && refused_certificate(inner)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_plain_http_is_allowed_there_is_something_to_find_out() {
        let schemes = Schemes::default();
        let plain = Endpoint { http: true, ..Endpoint::plain("a.example") };
        let insecure = Endpoint { insecure: true, ..Endpoint::plain("a.example") };
        assert_eq!(schemes.of(&Endpoint::plain("a.example")), Some(Scheme::Https));
        assert_eq!(schemes.of(&plain), Some(Scheme::Http));
        assert_eq!(schemes.of(&insecure), None);
        assert_eq!(schemes.of(&Endpoint::plain("127.0.0.1:5000")), None);
    }

    #[test]
    fn a_certificate_is_seen_through_all_that_wraps_it() {
        let certificate = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(refused_certificate(&std::io::Error::other(std::io::Error::other(certificate))));
        assert!(!refused_certificate(&std::io::Error::other(rustls::Error::DecryptError)));
    }
}
