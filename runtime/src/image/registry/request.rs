//! One GET, with everything that can come in between: proof of identity, redirects, overload, plain HTTP.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};

use super::challenge::{self, Challenge};
use super::endpoint::Endpoint;
use super::scheme::Scheme;
use super::{RegistryError, Session, error};
use crate::image::credentials::Credentials;

const MAX_REDIRECTS: usize = 5;
/// For connections that fail; a registry that asks for patience is bounded by time instead.
const MAX_FAILURES: u32 = 3;
const MAX_ERROR_BODY: u64 = 16 << 10;

/// First byte and, if it is not the end, last byte.
pub(super) type Range = (u64, Option<u64>);

/// A registry or mirror, and what it wants to see.
#[derive(Debug)]
pub(crate) struct Place {
    pub endpoint: Endpoint,
    pub credentials: Option<Credentials>,
    /// The header that it accepted last.
    authorization: Mutex<Option<HeaderValue>>,
    /// Held while a new one is fetched, so that ten layers fetch one token.
    renewing: tokio::sync::Mutex<()>,
}

impl Place {
    pub(super) fn new(endpoint: Endpoint, credentials: Option<Credentials>) -> Place {
        Place { endpoint, credentials, authorization: Mutex::default(), renewing: tokio::sync::Mutex::default() }
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Session {
    /// GETs `/v2/<repository>/<path>`; succeeds with a 2xx answer only.
    pub(super) async fn request(
        &self,
        place: &Arc<Place>,
        path: &str,
        accept: Option<&str>,
        range: Option<Range>,
    ) -> Result<Response, RegistryError> {
        let started = Instant::now();
        let mut failures = 0;
        let mut renewed = false;
        loop {
            let authorization = place.authorization();
            let scheme = self.registry.schemes.of(&place.endpoint);
            let response = match self.follow(place, scheme, path, accept, range, authorization.as_ref()).await {
                Ok(response) => response,
                Err(RegistryError::Unreachable { source, .. })
                    if self.registry.schemes.learn(&place.endpoint, scheme, &source) =>
                {
                    continue;
                }
                Err(error @ RegistryError::Unreachable { .. }) => {
                    failures += 1;
                    if failures >= MAX_FAILURES {
                        return Err(error);
                    }
                    tokio::time::sleep(back_off(failures)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if scheme.is_none() {
                self.registry.schemes.answered(&place.endpoint);
            }
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !renewed {
                renewed = true;
                let challenges = challenges(&response);
                if self.renew(place, authorization, &challenges).await? {
                    continue;
                }
            }
            if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
                failures += 1;
                let pause = retry_after(&response).unwrap_or_else(|| back_off(failures));
                let waited = started.elapsed();
                if waited + pause > self.registry.timeouts.retry || failures > 8 {
                    return Err(RegistryError::Overloaded {
                        registry: place.endpoint.host.clone(),
                        reference: self.reference.to_string(),
                        status: status.as_u16(),
                        waited,
                    });
                }
                log::info!(registry = place.endpoint.host.as_str(), status = status.as_u16(), pause:? = pause; "registry is overloaded, waiting");
                tokio::time::sleep(pause).await;
                continue;
            }
            return Err(self.refused(place, response).await);
        }
    }

    /// Sends the request and follows redirects. Only the registry itself sees the authorization.
    async fn follow(
        &self,
        place: &Place,
        scheme: Option<Scheme>,
        path: &str,
        accept: Option<&str>,
        range: Option<Range>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let endpoint = &place.endpoint;
        let name = if scheme == Some(Scheme::Http) { "http" } else { "https" };
        let text = format!("{name}://{}{}/{}/{path}", endpoint.host, endpoint.base, endpoint.repository);
        let start = Url::parse(&text).map_err(|_| RegistryError::Address {
            location: endpoint.host.clone(),
            reference: self.reference.to_string(),
        })?;
        let mut url = start.clone();
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        for _ in 0..=MAX_REDIRECTS {
            let scheme = if same_origin(&start, &url) { scheme } else { Some(Scheme::Https) };
            let mut request = self.registry.client(endpoint, &url, scheme)?.get(url.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some((first, last)) = range {
                let last = last.map_or(String::new(), |last| last.to_string());
                request = request.header(RANGE, format!("bytes={first}-{last}"));
            }
            if same_origin(&start, &url) {
                // what the configuration adds may be as secret as a password
                for (name, value) in &endpoint.headers {
                    request = request.header(name, value);
                }
                if let Some(value) = authorization {
                    request = request.header(AUTHORIZATION, value.clone());
                }
            }
            let response = request.send().await.map_err(|source| self.unreachable(place, source))?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            url = self.target(place, &url, &response)?;
        }
        Err(self.bad_redirect(place, url.as_str(), "there are too many of them"))
    }

    fn target(&self, place: &Place, url: &Url, response: &Response) -> Result<Url, RegistryError> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if location.is_empty() {
            return Err(self.bad_redirect(place, "", "it names no target"));
        }
        let next = url.join(location).map_err(|_| self.bad_redirect(place, location, "it is not a URL"))?;
        match next.scheme() {
            "https" => Ok(next),
            // from HTTP to HTTP nothing gets worse
            "http" if url.scheme() == "http" && place.endpoint.may_use_http() => Ok(next),
            "http" => Err(self.bad_redirect(place, location, "it leads away from HTTPS")),
            _ => Err(self.bad_redirect(place, location, "it is not HTTP")),
        }
    }

    fn bad_redirect(&self, place: &Place, target: &str, why: &'static str) -> RegistryError {
        RegistryError::Redirect {
            registry: place.endpoint.host.clone(),
            reference: self.reference.to_string(),
            // what follows the question mark may be a signature
            target: target.split('?').next().unwrap_or_default().chars().take(200).collect(),
            why,
        }
    }

    /// Gets a new authorization. False when there is nothing to prove ourselves with.
    async fn renew(
        &self,
        place: &Arc<Place>,
        refused: Option<HeaderValue>,
        challenges: &[Challenge],
    ) -> Result<bool, RegistryError> {
        let _guard = place.renewing.lock().await;
        let current = place.authorization();
        if current.is_some() && current != refused {
            // somebody else got a new one while we waited
            return Ok(true);
        }
        let Some(mut value) = self.authorization(place, challenges).await? else { return Ok(false) };
        value.set_sensitive(true);
        let fresh = Some(&value) != refused.as_ref();
        *place.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(fresh)
    }

    /// The error for an answer that will not get better.
    pub(super) async fn refused(&self, place: &Place, response: Response) -> RegistryError {
        let status = response.status().as_u16();
        let body = self.body(place, response, "error", MAX_ERROR_BODY).await.unwrap_or_default();
        RegistryError::Status {
            registry: place.endpoint.host.clone(),
            reference: self.reference.to_string(),
            status,
            detail: error::detail(&body),
        }
    }
}

fn challenges(response: &Response) -> Vec<Challenge> {
    let headers = response.headers().get_all(WWW_AUTHENTICATE);
    headers.iter().filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// Doubles from 100 ms, with a quarter of it left to chance so that a hundred nodes do not come back together.
pub(super) fn back_off(failures: u32) -> Duration {
    let base = Duration::from_millis(100 << failures.min(8));
    let noise = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    base - base / 4 * (noise % 1000) / 1000
}

/// Seconds, or a date, which is compared with the server's own clock.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let server = response.headers().get(reqwest::header::DATE).and_then(|date| http_date(date.to_str().ok()?));
    let now = server.unwrap_or_else(jiff::Timestamp::now);
    Duration::try_from(http_date(value)?.duration_since(now)).ok()
}

fn http_date(text: &str) -> Option<jiff::Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let url = |text: &str| Url::parse(text).unwrap();
        assert!(same_origin(&url("https://a/v2/x"), &url("https://a:443/y")));
        assert!(!same_origin(&url("https://a/"), &url("https://b/")));
        assert!(!same_origin(&url("https://a/"), &url("https://a:444/")));
        assert!(!same_origin(&url("http://a:443/"), &url("https://a/")));
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        assert!(back_off(1) >= Duration::from_millis(150) && back_off(1) <= Duration::from_millis(200));
        assert!(back_off(30) <= Duration::from_millis(25_600));
    }

    #[test]
    fn dates_of_http_are_understood() {
        assert_eq!(http_date("Wed, 21 Oct 2015 07:28:00 GMT").map(|time| time.as_second()), Some(1_445_412_480));
        assert_eq!(http_date("soon"), None);
    }
}
