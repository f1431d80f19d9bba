//! `[init]`: how the first control plane of a cluster comes to be. As written and as settled, since only one resource reads it.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host::{Cidr, RegistryPlace};
use super::join::{Endpoint, TokenFragment, TokenSource};
use super::value::{InvalidValue, NodeName, Span};

/// `[init]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InitFragment {
    /// none or kubeadm.
    pub method: Option<InitMethod>,
    /// What all nodes reach the API by, "HOST:PORT"; needed when there will be more control planes than one.
    pub control_plane_endpoint: Option<Endpoint>,
    /// Network of the pods.
    pub pod_cidr: Option<Cidr>,
    /// Network of the services; without it kubeadm's 10.96.0.0/12.
    pub service_cidr: Option<Cidr>,
    /// Domain of the services; without it cluster.local.
    pub dns_domain: Option<NodeName>,
    /// Further names and addresses in the API server's certificate.
    pub cert_sans: Option<Vec<AltName>>,
    /// Where images of the control plane come from; without it registry.k8s.io.
    pub image_repository: Option<RegistryPlace>,
    /// A bootstrap token that nodes join with: { credential = "NAME" } or { file = "PATH" }. Without it kubeadm makes one up.
    pub token: Option<TokenFragment>,
    /// Key under which certificates are left for further control planes: as token. Without it they are not.
    pub certificate_key: Option<TokenFragment>,
    /// How long kubeadm may take.
    pub timeout: Option<Span>,
}

/// `init.method`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InitMethod {
    /// Somebody else does it.
    #[default]
    None,
    /// `kubeadm init`, once.
    Kubeadm,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitSettings {
    /// What all nodes reach the API by.
    pub control_plane_endpoint: Option<Endpoint>,
    /// Network of the pods.
    pub pod_cidr: Option<Cidr>,
    /// Network of the services.
    pub service_cidr: Option<Cidr>,
    /// Domain of the services.
    pub dns_domain: Option<NodeName>,
    /// Further names of the API server.
    pub cert_sans: Vec<AltName>,
    /// Where images of the control plane come from.
    pub image_repository: Option<RegistryPlace>,
    /// Where the bootstrap token is.
    pub token: Option<TokenSource>,
    /// Where the certificates' key is.
    pub certificate_key: Option<TokenSource>,
    /// How long kubeadm may take.
    pub timeout: Span,
}

/// A name or an address in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(transparent)]
pub struct AltName(String);

super::value::deserialize_from_text!(AltName, "a host name or an address in quotes, such as \"api.example.com\"");

impl AltName {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AltName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<AltName, InvalidValue> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let valid = text.parse::<std::net::IpAddr>().is_ok() || name.parse::<NodeName>().is_ok();
        match valid {
            true => Ok(AltName(text.to_owned())),
            false => Err(InvalidValue(format!("{text:?} is neither a host name nor an address"))),
        }
    }
}
