//! `[join]`: how the node becomes a member of its cluster. As written and as settled, since only one resource reads it.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::{HostPath, InvalidValue, Span};

/// `[join]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JoinFragment {
    /// none or kubeadm.
    pub method: Option<JoinMethod>,
    /// The API server: "HOST:PORT".
    pub endpoint: Option<Endpoint>,
    /// Pins of the cluster's CA: "sha256:…"; at least one, so that nobody else can pose as the cluster.
    pub ca_hashes: Option<Vec<CaHash>>,
    /// Where the bootstrap token is: { credential = "NAME" } or { file = "PATH" }. Never the token itself.
    pub token: Option<TokenFragment>,
    /// Key that the cluster's certificates were left under, for a control plane: as token.
    pub certificate_key: Option<TokenFragment>,
    /// How long kubeadm may take.
    pub timeout: Option<Span>,
}

/// Where a token is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenFragment {
    /// Name of a credential of the agent's unit (LoadCredential=).
    pub credential: Option<String>,
    /// A file that only root can read.
    pub file: Option<HostPath>,
}

/// `join.method`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JoinMethod {
    /// Somebody else does it.
    #[default]
    None,
    /// `kubeadm join`, once.
    Kubeadm,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JoinSettings {
    /// The API server.
    pub endpoint: Endpoint,
    /// Pins of the cluster's CA.
    pub ca_hashes: Vec<CaHash>,
    /// Where the bootstrap token is.
    pub token: TokenSource,
    /// Where the certificates' key is; a control plane has one.
    pub certificate_key: Option<TokenSource>,
    /// How long kubeadm may take.
    pub timeout: Span,
}

/// Where a token is; the token itself is in no config, state or journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TokenSource {
    /// A credential of the agent's unit.
    Credential(String),
    /// A file that only root can read.
    File(String),
}

/// The API server's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(transparent)]
pub struct Endpoint(String);

super::value::deserialize_from_text!(Endpoint, "an address in quotes, such as \"10.0.0.1:6443\"");

impl Endpoint {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Endpoint, InvalidValue> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".-[]:".contains(&b);
        let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && host.bytes().all(plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        match valid && text.len() <= 260 {
            true => Ok(Endpoint(text.to_owned())),
            false => Err(InvalidValue(format!("{text:?} is no address; want HOST:PORT, such as 10.0.0.1:6443"))),
        }
    }
}

/// A pin of a CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(transparent)]
pub struct CaHash(String);

super::value::deserialize_from_text!(CaHash, "a pin in quotes: \"sha256:\" and 64 hex digits");

impl CaHash {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CaHash {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<CaHash, InvalidValue> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        match hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(CaHash(text.to_ascii_lowercase())),
            false => Err(InvalidValue(format!(
                "{text:?} is no pin of a CA; want sha256: and 64 hex digits, as `kubeadm token create --print-join-command` \
                 prints them"
            ))),
        }
    }
}
