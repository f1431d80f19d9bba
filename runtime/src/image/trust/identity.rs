//! Whether what a signature names is the image that was asked for (`signedIdentity`).

use serde::Deserialize;

use crate::image::reference::{Reference, is_bare};

/// As it is written in the policy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "camelCase")]
pub(super) enum RawIdentity {
    MatchExact {},
    MatchRepoDigestOrExact {},
    MatchRepository {},
    #[serde(rename_all = "camelCase")]
    ExactReference {
        docker_reference: String,
    },
    #[serde(rename_all = "camelCase")]
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename_all = "camelCase")]
    RemapIdentity {
        prefix: String,
        signed_prefix: String,
    },
}

/// How the two are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    Exact,
    RepoDigestOrExact,
    Repository,
    Reference(Reference),
    ExactRepository(String),
    Remap { prefix: String, signed: String },
}

impl Identity {
    pub(super) fn checked(raw: Option<RawIdentity>) -> Result<Identity, String> {
        Ok(match raw {
            None | Some(RawIdentity::MatchRepoDigestOrExact {}) => Identity::RepoDigestOrExact,
            Some(RawIdentity::MatchExact {}) => Identity::Exact,
            Some(RawIdentity::MatchRepository {}) => Identity::Repository,
            Some(RawIdentity::ExactReference { docker_reference }) => {
                if is_bare(&docker_reference) {
                    return Err(format!(
                        "signedIdentity: dockerReference {docker_reference:?} has neither tag nor digest"
                    ));
                }
                Identity::Reference(
                    Reference::parse(&docker_reference).map_err(|error| format!("signedIdentity: {error}"))?,
                )
            }
            Some(RawIdentity::ExactRepository { docker_repository }) => {
                let parsed =
                    Reference::parse(&docker_repository).map_err(|error| format!("signedIdentity: {error}"))?;
                Identity::ExactRepository(parsed.name())
            }
            Some(RawIdentity::RemapIdentity { prefix, signed_prefix }) => {
                if prefix.is_empty() || signed_prefix.is_empty() {
                    return Err("signedIdentity: remapIdentity needs prefix and signedPrefix".to_owned());
                }
                Identity::Remap { prefix, signed: signed_prefix }
            }
        })
    }

    /// Compares what a signature names with what was asked for; the error says what it is about instead.
    pub(super) fn accepts(&self, signed: &str, asked: &Reference) -> Result<(), String> {
        let parsed = Reference::parse(signed).map_err(|_| format!("it names {signed:?}, which is no image"))?;
        let exact = |asked: &Reference| !is_bare(signed) && parsed.stored_name() == asked.stored_name();
        let or_digest = |asked: &Reference| match asked.digest() {
            Some(_) => parsed.name() == asked.name(),
            None => exact(asked),
        };
        let same = match self {
            Identity::Exact => exact(asked),
            Identity::RepoDigestOrExact => or_digest(asked),
            Identity::Repository => parsed.name() == asked.name(),
            Identity::Reference(wanted) => exact(wanted),
            Identity::ExactRepository(wanted) => parsed.name() == *wanted,
            Identity::Remap { prefix, signed } => {
                let text = asked.to_string();
                let rest =
                    text.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
                match rest.map(|rest| Reference::parse(&format!("{signed}{rest}"))) {
                    Some(Ok(remapped)) => or_digest(&remapped),
                    Some(Err(_)) => false,
                    None => or_digest(asked),
                }
            }
        };
        if same { Ok(()) } else { Err(format!("it is for {signed}")) }
    }
}

/// What a reference is called in policies and `registries.d`, closest first: itself, its repository, what that lies
/// in, its registry, and wildcards for the registry's domain.
pub(super) fn scopes(reference: &Reference) -> Vec<String> {
    let mut scopes = vec![reference.stored_name()];
    let mut name = reference.name();
    loop {
        scopes.push(name.clone());
        match name.rfind('/') {
            Some(slash) => name.truncate(slash),
            None => break,
        }
    }
    let mut domain = name.as_str();
    while let Some((_, parent)) = domain.split_once('.') {
        scopes.push(format!("*.{parent}"));
        domain = parent;
    }
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Digest;

    fn accepts(raw: &str, signed: &str, asked: &str) -> bool {
        let identity = Identity::checked(serde_json::from_str(raw).unwrap()).unwrap();
        identity.accepts(signed, &Reference::parse(asked).unwrap()).is_ok()
    }

    #[test]
    fn a_tag_must_be_the_signed_one_and_a_digest_only_needs_the_repository() {
        let default = "null";
        let by_digest = format!("r.example/a@{}", Digest::of(b""));
        assert!(accepts(default, "r.example/a:1", "r.example/a:1"));
        assert!(!accepts(default, "r.example/a:1", "r.example/a:2"));
        assert!(accepts(default, "r.example/a:1", &by_digest));
        assert!(!accepts(default, "r.example/b:1", &by_digest));
        // a signature that names no tag is not about `latest`
        assert!(!accepts(default, "r.example/a", "r.example/a:latest"));
        assert!(accepts(default, "busybox:1", "docker.io/library/busybox:1"));
        assert!(!accepts(r#"{"type":"matchExact"}"#, "r.example/a:1", &by_digest));
        assert!(accepts(r#"{"type":"matchRepository"}"#, "r.example/a", "r.example/a:2"));
    }

    #[test]
    fn fixed_and_remapped_identities() {
        let fixed = r#"{"type":"exactReference","dockerReference":"r.example/a:1"}"#;
        assert!(accepts(fixed, "r.example/a:1", "mirror.example/x:9"));
        assert!(!accepts(fixed, "r.example/a:2", "mirror.example/x:9"));
        let repository = r#"{"type":"exactRepository","dockerRepository":"r.example/a"}"#;
        assert!(accepts(repository, "r.example/a:7", "mirror.example/x:9"));
        let remap = r#"{"type":"remapIdentity","prefix":"mirror.example/hub","signedPrefix":"r.example"}"#;
        assert!(accepts(remap, "r.example/a:1", "mirror.example/hub/a:1"));
        assert!(!accepts(remap, "r.example/a:1", "mirror.example/hubs/a:1"));
        assert!(accepts(remap, "other.example/a:1", "other.example/a:1"));
    }

    #[test]
    fn scopes_go_from_the_image_to_its_domain() {
        let reference = Reference::parse("x.r.example/a/b:1").unwrap();
        assert_eq!(
            scopes(&reference),
            ["x.r.example/a/b:1", "x.r.example/a/b", "x.r.example/a", "x.r.example", "*.r.example", "*.example"]
        );
    }
}
