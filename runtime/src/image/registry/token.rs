//! Proofs of identity: the value of the `Authorization` header.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::endpoint::is_loopback;
use super::request::{Place, back_off};
use super::scheme::Scheme;
use super::{RegistryError, Session, error};
use crate::image::credentials::Credentials;

const MAX_ANSWER: u64 = 1 << 20;
const ATTEMPTS: u32 = 3;
/// A user name by which credential helpers say that the password is a refresh token.
const TOKEN_USER: &str = "<token>";

impl Session {
    /// What the registry asked for, as far as we can give it. `None`: it wants credentials and we have none.
    pub(super) async fn authorization(
        &self,
        place: &Place,
        challenges: &[Challenge],
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let credentials = place.credentials.as_ref();
        if let Some(token) = credentials.map(|own| own.registry_token.as_str()).filter(|token| !token.is_empty()) {
            return self.header(place, format!("Bearer {token}")).map(Some);
        }
        for challenge in challenges {
            match challenge {
                Challenge::Bearer { realm, service, scope } => {
                    let token = self.token(place, realm, service.as_deref(), scope.as_deref()).await?;
                    return self.header(place, format!("Bearer {token}")).map(Some);
                }
                Challenge::Basic => {
                    if let Some(basic) = self.basic(place)? {
                        return self.header(place, basic).map(Some);
                    }
                }
            }
        }
        Ok(None)
    }

    fn basic(&self, place: &Place) -> Result<Option<String>, RegistryError> {
        let Some(credentials) = &place.credentials else { return Ok(None) };
        credentials
            .basic()
            .map_err(|source| RegistryError::Credentials { registry: place.endpoint.host.clone(), source })
    }

    fn header(&self, place: &Place, value: String) -> Result<HeaderValue, RegistryError> {
        HeaderValue::from_str(&value).map_err(|_| RegistryError::Credentials {
            registry: place.endpoint.host.clone(),
            source: crate::image::AuthFieldError,
        })
    }

    /// Fetches an access token: with a refresh token if there is one, else with user and password, else anonymously.
    async fn token(
        &self,
        place: &Place,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, RegistryError> {
        let fail = |status: Option<u16>, detail: String| RegistryError::Token {
            registry: place.endpoint.host.clone(),
            reference: self.reference.to_string(),
            realm: realm.chars().take(200).collect(),
            detail,
            status,
        };
        let url = Url::parse(realm).map_err(|_| fail(None, "its address is not a URL".to_owned()))?;
        // whoever sends the challenge must not lure credentials out of TLS
        let plain_is_fine = place.endpoint.may_use_http() || url.host_str().is_some_and(is_loopback);
        if url.scheme() != "https" && !(url.scheme() == "http" && plain_is_fine) {
            return Err(fail(None, "its address is not HTTPS".to_owned()));
        }
        let pull = format!("repository:{}:pull", place.endpoint.repository);
        let scope = scope.unwrap_or(&pull);
        let mut attempt = 0;
        let response = loop {
            attempt += 1;
            let error = match self.ask(place, &url, service, scope).await? {
                Ok(response) if response.status().is_success() => break response,
                Ok(response) => {
                    let status = response.status();
                    let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                    let body = self.body(place, response, "token", MAX_ANSWER).await.unwrap_or_default();
                    let detail = format!("HTTP {} {}", status.as_u16(), error::detail(&body));
                    if !again {
                        return Err(fail(Some(status.as_u16()), detail.trim_end().to_owned()));
                    }
                    fail(Some(status.as_u16()), detail.trim_end().to_owned())
                }
                Err(source) => {
                    let cause = std::error::Error::source(&source).map(ToString::to_string).unwrap_or_default();
                    fail(None, format!("{} {cause}", source.without_url()).trim_end().to_owned())
                }
            };
            if attempt >= ATTEMPTS {
                return Err(error);
            }
            tokio::time::sleep(back_off(attempt)).await;
        };
        let body = self.body(place, response, "token", MAX_ANSWER).await?;
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| fail(None, "its answer cannot be parsed".to_owned()))?;
        // both names are in use; the older one is the specification's
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() { Err(fail(None, "its answer has no token".to_owned())) } else { Ok(token) }
    }

    /// One request to the token endpoint.
    async fn ask(
        &self,
        place: &Place,
        url: &Url,
        service: Option<&str>,
        scope: &str,
    ) -> Result<Result<Response, reqwest::Error>, RegistryError> {
        let client = self.registry.client(&place.endpoint, url, Some(Scheme::Https))?;
        if let Some(refresh) = self.refresh_token(place)? {
            let mut form = url.clone();
            form.set_query(None);
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", "nodeagent")
                .append_pair("service", service.unwrap_or_default())
                .append_pair("scope", scope)
                .append_pair("refresh_token", &refresh);
            let body = form.query().unwrap_or_default().to_owned();
            let request = client.post(url.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            return Ok(request.body(body).send().await);
        }
        let mut url = url.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            // a challenge may name several scopes at once
            for scope in scope.split_ascii_whitespace() {
                query.append_pair("scope", scope);
            }
        }
        let mut request = client.get(url);
        if let Some(basic) = self.basic(place)? {
            request = request.header(AUTHORIZATION, self.header(place, basic)?);
        }
        Ok(request.send().await)
    }

    fn refresh_token(&self, place: &Place) -> Result<Option<String>, RegistryError> {
        let Some(credentials) = &place.credentials else { return Ok(None) };
        if !credentials.identity_token.is_empty() {
            return Ok(Some(credentials.identity_token.clone()));
        }
        let pair = Credentials::user_and_password(credentials)
            .map_err(|source| RegistryError::Credentials { registry: place.endpoint.host.clone(), source })?;
        Ok(pair.filter(|(user, _)| user == TOKEN_USER).map(|(_, password)| password))
    }
}
