//! Where a reference would be looked for, and why: the configuration as it is applied, without asking anybody.

use serde::{Deserialize, Serialize};

use super::config::ImagesConfig;
use super::error::ImageError;
use super::registry::{Endpoint, proxy_for, resolve};
use super::{auth_file, candidates, reference::Reference, trust};

/// What one name leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was asked.
    pub name: String,
    /// What it may mean, in the order of the attempts.
    pub candidates: Vec<CandidateExplained>,
}

/// One thing that a name may mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CandidateExplained {
    /// The whole reference.
    pub reference: String,
    /// How the name came to mean this.
    pub why: String,
    /// The places that are asked, in this order.
    pub endpoints: Vec<EndpointExplained>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What the signature policy wants.
    pub policy: String,
}

/// A place that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointExplained {
    /// The address of the manifest.
    pub url: String,
    /// The piece of configuration that led here.
    pub why: String,
    /// What certificates have to be like.
    pub tls: String,
    /// Where credentials come from, unless the caller brings some.
    pub credentials: String,
    /// The proxy in between, from the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Names of headers that the configuration adds.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub headers: Vec<String>,
}

/// Follows the configuration for one name. Reads files.
pub(crate) fn explain(config: &ImagesConfig, name: &str) -> Result<Explanation, ImageError> {
    let found = candidates(config.registries_conf.as_deref(), name)?;
    let candidates = found.into_iter().map(|one| candidate(config, &one.reference, one.why));
    Ok(Explanation { name: name.to_owned(), candidates: candidates.collect() })
}

fn candidate(config: &ImagesConfig, reference: &Reference, why: &str) -> CandidateExplained {
    let (endpoints, helpers, refused) = match resolve(reference, config) {
        Ok(resolved) => (resolved.endpoints, resolved.credential_helpers, None),
        Err(error) => (Vec::new(), None, Some(crate::telemetry::chain(&error))),
    };
    let helpers = helpers.as_deref();
    let policy = match trust::for_reference(&config.trust, reference) {
        Ok(None) => "accepts anything: there is no policy file".to_owned(),
        Ok(Some(applied)) => format!("wants {} ({})", applied.describe(), applied.scope),
        Err(error) => format!("cannot be used: {}", crate::telemetry::chain(&error)),
    };
    CandidateExplained {
        reference: reference.to_string(),
        why: why.to_owned(),
        endpoints: endpoints.iter().map(|endpoint| explained(config, reference, helpers, endpoint)).collect(),
        refused,
        policy,
    }
}

fn explained(
    config: &ImagesConfig,
    reference: &Reference,
    helpers: Option<&[String]>,
    endpoint: &Endpoint,
) -> EndpointExplained {
    let wanted = reference.digest().map(|digest| digest.to_string());
    let wanted = wanted.or_else(|| reference.tag().map(str::to_owned)).unwrap_or_else(|| "latest".to_owned());
    let scheme = if endpoint.http { "http" } else { "https" };
    let namespace = endpoint.namespace.as_ref().map_or(String::new(), |name| format!("?ns={name}"));
    let url =
        format!("{scheme}://{}{}/{}/manifests/{wanted}{namespace}", endpoint.host, endpoint.base, endpoint.repository);
    let name = if endpoint.origin { reference.name() } else { format!("{}/{}", endpoint.host, endpoint.repository) };
    let credentials = match auth_file::describe(&config.auth_files, helpers, &name) {
        Ok(Some(source)) => source,
        Ok(None) => "none".to_owned(),
        Err(error) => format!("unusable: {}", crate::telemetry::chain(&error)),
    };
    EndpointExplained {
        proxy: proxy_for(&url),
        url,
        why: endpoint.why.clone(),
        tls: tls(endpoint),
        credentials,
        headers: endpoint.headers.iter().map(|(name, _)| name.clone()).collect(),
    }
}

fn tls(endpoint: &Endpoint) -> String {
    if endpoint.http {
        return "none: plain HTTP is configured".to_owned();
    }
    let mut parts = vec![if endpoint.tls.skip_verify {
        "any certificate".to_owned()
    } else {
        "a certificate that the platform trusts".to_owned()
    }];
    parts.extend(endpoint.tls.ca.iter().map(|path| format!("or one by {}", path.display())));
    if let Some((certificate, _)) = &endpoint.tls.client {
        parts.push(format!("with the client certificate {}", certificate.display()));
    }
    if endpoint.may_use_http() {
        parts.push("or plain HTTP when TLS does not answer".to_owned());
    }
    parts.join(", ")
}
