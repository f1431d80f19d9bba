//! What a client proves itself with. Never printed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Credentials for one registry, as the kubelet sends them; empty strings mean "not given".
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User name, with `password`.
    pub username: String,
    /// Password, with `username`.
    pub password: String,
    /// base64 of `username:password`, used when there is no user name.
    pub auth: String,
    /// Refresh token, exchanged for an access token at the registry's token endpoint.
    pub identity_token: String,
    /// Access token, sent to the registry as it is.
    pub registry_token: String,
    /// The registry these are for; they are not sent to any other. Empty: the registry named in the reference.
    pub server_address: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// What `auth` must decode to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the auth field of the credentials is not base64 of user:password")]
pub struct AuthFieldError;

impl Credentials {
    /// True when nothing was given at all.
    pub fn is_empty(&self) -> bool {
        let Credentials { username, password, auth, identity_token, registry_token, server_address: _ } = self;
        [username, password, auth, identity_token, registry_token].iter().all(|field| field.is_empty())
    }

    /// User and password, from the plain fields or from `auth`.
    pub fn user_and_password(&self) -> Result<Option<(String, String)>, AuthFieldError> {
        if !self.username.is_empty() {
            return Ok(Some((self.username.clone(), self.password.clone())));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        // docker pads, some writers do not, and some end with NUL bytes
        let trimmed = self.auth.trim().trim_end_matches('=');
        let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(trimmed).map_err(|_| AuthFieldError)?;
        let text = String::from_utf8(bytes).map_err(|_| AuthFieldError)?;
        let (user, password) = text.split_once(':').ok_or(AuthFieldError)?;
        Ok(Some((user.to_owned(), password.trim_end_matches('\0').to_owned())))
    }

    /// The value of a Basic authorization header, if there is a user.
    pub fn basic(&self) -> Result<Option<String>, AuthFieldError> {
        let pair = self.user_and_password()?;
        Ok(pair.map(|(user, password)| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))))
    }

    /// Whether these may be sent to `host`, the registry as named in a reference or a mirror.
    ///
    /// Without a server address they belong to the registry of the reference, so `origin` says whether `host` is it.
    pub fn are_for(&self, host: &str, origin: bool) -> bool {
        if self.server_address.is_empty() {
            return origin;
        }
        let address = self.server_address.as_str();
        let address = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://")).unwrap_or(address);
        let address = address.split('/').next().unwrap_or_default();
        let hub = |name: &str| matches!(name, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        address.eq_ignore_ascii_case(host) || (hub(address) && hub(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_auth_field_is_user_and_password() {
        let auth = |text: &str| Credentials { auth: text.to_owned(), ..Default::default() };
        assert_eq!(auth("dTpwOncx").user_and_password(), Ok(Some(("u".into(), "p:w1".into()))));
        assert_eq!(auth("dTpw").basic(), Ok(Some("Basic dTpw".into())));
        assert_eq!(auth("dTpwdw==").user_and_password(), Ok(Some(("u".into(), "pw".into()))));
        assert_eq!(auth("dTpwdw").user_and_password(), Ok(Some(("u".into(), "pw".into()))));
        assert_eq!(auth("!!").user_and_password(), Err(AuthFieldError));
        assert_eq!(auth("dXB3").user_and_password(), Err(AuthFieldError));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let credentials = Credentials { username: "user".into(), password: "hunter2".into(), ..Default::default() };
        assert_eq!(format!("{credentials:?}"), "Credentials(***)");
    }

    #[test]
    fn credentials_go_to_the_registry_they_are_for_and_nowhere_else() {
        let unnamed = Credentials::default();
        assert!(unnamed.are_for("r.example", true));
        assert!(!unnamed.are_for("mirror.example", false));
        let named = |address: &str| Credentials { server_address: address.into(), ..Default::default() };
        assert!(named("https://r.example/v1/").are_for("r.example", true));
        assert!(!named("https://r.example/v1/").are_for("other.example", true));
        assert!(named("mirror.example").are_for("mirror.example", false));
        assert!(named("https://index.docker.io/v1/").are_for("docker.io", true));
    }
}
