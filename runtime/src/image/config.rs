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
    /// `registries.conf` of containers tools, with its drop-in directory; entries of `registries` win over it.
    pub registries_conf: Option<PathBuf>,
    /// Directories with `<host>/hosts.toml`, used for registries that nothing above names.
    pub hosts_directories: Vec<PathBuf>,
    /// Directories with `<host>/*.crt`, `*.cert` and `*.key`.
    pub certificate_directories: Vec<PathBuf>,
    /// Files with credentials, asked in this order when a pull brings none.
    pub auth_files: Vec<PathBuf>,
    /// Who may have made an image.
    pub trust: TrustConfig,
    /// Images that the kubelet must not collect: names, in which `*` stands for anything.
    pub pinned: Vec<String>,
    /// Limits of what a single image may cost.
    pub limits: Limits,
    /// How long the network may keep us waiting.
    pub timeouts: Timeouts,
}

impl ImagesConfig {
    /// Defaults for everything but the place: the configuration that people have where they have it.
    pub fn new(root: impl Into<PathBuf>) -> ImagesConfig {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        ImagesConfig {
            registries_conf: Some(PathBuf::from("/etc/containers/registries.conf")),
            hosts_directories: paths(&["/etc/containerd/certs.d"]),
            certificate_directories: paths(&["/etc/containers/certs.d", "/etc/docker/certs.d"]),
            auth_files: paths(&[
                "/run/containers/0/auth.json",
                "/root/.config/containers/auth.json",
                "/root/.docker/config.json",
            ]),
            trust: TrustConfig {
                policy: Some(PathBuf::from("/etc/containers/policy.json")),
                registries_d: Some(PathBuf::from("/etc/containers/registries.d")),
            },
            ..ImagesConfig::isolated(root)
        }
    }

    /// Defaults that look at nothing outside `root`.
    pub fn isolated(root: impl Into<PathBuf>) -> ImagesConfig {
        ImagesConfig {
            root: root.into(),
            registries: Vec::new(),
            registries_conf: None,
            hosts_directories: Vec::new(),
            certificate_directories: Vec::new(),
            auth_files: Vec::new(),
            trust: TrustConfig::default(),
            pinned: Vec::new(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// Where policy and signatures are configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustConfig {
    /// `policy.json`; without the file, everything is accepted, as it is without a policy anywhere else.
    pub policy: Option<PathBuf>,
    /// `registries.d`: where signatures are kept.
    pub registries_d: Option<PathBuf>,
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
    /// The file that says so, for explanations; none for the daemon's own configuration.
    #[serde(skip)]
    pub defined_in: Option<PathBuf>,
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
    /// Which references it is asked for.
    #[serde(default, rename = "pull-from-mirror")]
    pub pull_from: PullFrom,
}

/// Which references a mirror is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullFrom {
    /// All.
    #[default]
    All,
    /// Those with a digest, where a mirror cannot lie.
    DigestOnly,
    /// Those without.
    TagOnly,
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
