//! What a signature says: a JSON document, the same for simple signing and for sigstore.

use serde::Deserialize;
use serde_json::Value;

use crate::content::Digest;

/// The image that somebody vouched for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Payload {
    pub digest: Digest,
    pub reference: String,
}

/// The name that simple signing gives itself.
pub(super) const SIMPLE: &str = "atomic container signature";
/// The name that sigstore gives itself.
pub(super) const SIGSTORE: &str = "cosign container image signature";

/// Parses signed bytes. What is critical must be understood, so nothing unknown may be in there.
pub(super) fn parse(bytes: &[u8], kind: &str) -> Result<Payload, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Document {
        critical: Critical,
        #[serde(default, rename = "optional")]
        _optional: Option<Value>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Critical {
        #[serde(rename = "type")]
        kind: String,
        image: Image,
        identity: Identity,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Image {
        #[serde(rename = "docker-manifest-digest")]
        digest: Digest,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Identity {
        #[serde(rename = "docker-reference")]
        reference: String,
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| format!("its text cannot be understood: {error}"))?;
    if document.critical.kind != kind {
        return Err(format!("it is a {:?} and not a {kind:?}", document.critical.kind));
    }
    Ok(Payload { digest: document.critical.image.digest, reference: document.critical.identity.reference })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_critical_must_be_understood() {
        let digest = Digest::of(b"");
        let text = |more: &str| {
            format!(
                r#"{{"critical":{{"type":"{SIMPLE}","image":{{"docker-manifest-digest":"{digest}"}},
                "identity":{{"docker-reference":"a:1"}}{more}}},"optional":{{"creator":"x"}}}}"#
            )
        };
        assert_eq!(parse(text("").as_bytes(), SIMPLE).unwrap(), Payload { digest, reference: "a:1".into() });
        assert!(parse(text(r#","expires":1"#).as_bytes(), SIMPLE).unwrap_err().contains("expires"));
        assert!(parse(text("").as_bytes(), SIGSTORE).is_err());
        assert!(parse(b"{}", SIMPLE).is_err());
    }
}
