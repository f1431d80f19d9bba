//! Names without a registry, and which registries they may mean.
//!
//! An alias in registries.conf or one of its drop-ins decides; else the search list there; else Docker's registry, as
//! Docker and the kubelet have it. A name that says its registry means that one and nothing else.

use super::error::ImageError;
use super::reference::{self, Reference};
use super::registry::Conf;

/// One thing that a name may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub reference: Reference,
    /// For explanations.
    pub why: &'static str,
}

/// What a name may mean, in the order in which it is to be tried; never empty.
pub(crate) fn candidates(text: &str, conf: &Conf) -> Result<Vec<Candidate>, ImageError> {
    let plain = Reference::parse(text)?;
    if !reference::is_short(text) {
        return Ok(vec![Candidate { reference: plain, why: "names its registry" }]);
    }
    let name = without_tag(text);
    let suffix = &text[name.len()..];
    if let Some(target) = conf.aliases.get(name) {
        let reference = Reference::parse(&format!("{target}{suffix}"))?;
        return Ok(vec![Candidate { reference, why: "alias in registries.conf" }]);
    }
    let Some(search) = conf.search.as_deref().filter(|search| !search.is_empty()) else {
        return Ok(vec![Candidate { reference: plain, why: "names no registry, which means Docker's" }]);
    };
    let found: Result<Vec<Reference>, _> =
        search.iter().map(|registry| Reference::parse(&format!("{registry}/{text}"))).collect();
    let found = found?;
    if conf.enforcing && found.len() > 1 {
        return Err(ImageError::Ambiguous {
            name: text.to_owned(),
            choices: found.iter().map(Reference::to_string).collect(),
        });
    }
    let why = "unqualified-search-registries in registries.conf";
    Ok(found.into_iter().map(|reference| Candidate { reference, why }).collect())
}

/// The part before tag and digest.
fn without_tag(text: &str) -> &str {
    let name = text.split('@').next().unwrap_or(text);
    match name.rfind(':') {
        // before a slash it would be a port, but then the name was not short
        Some(colon) => &name[..colon],
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Digest;

    fn meant(text: &str, conf: &Conf) -> Vec<String> {
        let found = candidates(text, conf).unwrap();
        found.iter().map(|candidate| candidate.reference.to_string()).collect()
    }

    fn conf(search: &[&str], enforcing: bool) -> Conf {
        Conf {
            search: Some(search.iter().map(|name| (*name).to_owned()).collect()),
            enforcing,
            aliases: [("tools/box".to_owned(), "r.example/team/box".to_owned())].into(),
            ..Conf::default()
        }
    }

    #[test]
    fn an_alias_decides_and_keeps_tag_and_digest() {
        let conf = conf(&["quay.io", "docker.io"], true);
        assert_eq!(meant("tools/box", &conf), ["r.example/team/box:latest"]);
        assert_eq!(meant("tools/box:1", &conf), ["r.example/team/box:1"]);
        let digest = Digest::of(b"");
        assert_eq!(meant(&format!("tools/box@{digest}"), &conf), [format!("r.example/team/box@{digest}")]);
        assert_eq!(meant("docker.io/tools/box:1", &conf), ["docker.io/tools/box:1"]);
    }

    #[test]
    fn the_search_list_is_tried_in_order_unless_names_must_be_clear() {
        assert_eq!(
            meant("box:1", &conf(&["quay.io", "docker.io"], false)),
            ["quay.io/box:1", "docker.io/library/box:1"]
        );
        assert_eq!(meant("box", &conf(&["quay.io"], true)), ["quay.io/box:latest"]);
        let error = candidates("box", &conf(&["quay.io", "docker.io"], true)).unwrap_err().to_string();
        assert!(error.contains("quay.io/box:latest") && error.contains("docker.io/library/box:latest"), "{error}");
    }

    #[test]
    fn without_configuration_a_short_name_is_dockers() {
        assert_eq!(meant("busybox", &Conf::default()), ["docker.io/library/busybox:latest"]);
        assert_eq!(meant("busybox", &conf(&[], true)), ["docker.io/library/busybox:latest"]);
        assert_eq!(meant("localhost/x", &conf(&["quay.io"], true)), ["localhost/x:latest"]);
        assert_eq!(meant("host:5000/x:1", &conf(&["quay.io"], true)), ["host:5000/x:1"]);
    }
}
