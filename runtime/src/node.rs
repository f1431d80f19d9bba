//! Everything the calls work on, built from the configuration.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::cgroup::{CgroupError, Cgroups, Delegated};
use crate::config::Config;
use crate::container::capabilities::bounding_of;
use crate::container::rlimits;
use crate::container::spec::HostFacts;
use crate::events::Events;
use crate::handler::Handlers;
use crate::image::{ImageError, Images, ImagesConfig, TrustConfig};
use crate::kernel::Kernel;
use crate::network::{Network, NetworkConfig};
use crate::sandbox::{Environment, MemfdLauncher, Paths, Pods};
use crate::seccomp::Filters;
use crate::selinux::Selinux;
use crate::server::ServerError;
use crate::state::{StateError, Store};
use crate::telemetry::chain;

/// Everything the calls work on.
pub struct Node {
    /// As read at the start.
    pub config: Config,
    /// The host's cgroups.
    pub cgroups: Cgroups,
    /// The host's kernel.
    pub kernel: Kernel,
    /// Images.
    pub images: Images,
    /// The pod network.
    pub network: Network,
    /// Pods and their containers.
    pub pods: Pods,
    /// What happens to them.
    pub events: Events,
    /// Cancelled when the daemon is told to stop: streams that would never end do so then.
    pub stop: CancellationToken,
}

/// What the host has to offer before anything can start.
#[derive(Debug, thiserror::Error)]
pub enum Precondition {
    /// A directory cannot be made.
    #[error("cannot make {path}")]
    Directory {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `/proc` is not what it should be.
    #[error("cannot read {path}")]
    Proc {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No cgroups.
    #[error("cgroups")]
    Cgroups(#[source] CgroupError),
    /// No socket.
    #[error("socket")]
    Socket(#[source] ServerError),
    /// No records.
    #[error("records")]
    Records(#[source] StateError),
    /// No images.
    #[error("images")]
    Images(#[source] ImageError),
    /// No signals.
    #[error("cannot listen for the ends of supervisors")]
    Signals(#[source] io::Error),
}

impl Node {
    /// Builds it. Pods of an earlier daemon are met by [`Pods::recover`] afterwards.
    pub async fn build(config: Config) -> Result<Node, Precondition> {
        let paths = Paths::new(&config.state, &config.netns_dir);
        // what is in there is nobody's business: layers with set-user-ID programs, sockets of shims
        for path in [&config.root, &paths.pods, &paths.shims] {
            closed_directory(path)?;
        }
        let cgroups = cgroups(&config)?;
        let own = read_proc("/proc/self/cgroup")?;
        let invocation = std::env::var("INVOCATION_ID").ok();
        let delegated =
            Delegated::enter(cgroups.layout(), &own, invocation.as_deref()).map_err(Precondition::Cgroups)?;
        let kernel = Kernel::from_release(&read_proc("/proc/sys/kernel/osrelease")?);
        let boot = read_proc("/proc/sys/kernel/random/boot_id")?;
        let store = Store::open(&config.root, &boot).map_err(Precondition::Records)?;
        let selinux = Selinux::detect();
        let images_config = images_config(&config);
        if let Some(selinux) = &selinux {
            share_layers(selinux, &images_config.root);
        }
        let images = Images::open(images_config).await.map_err(Precondition::Images)?;
        let network = Network::new(network_config(&config));
        let events = Events::default();
        let systemd = cgroups.made_by_systemd();
        let handlers = Handlers::probe(&config.runtimes, &config.state, &config.shim, systemd).await;
        let environment = Environment {
            paths,
            store,
            cgroups: cgroups.clone(),
            shims: Box::new(MemfdLauncher::new(&config.shim, delegated).map_err(Precondition::Signals)?),
            network: Box::new(network.clone()),
            images: Box::new(images.clone()),
            events: events.clone(),
            host: host_facts(&config, kernel, handlers, selinux)?,
        };
        let pods = Pods::new(Arc::new(environment));
        Ok(Node { config, cgroups, kernel, images, network, pods, events, stop: CancellationToken::new() })
    }

    /// Whether pods can be run, else reason and message.
    pub fn runtime_ready(&self) -> Result<(), (String, String)> {
        let shim = &self.config.shim;
        let missing = |error| ("ShimMissing".to_owned(), format!("{}: {error}", shim.display()));
        fs::metadata(shim).map(drop).map_err(missing)
    }

    /// Whether pods get a network, else reason and message.
    pub fn network_ready(&self) -> Result<(), (String, String)> {
        self.network.ready().map_err(|error| ("NetworkNotReady".to_owned(), chain(&error)))
    }
}

/// Layers get their label by being made in a directory that has it. A host that refuses runs containers all the same, with what
/// its policy lets them read.
fn share_layers(selinux: &Selinux, images: &Path) {
    for name in ["tmp", "snapshots"] {
        let path = images.join(name);
        let made = fs::create_dir_all(&path).map_err(|error| chain(&error));
        if let Err(error) = made.and_then(|()| selinux.share(&path).map_err(|error| chain(&error))) {
            log::warn!(path:% = path.display(); "layers of images are not labelled: {error}");
        }
    }
}

fn closed_directory(path: &Path) -> Result<(), Precondition> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o711)))
        .map_err(|source| Precondition::Directory { path: path.display().to_string(), source })
}

fn cgroups(config: &Config) -> Result<Cgroups, Precondition> {
    let mountinfo = read_proc("/proc/self/mountinfo")?;
    // what systemd itself asks (sd_booted)
    let systemd = Path::new("/run/systemd/system").is_dir();
    Cgroups::detect(&mountinfo, config.cgroup_driver, systemd).map_err(Precondition::Cgroups)
}

/// Where the command line reaches the images of a running daemon.
pub fn image_socket(config: &Config) -> std::path::PathBuf {
    config.state.join("images.sock")
}

/// The image half of the configuration, also for the command line.
pub fn images_config(config: &Config) -> ImagesConfig {
    ImagesConfig {
        registries: config.registries.clone(),
        pinned: config.images.pinned.clone(),
        trust: TrustConfig {
            policy: Some(config.images.signature_policy.clone()),
            registries_d: Some(config.images.registries_d.clone()),
        },
        ..ImagesConfig::new(config.root.join("images"))
    }
}

fn network_config(config: &Config) -> NetworkConfig {
    NetworkConfig {
        conf_dir: config.network.conf_dir.clone(),
        plugin_dirs: config.network.plugin_dirs.clone(),
        builtin: config.network.builtin,
        cache_dir: config.root.join("cni"),
        table: table_name(&config.root),
        ..NetworkConfig::default()
    }
}

/// The usual daemon's table has the product's name; another one beside it, with a directory of its own, has its own.
fn table_name(root: &Path) -> String {
    use sha2::{Digest, Sha256};
    if root == Config::default().root {
        return "nodeagent".to_owned();
    }
    let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
    digest.iter().take(4).fold("nodeagent-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

fn host_facts(
    config: &Config,
    kernel: Kernel,
    handlers: Handlers,
    selinux: Option<Selinux>,
) -> Result<HostFacts, Precondition> {
    // checked when the configuration was read: nothing is lost here
    let limits = config.containers.rlimits.iter().filter_map(|(name, value)| rlimits::parse(name, value).ok());
    Ok(HostFacts {
        bounding: bounding_of(&read_proc("/proc/self/status")?),
        capabilities: config.containers.capabilities.clone(),
        rlimits: limits.collect(),
        pids_limit: config.containers.pids_limit,
        kernel,
        seccomp: Filters::new(kernel.version),
        cdi_dirs: config.containers.cdi_dirs.clone(),
        handlers,
        selinux,
    })
}

fn read_proc(path: &'static str) -> Result<String, Precondition> {
    fs::read_to_string(path).map_err(|source| Precondition::Proc { path, source })
}
