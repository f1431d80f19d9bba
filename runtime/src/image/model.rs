//! What the rest of the daemon sees of an image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::content::Digest;

/// An image on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:<digest of the config>`, of an artifact that of the manifest; the one identity used everywhere.
    pub id: String,
    /// `name:tag`, fully qualified; empty for an image that was pulled by digest only.
    pub tags: Vec<String>,
    /// `name@sha256:…`: the digest of what the registry gave for a reference, manifest or index.
    pub digests: Vec<String>,
    /// Compressed layers plus config, in bytes.
    pub size: u64,
    /// Defaults for containers.
    pub config: ImageConfig,
    /// Snapshots from the bottom layer to the top.
    pub chain_ids: Vec<Digest>,
    /// When the image was built (RFC 3339), as its config says.
    pub created: Option<String>,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// What kind of artifact this is: something other than a container image, files to be mounted and not to be run.
    pub artifact: Option<String>,
}

/// Defaults for containers of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `user`, `uid`, `user:group` and so on; empty means root.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Goes before the arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Empty means `/`.
    pub working_dir: String,
    /// Name or number.
    pub stop_signal: Option<String>,
    /// Paths that the image wants to be volumes.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `80/tcp` and the like.
    pub exposed: Vec<String>,
}

/// The parts of a container's root file system, ready for an overlay mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Read-only layers, topmost first; never empty.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// overlayfs' work directory.
    pub work: PathBuf,
    /// What holds `upper` and `work`.
    pub container_dir: PathBuf,
}

/// Space used by images or by containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// A directory on the file system in question.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Files and directories.
    pub inodes_used: u64,
}
