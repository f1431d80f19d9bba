//! Where signatures are kept (`registries.d`): beside the images, as attachments, or in a place of their own.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::identity::scopes;
use super::{MAX_SIGNATURE, MAX_SIGNATURES, TrustError};
use crate::content::Digest;
use crate::image::reference::Reference;
use crate::image::registry::Session;

/// Where tools look when nobody says where.
const DEFAULT: &str = "file:///var/lib/containers/sigstore";

/// What holds for one reference.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lookaside {
    /// URL of a directory with simple signatures.
    base: Option<String>,
    /// Sigstore signatures are attached to images.
    pub attachments: bool,
}

#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    docker: Option<BTreeMap<String, Entry>>,
    #[serde(default, rename = "default-docker")]
    default_docker: Option<Entry>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    #[serde(default)]
    lookaside: Option<String>,
    /// The older name.
    #[serde(default)]
    sigstore: Option<String>,
    #[serde(default)]
    use_sigstore_attachments: Option<bool>,
}

/// Reads `*.yaml` of the directory; each property is that of the closest scope that has it.
pub(super) fn load(directory: &Path, reference: &Reference) -> Result<Lookaside, TrustError> {
    let read = |path: &Path, source| TrustError::Read { path: path.to_owned(), source };
    let mut files: Vec<PathBuf> = match std::fs::read_dir(directory) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(read(directory, error)),
    };
    files.retain(|path| path.extension().is_some_and(|end| end == "yaml"));
    files.sort();
    let (mut scoped, mut default): (BTreeMap<String, Entry>, Option<Entry>) = (BTreeMap::new(), None);
    for path in files {
        let mut text = String::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(1 << 20).read_to_string(&mut text))
            .map_err(|error| read(&path, error))?;
        let invalid = |what: String| TrustError::Invalid { path: path.clone(), what };
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            continue;
        }
        let file: File = serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        for (scope, entry) in file.docker.unwrap_or_default() {
            if scoped.insert(scope.clone(), entry).is_some() {
                return Err(invalid(format!("docker.{scope} is in an earlier file already")));
            }
        }
        if let Some(entry) = file.default_docker
            && default.replace(entry).is_some()
        {
            return Err(invalid("default-docker is in an earlier file already".to_owned()));
        }
    }
    let names = scopes(reference);
    let entries: Vec<&Entry> = names.iter().filter_map(|name| scoped.get(name)).chain(default.as_ref()).collect();
    let base = entries.iter().find_map(|entry| entry.lookaside.clone().or_else(|| entry.sigstore.clone()));
    let attachments = entries.iter().find_map(|entry| entry.use_sigstore_attachments).unwrap_or(false);
    Ok(Lookaside { base, attachments })
}

impl Lookaside {
    /// For messages.
    pub(super) fn places(&self) -> String {
        self.base.as_deref().unwrap_or(DEFAULT).to_owned()
    }
}

/// The simple signatures of an image: `<base>/<repository>@sha256=<hex>/signature-<n>`, from 1 until one is missing.
pub(super) async fn signatures(
    lookaside: &Lookaside,
    session: &Session,
    reference: &Reference,
    manifests: &[Digest],
) -> Result<Vec<Vec<u8>>, TrustError> {
    let base = lookaside.base.as_deref().unwrap_or(DEFAULT).trim_end_matches('/');
    let mut found = Vec::new();
    for digest in manifests {
        for number in 1..=MAX_SIGNATURES {
            let url = format!("{base}/{}@sha256={}/signature-{number}", reference.path(), digest.hex());
            let signature = match url.strip_prefix("file://") {
                Some(path) => file(Path::new(path))?,
                None => {
                    session.signature(&url, MAX_SIGNATURE).await.map_err(|error| TrustError::Fetch(Box::new(error)))?
                }
            };
            match signature {
                Some(bytes) => found.push(bytes),
                None => break,
            }
        }
    }
    Ok(found)
}

fn file(path: &Path) -> Result<Option<Vec<u8>>, TrustError> {
    let fail = |source| TrustError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_SIGNATURE).read_to_end(&mut bytes).map_err(fail)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_property_comes_from_the_closest_scope_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("default.yaml"),
            "# nothing\ndefault-docker:\n  sigstore: file:///old\n  use-sigstore-attachments: true\n",
        )
        .unwrap();
        std::fs::write(
            dir.path().join("r.yaml"),
            "docker:\n  r.example/a:\n    lookaside: https://sigs.example/x\n  r.example:\n    use-sigstore-attachments: false\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("empty.yaml"), "# only a comment\n").unwrap();
        let of = |name: &str| load(dir.path(), &Reference::parse(name).unwrap()).unwrap();
        assert_eq!(
            of("r.example/a/b:1"),
            Lookaside { base: Some("https://sigs.example/x".into()), attachments: false }
        );
        assert_eq!(of("q.example/a:1"), Lookaside { base: Some("file:///old".into()), attachments: true });
        std::fs::write(dir.path().join("z.yaml"), "docker:\n  r.example: {}\n").unwrap();
        let error = load(dir.path(), &Reference::parse("a").unwrap()).unwrap_err().to_string();
        assert!(error.contains("z.yaml") && error.contains("r.example"), "{error}");
    }
}
