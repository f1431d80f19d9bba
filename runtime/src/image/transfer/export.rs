//! Images from the store into a file that skopeo, Docker, podman, containerd and we can read: an OCI layout with
//! Docker's table of contents beside it. Layers are made again byte by byte, so an image keeps its id.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::TransferError;
use crate::content::{Digest, disk};
use crate::image::error::ImageError;
use crate::image::manifest::ManifestError;
use crate::image::model::Image;
use crate::image::progress::Progress;
use crate::image::store::Store;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One file: an OCI layout as a tar archive, which `docker load` takes, too.
    #[default]
    Archive,
    /// A directory: an OCI layout.
    Directory,
}

/// Writes images to `path`, which must not exist. Nothing is left there when it fails.
pub(crate) fn export(
    store: &Store,
    images: &[String],
    path: &Path,
    format: Format,
    progress: &Progress,
) -> Result<(), ImageError> {
    let mut found = Vec::new();
    for name in images {
        let image = store.find(name).ok_or_else(|| ImageError::NotHere { image: name.clone() })?;
        if let (Some(kind), Ok(digest)) = (&image.artifact, image.id.parse()) {
            return Err(TransferError::Manifest { digest, source: ManifestError::Artifact(kind.clone()) }.at(path));
        }
        found.push(image);
    }
    let chains: HashSet<Digest> = found.iter().flat_map(|image| image.chain_ids.iter().copied()).collect();
    let pins: Vec<Digest> = chains.iter().copied().collect();
    let _pin = store.snapshots.pin(&pins);
    let taken = || TransferError::disk("create")(io::ErrorKind::AlreadyExists.into()).at(path);
    if path.symlink_metadata().is_ok() {
        return Err(taken());
    }
    let (Some(parent), Some(_)) = (path.parent(), path.file_name()) else {
        return Err(TransferError::disk("create")(io::ErrorKind::InvalidInput.into()).at(path));
    };
    let unfinished = disk::unique(parent);
    let written = write(store, &found, &unfinished, format, progress).and_then(|()| {
        std::fs::rename(&unfinished, path)
            .and_then(|()| disk::sync_directory(parent))
            .map_err(TransferError::disk("name"))
    });
    if written.is_err() {
        disk::remove_all(&unfinished);
    }
    written.map_err(|error| error.at(path))
}

fn write(
    store: &Store,
    images: &[std::sync::Arc<Image>],
    path: &Path,
    format: Format,
    progress: &Progress,
) -> Result<(), TransferError> {
    let create = TransferError::disk("create");
    let mut output = match format {
        Format::Directory => {
            std::fs::create_dir_all(path.join("blobs/sha256")).map_err(&create)?;
            Output::Directory(path.to_owned())
        }
        Format::Archive => {
            Output::Archive(BufWriter::with_capacity(256 << 10, File::create_new(path).map_err(&create)?))
        }
    };
    let (mut manifests, mut saved, mut done) = (Vec::new(), Vec::new(), HashSet::new());
    let mut sizes = std::collections::HashMap::new();
    for chain_id in images.iter().flat_map(|image| &image.chain_ids) {
        sizes.insert(*chain_id, archive_of(store, *chain_id, None)?);
    }
    progress.expect(sizes.len(), sizes.values().sum());
    for image in images {
        let mut layers = Vec::new();
        for chain_id in &image.chain_ids {
            let diff_id = store.snapshots.diff_id(*chain_id).ok_or_else(|| unmade(*chain_id, "it is not here"))?;
            let size = sizes.get(chain_id).copied().unwrap_or_default();
            if done.insert(diff_id) {
                output.file(&blob(diff_id), size, &mut |writer| {
                    let mut hashing = Hashing { writer, hasher: Sha256::new(), progress };
                    archive_of(store, *chain_id, Some(&mut hashing))?;
                    let actual = Digest::finish(hashing.hasher);
                    // somebody changed it
                    if actual == diff_id { Ok(()) } else { Err(unmade(*chain_id, "its files are not what they were")) }
                })?;
                progress.layer_done();
            }
            layers.push(json!({ "mediaType": LAYER, "digest": diff_id, "size": size }));
        }
        let id: Digest = image.id.parse().map_err(|_| TransferError::Missing { name: image.id.clone() })?;
        let config = store.content.get(id).ok().flatten().ok_or(TransferError::Missing { name: image.id.clone() })?;
        let paths: Vec<String> =
            layers.iter().filter_map(|layer| layer["digest"].as_str()?.parse().ok().map(blob)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": id, "size": config.len() },
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        for (digest, bytes) in [(id, &config), (digest, &manifest)] {
            if done.insert(digest) {
                output.bytes(&blob(digest), bytes)?;
            }
        }
        manifests.extend(entries(image, digest, manifest.len()));
        saved.push(json!({ "Config": blob(id), "RepoTags": image.tags, "Layers": paths }));
    }
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests });
    output.bytes("index.json", index.to_string().as_bytes())?;
    output.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    if format == Format::Archive {
        output.bytes("manifest.json", Value::from(saved).to_string().as_bytes())?;
    }
    output.finish()
}

/// One entry for each tag, as tools expect it; one without a name when there is none.
fn entries(image: &Image, digest: Digest, size: usize) -> Vec<Value> {
    let entry = |annotations: Value| json!({ "mediaType": MANIFEST, "digest": digest, "size": size, "annotations": annotations });
    if image.tags.is_empty() {
        return vec![entry(json!({}))];
    }
    let named = |name: &String| {
        let tag = name.rsplit(':').next().unwrap_or_default();
        entry(json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag }))
    };
    image.tags.iter().map(named).collect()
}

fn blob(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn unmade(layer: Digest, what: &str) -> TransferError {
    TransferError::Layer { layer, what: what.to_owned() }
}

fn archive_of(store: &Store, chain_id: Digest, output: Option<&mut dyn Write>) -> Result<u64, TransferError> {
    let made = store.snapshots.archive(chain_id, output);
    made.map_err(|error| unmade(chain_id, &crate::telemetry::chain(&error)))
}

/// Where files go.
enum Output {
    Directory(PathBuf),
    Archive(BufWriter<File>),
}

impl Output {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), TransferError> {
        self.file(name, bytes.len() as u64, &mut |writer| writer.write_all(bytes).map_err(TransferError::disk("write")))
    }

    /// A file of known size, written by `fill`.
    fn file(
        &mut self,
        name: &str,
        size: u64,
        fill: &mut dyn FnMut(&mut dyn Write) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        let failed = TransferError::disk("write");
        match self {
            Output::Directory(root) => {
                let mut file = BufWriter::with_capacity(256 << 10, File::create_new(root.join(name)).map_err(&failed)?);
                fill(&mut file)?;
                file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(&failed)
            }
            Output::Archive(file) => {
                let mut header = tar::Header::new_gnu();
                header.set_path(name).map_err(&failed)?;
                header.set_size(size);
                header.set_mode(0o644);
                header.set_cksum();
                file.write_all(header.as_bytes()).map_err(&failed)?;
                fill(file)?;
                let padding = usize::try_from(size.next_multiple_of(512) - size).unwrap_or_default();
                file.write_all(&[0; 512][..padding]).map_err(&failed)
            }
        }
    }

    fn finish(self) -> Result<(), TransferError> {
        let failed = TransferError::disk("write");
        match self {
            Output::Directory(root) => disk::sync_directory(&root.join("blobs/sha256"))
                .and_then(|()| disk::sync_directory(&root))
                .map_err(failed),
            Output::Archive(mut file) => {
                file.write_all(&[0; 1024]).map_err(&failed)?;
                file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)
            }
        }
    }
}

struct Hashing<'a> {
    writer: &'a mut dyn Write,
    hasher: Sha256,
    progress: &'a Progress,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.writer.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        self.progress.came(length);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
