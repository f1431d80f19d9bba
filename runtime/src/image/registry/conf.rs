//! `registries.conf` version 2 and its drop-ins, as podman, buildah and CRI-O read them.
//!
//! What concerns other tools (search lists, credential helpers, short-name modes) is left to them. A `[[registry]]`
//! in a later file replaces one with the same prefix in an earlier one.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::image::config::{MirrorConfig, PullFrom, RegistryConfig};

const MAX_FILE: u64 = 1 << 20;

/// Why the configuration of registries cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// The file is there and cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not TOML of the expected shape.
    #[error("cannot parse {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that makes no sense.
    #[error("{path}: {what}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Key and reason.
        what: String,
    },
}

#[derive(Debug, Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Registry>,
    /// Version 1 had `[registries.search]` and the like.
    #[serde(default)]
    registries: Option<toml::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Registry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: Option<PullFrom>,
}

/// The registries of the main file and of `<file>.d/*.conf` in the order of their names.
pub(crate) fn load(main: &Path) -> Result<Vec<RegistryConfig>, ConfError> {
    let mut drop_ins = main.as_os_str().to_owned();
    drop_ins.push(".d");
    let drop_ins = PathBuf::from(drop_ins);
    let mut files = vec![main.to_owned()];
    match std::fs::read_dir(&drop_ins) {
        Ok(entries) => {
            let found = entries.filter_map(|entry| Some(entry.ok()?.path()));
            let mut found: Vec<PathBuf> =
                found.filter(|path| path.extension().is_some_and(|end| end == "conf")).collect();
            found.sort();
            files.extend(found);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(ConfError::Read { path: drop_ins, source }),
    }
    let mut all: Vec<RegistryConfig> = Vec::new();
    for path in files {
        for registry in read(&path)? {
            all.retain(|other| other.prefix != registry.prefix);
            all.push(registry);
        }
    }
    Ok(all)
}

/// A configuration file's text; `None` when there is no such file.
pub(super) fn text(path: &Path) -> Result<Option<String>, ConfError> {
    let fail = |source| ConfError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(fail)?;
    Ok(Some(text))
}

fn read(path: &Path) -> Result<Vec<RegistryConfig>, ConfError> {
    let Some(text) = text(path)? else { return Ok(Vec::new()) };
    let file: File =
        toml::from_str(&text).map_err(|source| ConfError::Parse { path: path.to_owned(), source: Box::new(source) })?;
    let value = |what: String| ConfError::Value { path: path.to_owned(), what };
    if file.registries.is_some() {
        return Err(value(
            "[registries] is of version 1 of this format, only version 2 ([[registry]]) is read".to_owned(),
        ));
    }
    file.registry
        .into_iter()
        .map(|registry| {
            let prefix = if registry.prefix.is_empty() { &registry.location } else { &registry.prefix };
            if prefix.is_empty() {
                return Err(value("a [[registry]] has neither prefix nor location".to_owned()));
            }
            let by_digest = registry.mirror_by_digest_only;
            let mirrors = registry.mirror.into_iter().map(|mirror| MirrorConfig {
                location: mirror.location,
                insecure: mirror.insecure,
                pull_from: match mirror.pull_from_mirror {
                    Some(choice) => choice,
                    None if by_digest => PullFrom::DigestOnly,
                    None => PullFrom::All,
                },
            });
            Ok(RegistryConfig {
                prefix: prefix.clone(),
                mirrors: mirrors.collect(),
                location: Some(registry.location).filter(|location| !location.is_empty()),
                insecure: registry.insecure,
                blocked: registry.blocked,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_drop_ins_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("registries.conf");
        assert_eq!(load(&main).unwrap(), []);
        std::fs::write(
            &main,
            r#"
            unqualified-search-registries = ["quay.io"]
            short-name-mode = "enforcing"
            [[registry]]
            location = "docker.io"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "mirror.example/hub"
            [[registry.mirror]]
            location = "tags.example"
            pull-from-mirror = "tag-only"
            insecure = true
            [[registry]]
            prefix = "*.corp.example"
            location = "old.example"
            "#,
        )
        .unwrap();
        std::fs::create_dir(dir.path().join("registries.conf.d")).unwrap();
        let drop_in = dir.path().join("registries.conf.d/10-corp.conf");
        std::fs::write(&drop_in, "[[registry]]\nprefix = '*.corp.example'\nblocked = true\n").unwrap();
        std::fs::write(dir.path().join("registries.conf.d/readme"), "no toml").unwrap();
        let registries = load(&main).unwrap();
        assert_eq!(registries[0].prefix, "docker.io");
        let from: Vec<PullFrom> = registries[0].mirrors.iter().map(|mirror| mirror.pull_from).collect();
        assert_eq!(from, [PullFrom::DigestOnly, PullFrom::TagOnly]);
        assert!(registries[0].mirrors[1].insecure);
        assert_eq!((registries[1].prefix.as_str(), registries[1].blocked), ("*.corp.example", true));
        assert_eq!(registries[1].location, None);
        assert_eq!(registries.len(), 2);
        std::fs::write(&drop_in, "[[registry]]\nblocked = true\n").unwrap();
        assert!(load(&main).unwrap_err().to_string().contains("10-corp.conf"));
        std::fs::write(&drop_in, "[registries.search]\nregistries = ['x']\n").unwrap();
        assert!(load(&main).unwrap_err().to_string().contains("version 1"));
    }
}
