//! Image references as people write them, normalised the way Docker and the kubelet do it.
//!
//! `busybox` means `docker.io/library/busybox:latest`; `localhost/x` and `host:5000/x` name a registry, `a/b` does not.
//! A reference may carry a tag, a digest, or both; with both, the digest decides and the tag is only a note.

use std::fmt;
use std::str::FromStr;

use crate::content::{Digest, DigestError};

/// Repository names are limited by the distribution specification.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;
/// name + tag + digest and their separators; anything longer is refused before it is looked at.
const MAX_REFERENCE: usize = MAX_NAME + 1 + MAX_TAG + 1 + 7 + 64 + 32;

const DEFAULT_DOMAIN: &str = "docker.io";

/// A normalised reference: registry, repository, and a tag, a digest or both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("image reference is empty")]
    Empty,
    /// Longer than any reference may be.
    #[error("image reference is longer than {MAX_REFERENCE} bytes")]
    TooLong,
    /// The repository part breaks the grammar.
    #[error("image reference {reference:?} has the invalid repository name {name:?}")]
    Name {
        /// The whole reference.
        reference: String,
        /// The part that is wrong.
        name: String,
    },
    /// The registry part breaks the grammar.
    #[error("image reference {reference:?} has the invalid registry {domain:?}")]
    Domain {
        /// The whole reference.
        reference: String,
        /// The part that is wrong.
        domain: String,
    },
    /// The tag breaks the grammar.
    #[error("image reference {reference:?} has the invalid tag {tag:?}")]
    Tag {
        /// The whole reference.
        reference: String,
        /// The part that is wrong.
        tag: String,
    },
    /// The digest cannot be checked.
    #[error("image reference {reference:?} has an invalid digest")]
    Digest {
        /// The whole reference.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
    /// 64 hex digits are an image id, never a name.
    #[error("{0:?} is an image id, not a name that can be pulled")]
    LooksLikeId(String),
}

impl Reference {
    /// Parses and normalises; a reference without tag and digest gets `:latest`.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_REFERENCE {
            return Err(ReferenceError::TooLong);
        }
        if Digest::from_hex(text).is_ok() || text.parse::<Digest>().is_ok() {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|source| ReferenceError::Digest { reference: text.to_owned(), source })?;
                (rest, Some(digest))
            }
        };
        // a colon after the last slash starts a tag; before it, a port
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !valid_tag(tag)
        {
            return Err(ReferenceError::Tag { reference: text.to_owned(), tag: tag.to_owned() });
        }
        let (domain, path) = split_domain(name);
        if !valid_domain(&domain) {
            return Err(ReferenceError::Domain { reference: text.to_owned(), domain });
        }
        if !valid_path(&path) || domain.len() + 1 + path.len() > MAX_NAME {
            return Err(ReferenceError::Name { reference: text.to_owned(), name: name.to_owned() });
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Reference { domain, path, tag, digest })
    }

    /// The registry's name as written (`docker.io`, not the host that serves it).
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository inside the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and repository.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag, if one was given or implied.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What the store files this under: `name:tag`, or `name@digest` as soon as there is a digest, because a tag
    /// beside a digest was not resolved and so proves nothing.
    pub fn stored_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => self.with_digest(*digest),
            (None, Some(tag)) => format!("{}:{tag}", self.name()),
            (None, None) => self.name(),
        }
    }

    /// `name@digest`.
    pub fn with_digest(&self, digest: Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a name leaves open which registry it is about.
pub(crate) fn is_short(text: &str) -> bool {
    let name = text.split('@').next().unwrap_or(text);
    !name.split_once('/').is_some_and(|(first, _)| is_domain(first))
}

/// Whether a name has neither tag nor digest.
pub(crate) fn is_bare(text: &str) -> bool {
    // before a slash, a colon is a port
    !text.contains('@') && text.rfind(':').is_none_or(|colon| text[colon..].contains('/'))
}

/// The first component is a registry only when it cannot be a Docker Hub user: it has a dot, a port or capitals, or
/// it is `localhost`.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if is_domain(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    let path =
        if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    (domain.to_owned(), path)
}

fn is_domain(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase())
}

fn valid_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    bytes.next().is_some_and(word)
        && tag.len() <= MAX_TAG
        && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn valid_path(path: &str) -> bool {
    path.split('/').all(valid_path_component)
}

/// Lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn valid_path_component(component: &str) -> bool {
    let mut joined: Option<(u8, usize)> = None;
    let mut seen_word = false;
    for byte in component.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => {
                joined = None;
                seen_word = true;
            }
            b'.' | b'_' | b'-' if seen_word => {
                joined = match joined {
                    None => Some((byte, 1)),
                    Some((b'-', count)) if byte == b'-' => Some((b'-', count + 1)),
                    Some((b'_', 1)) if byte == b'_' => Some((b'_', 2)),
                    Some(_) => return false,
                };
            }
            _ => return false,
        }
    }
    seen_word && joined.is_none()
}

fn valid_domain(domain: &str) -> bool {
    if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (after.is_empty() || after.strip_prefix(':').is_some_and(valid_port));
    }
    let (host, port) = match domain.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (domain, None),
    };
    port.is_none_or(valid_port) && host.split('.').all(valid_label)
}

fn valid_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn valid_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn normal(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    #[test]
    fn short_names_belong_to_docker_hub() {
        for (written, meant) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("user/app", "docker.io/user/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000/a/b/c:t"),
            ("[::1]:5000/app:t", "[::1]:5000/app:t"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("Host/app", "Host/app:latest"),
            ("quay.io/a__b/c---d/e.f:V_1.0-x", "quay.io/a__b/c---d/e.f:V_1.0-x"),
        ] {
            assert_eq!(normal(written), meant, "{written}");
        }
    }

    #[test]
    fn a_digest_needs_no_tag_and_wins_over_one() {
        let both = Reference::parse(&format!("app:v1@sha256:{HEX}")).unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/app:v1@sha256:{HEX}"));
        assert_eq!(both.stored_name(), format!("docker.io/library/app@sha256:{HEX}"));
        let bare = Reference::parse(&format!("app@sha256:{HEX}")).unwrap();
        assert_eq!(bare.tag(), None);
        assert_eq!(bare.stored_name(), both.stored_name());
    }

    #[test]
    fn what_breaks_the_grammar_is_refused_with_the_part_that_does() {
        for bad in ["App", "a//b", "a/", "/a", "a/-b", "a/b-", "a/b..c", "a/b___c", "a/b._c", "x.y/UPPER", "a b", "ä/b"]
        {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
        assert!(matches!(Reference::parse("a:"), Err(ReferenceError::Tag { .. })));
        assert!(matches!(Reference::parse("a:-x"), Err(ReferenceError::Tag { .. })));
        assert!(matches!(Reference::parse("host:99999/a"), Err(ReferenceError::Domain { .. })));
        assert!(matches!(Reference::parse("-host.x/a"), Err(ReferenceError::Domain { .. })));
        assert!(matches!(Reference::parse("a@sha512:00"), Err(ReferenceError::Digest { .. })));
        assert!(matches!(Reference::parse("a@sha256:00@sha256:00"), Err(ReferenceError::Digest { .. })));
        assert!(matches!(Reference::parse(HEX), Err(ReferenceError::LooksLikeId(_))));
        assert!(matches!(Reference::parse(""), Err(ReferenceError::Empty)));
        assert!(matches!(Reference::parse(&"a".repeat(2000)), Err(ReferenceError::TooLong)));
        assert!(matches!(Reference::parse(&"a".repeat(256)), Err(ReferenceError::Name { .. })));
        assert!(matches!(Reference::parse(&format!("a:{}", "t".repeat(129))), Err(ReferenceError::Tag { .. })));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_fail_badly(text in "\\PC{0,300}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
            }
        }

        #[test]
        fn normalising_twice_changes_nothing(
            domain in "([a-z0-9]{1,8}\\.[a-z]{2,3}|localhost)(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}([._-][a-z0-9]{1,6})?(/[a-z0-9]{1,6}){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            digest in any::<bool>(),
        ) {
            let mut text = format!("{domain}/{path}");
            if let Some(tag) = &tag { text.push_str(&format!(":{tag}")); }
            if digest { text.push_str(&format!("@sha256:{HEX}")); }
            let reference = Reference::parse(&text).unwrap();
            prop_assert_eq!(reference.domain(), domain);
            prop_assert_eq!(reference.digest().is_some(), digest);
            prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
        }
    }
}
