//! `policy.json`: which requirements apply to which images.
//!
//! Read as strictly as containers tools do: an unknown key may be one that makes the policy stricter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::TrustError;
use super::identity::{Identity, RawIdentity};
use crate::image::reference::Reference;
use crate::image::registry::{ConfError, conf_text};

/// One thing that has to hold. All of a list have to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requirement {
    Accept,
    Reject,
    /// A simple signature, by one of these OpenPGP keys.
    SignedBy {
        keys: Vec<KeySource>,
        identity: Identity,
    },
    /// A sigstore signature, by one of these public keys.
    SigstoreSigned {
        keys: Vec<KeySource>,
        identity: Identity,
    },
}

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeySource {
    File(PathBuf),
    Inline(Vec<u8>),
}

impl KeySource {
    /// For messages.
    pub(super) fn name(&self) -> String {
        match self {
            KeySource::File(path) => path.display().to_string(),
            KeySource::Inline(_) => "in the policy itself".to_owned(),
        }
    }

    pub(super) fn bytes(&self) -> Result<Vec<u8>, TrustError> {
        match self {
            KeySource::File(path) => super::key_file(path),
            KeySource::Inline(bytes) => Ok(bytes.clone()),
        }
    }
}

impl Requirement {
    pub(super) fn needs_signatures(&self) -> bool {
        !matches!(self, Requirement::Accept | Requirement::Reject)
    }

    pub(super) fn describe(&self) -> String {
        let names = |keys: &[KeySource]| keys.iter().map(KeySource::name).collect::<Vec<_>>().join(", ");
        match self {
            Requirement::Accept => "anything".to_owned(),
            Requirement::Reject => "nothing".to_owned(),
            Requirement::SignedBy { keys, .. } => format!("a simple signature by a key of {}", names(keys)),
            Requirement::SigstoreSigned { keys, .. } => format!("a sigstore signature by a key of {}", names(keys)),
        }
    }
}

/// The whole file.
#[derive(Debug)]
pub(super) struct Policy {
    default: Vec<Requirement>,
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    default: Vec<Raw>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Raw>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "type")]
enum Raw {
    #[serde(rename = "insecureAcceptAnything")]
    Accept {},
    #[serde(rename = "reject")]
    Reject {},
    #[serde(rename = "signedBy", rename_all = "camelCase")]
    SignedBy {
        key_type: String,
        #[serde(default)]
        key_path: Option<PathBuf>,
        #[serde(default)]
        key_paths: Option<Vec<PathBuf>>,
        #[serde(default)]
        key_data: Option<String>,
        #[serde(default)]
        signed_identity: Option<RawIdentity>,
    },
    #[serde(rename = "sigstoreSigned", rename_all = "camelCase")]
    SigstoreSigned {
        #[serde(default)]
        key_path: Option<PathBuf>,
        #[serde(default)]
        key_paths: Option<Vec<PathBuf>>,
        #[serde(default)]
        key_data: Option<String>,
        #[serde(default)]
        key_datas: Option<Vec<String>>,
        #[serde(default)]
        signed_identity: Option<RawIdentity>,
    },
}

/// Reads a policy; `None` when there is no such file.
pub(super) fn load(path: &Path) -> Result<Option<Policy>, TrustError> {
    let text = conf_text(path).map_err(|error| match error {
        ConfError::Read { path, source } => TrustError::Read { path, source },
        other => TrustError::Invalid { path: path.to_owned(), what: other.to_string() },
    })?;
    text.map(|text| parse(&text, path)).transpose()
}

/// Parses a policy.
pub(super) fn parse(text: &str, path: &Path) -> Result<Policy, TrustError> {
    let invalid = |what: String| TrustError::Invalid { path: path.to_owned(), what };
    let raw: RawPolicy = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
    let list = |name: &str, raw: Vec<Raw>| -> Result<Vec<Requirement>, TrustError> {
        if raw.is_empty() {
            return Err(invalid(format!("{name}: a list of requirements must not be empty")));
        }
        raw.into_iter().map(|one| one.checked().map_err(|what| invalid(format!("{name}: {what}")))).collect()
    };
    let default = list("default", raw.default)?;
    let mut transports = BTreeMap::new();
    for (transport, scopes) in raw.transports {
        let mut checked = BTreeMap::new();
        for (scope, requirements) in scopes {
            let name = format!("transports.{transport}.{scope:?}");
            checked.insert(scope, list(&name, requirements)?);
        }
        transports.insert(transport, checked);
    }
    Ok(Policy { default, transports, path: path.to_owned() })
}

impl Raw {
    fn checked(self) -> Result<Requirement, String> {
        match self {
            Raw::Accept {} => Ok(Requirement::Accept),
            Raw::Reject {} => Ok(Requirement::Reject),
            Raw::SignedBy { key_type, key_path, key_paths, key_data, signed_identity } => {
                if key_type != "GPGKeys" {
                    return Err(format!("keyType is {key_type:?}, only GPGKeys is known"));
                }
                let keys = keys(key_path, key_paths, key_data, None)?;
                Ok(Requirement::SignedBy { keys, identity: Identity::checked(signed_identity)? })
            }
            Raw::SigstoreSigned { key_path, key_paths, key_data, key_datas, signed_identity } => {
                let keys = keys(key_path, key_paths, key_data, key_datas)?;
                Ok(Requirement::SigstoreSigned { keys, identity: Identity::checked(signed_identity)? })
            }
        }
    }
}

/// Exactly one way of naming keys.
fn keys(
    path: Option<PathBuf>,
    paths: Option<Vec<PathBuf>>,
    data: Option<String>,
    datas: Option<Vec<String>>,
) -> Result<Vec<KeySource>, String> {
    let given = [path.is_some(), paths.is_some(), data.is_some(), datas.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        return Err("needs exactly one of keyPath, keyPaths, keyData and keyDatas".to_owned());
    }
    let mut keys: Vec<KeySource> = path.into_iter().chain(paths.unwrap_or_default()).map(KeySource::File).collect();
    for text in data.into_iter().chain(datas.unwrap_or_default()) {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| "keyData is not base64".to_owned())?;
        keys.push(KeySource::Inline(bytes));
    }
    if keys.is_empty() { Err("names no key".to_owned()) } else { Ok(keys) }
}

impl Policy {
    /// What applies to a reference, and what that part of the policy is called: the closest scope wins.
    pub(super) fn for_docker(&self, reference: &Reference) -> (String, &[Requirement]) {
        if let Some(scopes) = self.transports.get("docker") {
            for scope in super::identity::scopes(reference).into_iter().chain([String::new()]) {
                if let Some(requirements) = scopes.get(&scope) {
                    return (self.named(&format!("docker {scope:?}")), requirements);
                }
            }
        }
        (self.named("default"), &self.default)
    }

    /// What applies to a whole transport.
    pub(super) fn for_transport(&self, transport: &str) -> (String, &[Requirement]) {
        match self.transports.get(transport).and_then(|scopes| scopes.get("")) {
            Some(requirements) => (self.named(transport), requirements),
            None => (self.named("default"), &self.default),
        }
    }

    fn named(&self, part: &str) -> String {
        format!("{part} of {}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Result<Policy, TrustError> {
        parse(text, Path::new("/etc/containers/policy.json"))
    }

    #[test]
    fn the_closest_scope_wins() {
        let text = r#"{"default":[{"type":"reject"}],"transports":{"docker":{
            "r.example/a/b:1":[{"type":"insecureAcceptAnything"}],
            "r.example/a":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}],
            "*.wild.example":[{"type":"sigstoreSigned","keyPath":"/s"}],
            "quay.io":[{"type":"insecureAcceptAnything"}]}}}"#;
        let policy = policy(text).unwrap();
        let applied = |name: &str| {
            let (_, requirements) = policy.for_docker(&Reference::parse(name).unwrap());
            requirements[0].describe()
        };
        assert_eq!(applied("r.example/a/b:1"), "anything");
        assert_eq!(applied("r.example/a/b:2"), "a simple signature by a key of /k");
        assert_eq!(applied("r.example/ab"), "nothing");
        assert_eq!(applied("x.y.wild.example/i"), "a sigstore signature by a key of /s");
        assert_eq!(applied("wild.example/i"), "nothing");
        assert_eq!(applied("quay.io/deep/er:1"), "anything");
        assert_eq!(policy.for_transport("oci").1, [Requirement::Reject]);
    }

    #[test]
    fn what_cannot_be_enforced_is_an_error_and_not_a_pass() {
        for (text, word) in [
            ("{}", "default"),
            (r#"{"default":[]}"#, "empty"),
            (r#"{"default":[{"type":"signedBaseLayer"}]}"#, "signedBaseLayer"),
            (r#"{"default":[{"type":"reject","more":1}]}"#, "more"),
            (r#"{"default":[{"type":"reject"}],"extra":{}}"#, "extra"),
            (r#"{"default":[{"type":"signedBy","keyType":"X509","keyPath":"/k"}]}"#, "GPGKeys"),
            (r#"{"default":[{"type":"signedBy","keyType":"GPGKeys"}]}"#, "exactly one"),
            (r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyData":"aa"}]}"#, "exactly one"),
            (r#"{"default":[{"type":"sigstoreSigned","fulcio":{}}]}"#, "fulcio"),
            (
                r#"{"default":[{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"/r"}]}"#,
                "rekorPublicKeyPath",
            ),
        ] {
            let error = policy(text).unwrap_err().to_string();
            assert!(error.starts_with("/etc/containers/policy.json: ") && error.contains(word), "{text}: {error}");
        }
    }
}
