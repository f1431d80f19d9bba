//! Settings of the image half.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// What [`super::Images::open`] needs to know.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// Directory for records, content, snapshots and container layers; created when missing.
    pub root: PathBuf,
    /// Registries that differ from the default (HTTPS, no mirror); the longest matching prefix wins.
    pub registries: Vec<RegistryConfig>,
    /// Limits of what a single image may cost.
    pub limits: Limits,
    /// How long the network may keep us waiting.
    pub timeouts: Timeouts,
}

impl ImagesConfig {
    /// Defaults for everything but the place.
    pub fn new(root: impl Into<PathBuf>) -> ImagesConfig {
        ImagesConfig {
            root: root.into(),
            registries: Vec::new(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// One registry, or a part of its name space.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// What references must begin with: `host[:port][/path]`.
    pub prefix: String,
    /// Where the images really are, when not at `prefix`: `host[:port][/path]` takes the prefix's place.
    #[serde(default)]
    pub location: Option<String>,
    /// Allows plain HTTP and certificates that cannot be verified.
    #[serde(default)]
    pub insecure: bool,
    /// Refuses to pull from here.
    #[serde(default)]
    pub blocked: bool,
    /// Asked first, in this order.
    #[serde(default, rename = "mirror")]
    pub mirrors: Vec<MirrorConfig>,
}

/// A place that has copies of another registry's images.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorConfig {
    /// `host[:port][/path]`, takes the prefix's place.
    pub location: String,
    /// Allows plain HTTP and certificates that cannot be verified.
    #[serde(default)]
    pub insecure: bool,
}

/// What a single image may cost. Far above anything honest; an archive that goes beyond is an attack or an accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Uncompressed bytes of one layer's archive.
    pub layer_bytes: u64,
    /// Entries of one layer's archive.
    pub layer_entries: u64,
    /// Layers of one image.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        // overlayfs takes 500 lower layers; 128 is what docker and its peers allow
        Limits { layer_bytes: 128 << 30, layer_entries: 4_000_000, layers: 128 }
    }
}

/// How long the network may keep us waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// Between two pieces of an answer.
    pub stall: Duration,
    /// For the attempts of one request together, when a server asks us to come back later.
    pub retry: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { connect: Duration::from_secs(10), stall: Duration::from_secs(60), retry: Duration::from_secs(120) }
    }
}
