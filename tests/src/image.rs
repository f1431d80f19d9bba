//! Container images made here: busybox and what a test puts on top of it, as tar, gzip, config, manifest and index.

use std::fs;
use std::io::Write;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::outside::run;
use crate::registry::Registry;

/// Which names the documents go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Open Container Initiative.
    Oci,
    /// Docker's, schema 2.
    Docker,
}

impl Dialect {
    fn media_type(self, what: &str) -> &'static str {
        match (self, what) {
            (Self::Oci, "index") => "application/vnd.oci.image.index.v1+json",
            (Self::Oci, "manifest") => "application/vnd.oci.image.manifest.v1+json",
            (Self::Oci, "config") => "application/vnd.oci.image.config.v1+json",
            (Self::Oci, _) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Docker, "index") => "application/vnd.docker.distribution.manifest.list.v2+json",
            (Self::Docker, "manifest") => "application/vnd.docker.distribution.manifest.v2+json",
            (Self::Docker, "config") => "application/vnd.docker.container.image.v1+json",
            (Self::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

/// A layer, packed.
#[derive(Debug, Clone)]
struct Layer {
    packed: Vec<u8>,
    /// Digest of the archive before compression.
    diff_id: String,
}

/// An image to be.
#[derive(Debug, Clone)]
pub struct Image {
    dialect: Dialect,
    architecture: String,
    layers: Vec<Layer>,
    config: Value,
}

/// An image that a registry has.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// Digest of the config, which is the image's id.
    pub id: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Digests of the packed layers.
    pub layers: Vec<String>,
    /// Bytes of the packed layers.
    pub size: u64,
    manifest_size: usize,
    architecture: String,
}

/// Uploads an artifact, which is no container image: files by their titles. The digest of its manifest.
pub fn push_artifact(registry: &Registry, repository: &str, tag: &str, files: &[(&str, &[u8])]) -> Result<String> {
    let config = sha256(b"{}");
    registry.push_blob(repository, &config, b"{}")?;
    let mut layers = Vec::new();
    for (title, bytes) in files {
        let digest = sha256(bytes);
        registry.push_blob(repository, &digest, bytes)?;
        layers.push(json!({
            "mediaType": "application/octet-stream", "digest": digest, "size": bytes.len(),
            "annotations": { "org.opencontainers.image.title": title },
        }));
    }
    let kind = Dialect::Oci.media_type("manifest");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "artifactType": "application/vnd.example.model",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2 }, "layers": layers,
    });
    let manifest = serde_json::to_vec(&manifest)?;
    registry.push_manifest(repository, tag, kind, &manifest)?;
    Ok(sha256(&manifest))
}

/// The architecture of this machine, as images name it.
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

impl Image {
    /// Busybox with all its applets, three users, and `/www/index.html`.
    pub fn busybox() -> Result<Self> {
        static BASE: OnceLock<Layer> = OnceLock::new();
        let base = match BASE.get() {
            Some(layer) => layer,
            None => {
                let layer = pack(&base_layer()?)?;
                BASE.get_or_init(|| layer)
            }
        };
        Ok(Self {
            dialect: Dialect::Oci,
            architecture: architecture().into(),
            layers: vec![base.clone()],
            config: json!({"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]}),
        })
    }

    /// The other document types.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Says that it is for another machine.
    pub fn architecture(mut self, name: &str) -> Self {
        self.architecture = name.into();
        self
    }

    /// Sets a field of the image's `config` object, by the name it has there (`User`, `Entrypoint`, `StopSignal` …).
    pub fn set(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// A further layer of files: path and content. A path ending in `/` is a directory, `.wh.NAME` hides NAME.
    pub fn layer(mut self, files: &[(&str, &str)]) -> Result<Self> {
        let mut archive = Builder::new(Vec::new());
        for (path, content) in files {
            if path.ends_with('/') {
                directory(&mut archive, path, 0o755)?;
            } else {
                file(&mut archive, path, 0o644, content.as_bytes())?;
            }
        }
        self.layers.push(pack(&archive.into_inner()?)?);
        Ok(self)
    }

    /// A further layer with a symbolic link in the place of what is there.
    pub fn link(mut self, path: &str, target: &str) -> Result<Self> {
        let mut archive = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        archive.append_link(&mut header, path, target)?;
        self.layers.push(pack(&archive.into_inner()?)?);
        Ok(self)
    }

    /// Uploads everything under `repository:tag`.
    pub fn push(&self, registry: &Registry, repository: &str, tag: &str) -> Result<Pushed> {
        let mut layers = Vec::new();
        let mut descriptors = Vec::new();
        let mut size = 0;
        for layer in &self.layers {
            let digest = sha256(&layer.packed);
            registry.push_blob(repository, &digest, &layer.packed)?;
            descriptors.push(self.descriptor("layer", &digest, layer.packed.len()));
            size += layer.packed.len() as u64;
            layers.push(digest);
        }
        let config = serde_json::to_vec(&json!({
            "architecture": self.architecture, "os": "linux", "created": "2026-01-02T03:04:05Z", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>()},
        }))?;
        let id = sha256(&config);
        registry.push_blob(repository, &id, &config)?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": self.dialect.media_type("manifest"),
            "config": self.descriptor("config", &id, config.len()), "layers": descriptors,
        }))?;
        registry.push_manifest(repository, tag, self.dialect.media_type("manifest"), &manifest)?;
        let architecture = self.architecture.clone();
        Ok(Pushed { id, digest: sha256(&manifest), layers, size, manifest_size: manifest.len(), architecture })
    }

    fn descriptor(&self, what: &str, digest: &str, size: usize) -> Value {
        json!({"mediaType": self.dialect.media_type(what), "digest": digest, "size": size})
    }
}

/// Uploads an index of images that are in `repository` already; its digest.
pub fn push_index(
    registry: &Registry,
    repository: &str,
    tag: &str,
    dialect: Dialect,
    images: &[&Pushed],
) -> Result<String> {
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| {
            json!({
                "mediaType": dialect.media_type("manifest"), "digest": image.digest, "size": image.manifest_size,
                "platform": {"architecture": image.architecture, "os": "linux"},
            })
        })
        .collect();
    let index = serde_json::to_vec(
        &json!({"schemaVersion": 2, "mediaType": dialect.media_type("index"), "manifests": manifests}),
    )?;
    registry.push_manifest(repository, tag, dialect.media_type("index"), &index)?;
    Ok(sha256(&index))
}

/// `sha256:…` of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn base_layer() -> Result<Vec<u8>> {
    let busybox = fs::read("/bin/busybox").context("read /bin/busybox (package busybox-static)")?;
    let mut archive = Builder::new(Vec::new());
    for (path, mode) in
        [("bin/", 0o755), ("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777), ("var/", 0o755), ("www/", 0o755)]
    {
        directory(&mut archive, path, mode)?;
    }
    file(&mut archive, "bin/busybox", 0o755, &busybox)?;
    for applet in run("/bin/busybox", ["--list"])?.ok("busybox --list")?.lines().filter(|a| *a != "busybox") {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        archive.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    file(
        &mut archive,
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/www:/bin/sh\ntester:x:1000:1000:tester:/tmp:/bin/sh\n",
    )?;
    file(&mut archive, "etc/group", 0o644, b"root:x:0:\nwww-data:x:33:\ntester:x:1000:\nextra:x:50000:tester\n")?;
    file(&mut archive, "www/index.html", 0o644, b"hello from the pod\n")?;
    Ok(archive.into_inner()?)
}

fn directory(archive: &mut Builder<Vec<u8>>, path: &str, mode: u32) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_size(0);
    header.set_mode(mode);
    Ok(archive.append_data(&mut header, path, std::io::empty())?)
}

fn file(archive: &mut Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    Ok(archive.append_data(&mut header, path, content)?)
}

fn pack(archive: &[u8]) -> Result<Layer> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(archive)?;
    Ok(Layer { packed: encoder.finish()?, diff_id: sha256(archive) })
}
