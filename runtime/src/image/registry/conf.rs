//! `registries.conf` version 2 and its drop-ins, as podman, buildah and CRI-O read them.
//!
//! A `[[registry]]` in a later file replaces one with the same prefix in an earlier one, and so do aliases and the
//! search list and the list of credential helpers.

use std::collections::BTreeMap;
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

/// What the main file and its drop-ins say together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Conf {
    /// `[[registry]]`
    pub registries: Vec<RegistryConfig>,
    /// Registries to try for a name without one; `None` when nobody says.
    pub search: Option<Vec<String>>,
    /// `short-name-mode = "enforcing"`: a name that could mean several registries means none.
    pub enforcing: bool,
    /// Short names and what they stand for.
    pub aliases: BTreeMap<String, String>,
    /// Who is asked for credentials, in this order; `None` when nobody says.
    pub credential_helpers: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry: Vec<Registry>,
    #[serde(default)]
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    short_name_mode: Option<String>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(default)]
    credential_helpers: Option<Vec<String>>,
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

/// The main file and `<file>.d/*.conf` in the order of their names, each laid over those before.
pub(crate) fn load(main: &Path) -> Result<Conf, ConfError> {
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
    let mut conf = Conf::default();
    for path in files {
        if let Some(text) = text(&path)? {
            conf.lay_over(file(&text, &path)?, &path)?;
        }
    }
    Ok(conf)
}

/// One file alone.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn parse(text: &str, path: &Path) -> Result<Conf, ConfError> {
    let mut conf = Conf::default();
    conf.lay_over(file(text, path)?, path)?;
    Ok(conf)
}

/// A configuration file's text; `None` when there is no such file.
pub(crate) fn text(path: &Path) -> Result<Option<String>, ConfError> {
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

fn file(text: &str, path: &Path) -> Result<File, ConfError> {
    toml::from_str(text).map_err(|source| ConfError::Parse { path: path.to_owned(), source: Box::new(source) })
}

impl Conf {
    fn lay_over(&mut self, file: File, path: &Path) -> Result<(), ConfError> {
        let value = |what: String| ConfError::Value { path: path.to_owned(), what };
        if file.registries.is_some() {
            return Err(value(
                "[registries] is of version 1 of this format, only version 2 ([[registry]]) is read".to_owned(),
            ));
        }
        match file.short_name_mode.as_deref() {
            None => {}
            Some("enforcing") => self.enforcing = true,
            Some("permissive" | "disabled") => self.enforcing = false,
            Some(other) => {
                let known = "enforcing, permissive or disabled";
                return Err(value(format!("short-name-mode is {other:?}, known are {known}")));
            }
        }
        if let Some(search) = file.unqualified_search_registries {
            self.search = Some(search);
        }
        if let Some(helpers) = file.credential_helpers {
            self.credential_helpers = Some(helpers);
        }
        for (name, target) in file.aliases {
            // an empty one takes back what an earlier file said
            if target.is_empty() {
                self.aliases.remove(&name);
            } else {
                self.aliases.insert(name, target);
            }
        }
        for registry in file.registry {
            let registry = registry.checked(path)?;
            self.registries.retain(|other| other.prefix != registry.prefix);
            self.registries.push(registry);
        }
        Ok(())
    }
}

impl Registry {
    fn checked(self, path: &Path) -> Result<RegistryConfig, ConfError> {
        let prefix = if self.prefix.is_empty() { &self.location } else { &self.prefix };
        if prefix.is_empty() {
            let what = "a [[registry]] has neither prefix nor location".to_owned();
            return Err(ConfError::Value { path: path.to_owned(), what });
        }
        let by_digest = self.mirror_by_digest_only;
        let mirrors = self.mirror.into_iter().map(|mirror| MirrorConfig {
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
            location: Some(self.location).filter(|location| !location.is_empty()),
            insecure: self.insecure,
            blocked: self.blocked,
            defined_in: Some(path.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_drop_ins_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("registries.conf");
        assert_eq!(load(&main).unwrap(), Conf::default());
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
        let conf = load(&main).unwrap();
        assert_eq!((conf.search, conf.enforcing), (Some(vec!["quay.io".to_owned()]), true));
        let registries = conf.registries;
        assert_eq!(registries[1].defined_in.as_ref(), Some(&drop_in));
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

    #[test]
    fn aliases_are_merged_and_an_empty_one_takes_an_earlier_one_back() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("registries.conf");
        std::fs::create_dir(dir.path().join("registries.conf.d")).unwrap();
        std::fs::write(&main, "[aliases]\n'a'='x.example/a'\n'b'='x.example/b'\n'c'='x.example/c'\n").unwrap();
        std::fs::write(
            dir.path().join("registries.conf.d/1.conf"),
            "unqualified-search-registries=[]\nshort-name-mode='permissive'\ncredential-helpers=['a']\n[aliases]\n'b'=''\n'c'='y.example/c'\n",
        )
        .unwrap();
        let conf = load(&main).unwrap();
        let alias = |name: &str| conf.aliases.get(name).map(String::as_str);
        assert_eq!((alias("a"), alias("b"), alias("c")), (Some("x.example/a"), None, Some("y.example/c")));
        assert_eq!((conf.search.as_deref(), conf.enforcing), (Some(&[][..]), false));
        assert_eq!(conf.credential_helpers, Some(vec!["a".to_owned()]));
        let error = parse("short-name-mode = 'strict'", Path::new("/x")).unwrap_err().to_string();
        assert!(error.contains("enforcing, permissive or disabled"), "{error}");
    }
}
