//! Which images a file has, and what they are made of.

use std::collections::HashMap;

use serde::Deserialize;

use super::TransferError;
use super::source::Source;
use crate::content::Digest;
use crate::image::manifest::{self, Config, Descriptor, Document, Manifest, ManifestError};
use crate::image::platform::Platform;
use crate::image::reference::Reference;

const MAX_DOCUMENT: u64 = 8 << 20;
const MAX_IMAGES: usize = 1000;
/// An index may hold an index; deeper nobody goes.
const MAX_DEPTH: usize = 4;

/// One image in a file.
#[derive(Debug)]
pub(super) struct Planned {
    pub id: Digest,
    pub config: Config,
    pub layers: Vec<PlannedLayer>,
    /// Manifests and config, to be kept.
    pub blobs: Vec<(Digest, Vec<u8>)>,
    pub names: Vec<Reference>,
    /// What a registry would give for the name, when the file says.
    pub digest: Option<Digest>,
}

/// One layer in a file.
#[derive(Debug)]
pub(super) struct PlannedLayer {
    /// Its name in there.
    pub name: String,
    pub size: u64,
    /// What its bytes have to hash to, beside the digest of the uncompressed ones.
    pub digest: Option<Digest>,
}

/// Reads a file's table of contents. Docker's is preferred where there are both: it has the whole names.
pub(super) fn plan(source: &Source, host: &Platform) -> Result<(&'static str, Vec<Planned>), TransferError> {
    if let Some(bytes) = source.read("manifest.json", MAX_DOCUMENT)? {
        return Ok(("docker-archive", docker(source, &bytes)?));
    }
    let Some(bytes) = source.read("index.json", MAX_DOCUMENT)? else {
        let (owner, by) = source.store().ok_or(TransferError::Unknown)?.describe();
        return Err(TransferError::Store { owner, by });
    };
    let transport = if matches!(source, Source::Directory(_)) { "oci" } else { "oci-archive" };
    Ok((transport, oci(source, &bytes, host)?))
}

fn document(name: &str) -> impl Fn(serde_json::Error) -> TransferError {
    let name = name.to_owned();
    move |error| TransferError::Document { name: name.clone(), what: error.to_string() }
}

fn docker(source: &Source, bytes: &[u8]) -> Result<Vec<Planned>, TransferError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved {
        config: String,
        repo_tags: Option<Vec<String>>,
        layers: Option<Vec<String>>,
    }
    let saved: Vec<Saved> = serde_json::from_slice(bytes).map_err(document("manifest.json"))?;
    let mut planned = Vec::new();
    for image in saved.into_iter().take(MAX_IMAGES) {
        let missing = |name: &str| TransferError::Missing { name: name.to_owned() };
        let config_bytes = source.read(&image.config, MAX_DOCUMENT)?.ok_or_else(|| missing(&image.config))?;
        let id = Digest::of(&config_bytes);
        let config =
            manifest::parse_config(&config_bytes).map_err(|source| TransferError::Manifest { digest: id, source })?;
        let mut layers = Vec::new();
        for name in image.layers.unwrap_or_default() {
            let (_, size) = source.reader(&name)?.ok_or_else(|| missing(&name))?;
            layers.push(PlannedLayer { name, size, digest: None });
        }
        planned.push(Planned {
            id,
            config,
            layers,
            blobs: vec![(id, config_bytes)],
            names: names("manifest.json", image.repo_tags.unwrap_or_default())?,
            digest: None,
        });
    }
    Ok(planned)
}

fn oci(source: &Source, bytes: &[u8], host: &Platform) -> Result<Vec<Planned>, TransferError> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(flatten)]
        descriptor: Descriptor,
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let index: Index = serde_json::from_slice(bytes).map_err(document("index.json"))?;
    let mut planned: Vec<Planned> = Vec::new();
    for entry in index.manifests.into_iter().take(MAX_IMAGES) {
        let top = entry.descriptor.digest;
        let mut blobs = Vec::new();
        let Some(found) = choose(source, top, host, &mut blobs)? else { continue };
        let id = found.config.digest;
        let config_bytes = blob(source, id)?;
        let wrong = |source| TransferError::Manifest { digest: id, source };
        let config = manifest::parse_config(&config_bytes).map_err(wrong)?;
        blobs.push((id, config_bytes));
        if let Some(odd) = found.layers.iter().find(|layer| !manifest::is_layer(&layer.media_type)) {
            let what = format!("its media type is {:?}", odd.media_type.chars().take(120).collect::<String>());
            return Err(TransferError::Document { name: odd.digest.to_string(), what });
        }
        let layers = found.layers.iter().map(|layer| PlannedLayer {
            name: path(layer.digest),
            size: layer.size,
            digest: Some(layer.digest),
        });
        // containerd writes the whole name, skopeo what it was told, often only a tag
        let whole = entry.annotations.get("io.containerd.image.name");
        let short = entry.annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
        let names = names("index.json", whole.or(short).cloned().into_iter().collect())?;
        if let Some(same) = planned.iter_mut().find(|other| other.digest == Some(top)) {
            same.names.extend(names);
            continue;
        }
        planned.push(Planned { id, config, layers: layers.collect(), blobs, names, digest: Some(top) });
    }
    Ok(planned)
}

/// The manifest for this host; `None` when there is none.
fn choose(
    source: &Source,
    top: Digest,
    host: &Platform,
    blobs: &mut Vec<(Digest, Vec<u8>)>,
) -> Result<Option<Manifest>, TransferError> {
    let mut digest = top;
    for _ in 0..MAX_DEPTH {
        let bytes = blob(source, digest)?;
        let parsed = manifest::parse(&bytes).map_err(|source| TransferError::Manifest { digest, source })?;
        blobs.push((digest, bytes));
        match parsed {
            Document::Manifest(Manifest { artifact: Some(kind), .. }) => {
                return Err(TransferError::Manifest { digest, source: ManifestError::Artifact(kind) });
            }
            Document::Manifest(manifest) => return Ok(Some(manifest)),
            Document::Index(offered) => match manifest::choose(&offered, host) {
                Some(chosen) => digest = chosen.digest,
                None => return Ok(None),
            },
        }
    }
    Ok(None)
}

fn path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn blob(source: &Source, digest: Digest) -> Result<Vec<u8>, TransferError> {
    let name = path(digest);
    let bytes = source.read(&name, MAX_DOCUMENT)?.ok_or_else(|| TransferError::Missing { name: name.clone() })?;
    let actual = Digest::of(&bytes);
    if actual == digest { Ok(bytes) } else { Err(TransferError::Digest { name, actual }) }
}

fn names(document: &str, names: Vec<String>) -> Result<Vec<Reference>, TransferError> {
    let parse = |name: &String| {
        Reference::parse(name)
            .map_err(|error| TransferError::Document { name: document.to_owned(), what: error.to_string() })
    };
    names.iter().map(parse).collect()
}
