//! What pods are made with. Each part can be put in by a test.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{NetworkFailure, SandboxRecord, ShimLauncher};
use crate::cgroup::Cgroups;
use crate::container::ImageSource;
use crate::container::spec::HostFacts;
use crate::events::Events;
use crate::network::netns::NetnsDir;
use crate::state::Store;

/// Who connects pods.
#[async_trait::async_trait]
pub trait PodNetworks: Send + Sync {
    /// Connects the pod's network namespace; its addresses, the primary one first.
    async fn attach(&self, pod: &SandboxRecord) -> Result<Vec<IpAddr>, NetworkFailure>;

    /// Disconnects it. Again and again is fine, and so is a namespace that is gone.
    async fn detach(&self, pod: &SandboxRecord) -> Result<(), NetworkFailure>;

    /// Removes what pods left that are not in `known`.
    async fn sweep(&self, known: &[String]) -> Result<(), NetworkFailure>;
}

/// Where files of running pods are.
#[derive(Debug, Clone)]
pub struct Paths {
    /// A directory per pod: resolv.conf, hostname, shm.
    pub pods: PathBuf,
    /// The shims' sockets.
    pub shims: PathBuf,
    /// Network namespaces.
    pub netns: NetnsDir,
}

impl Paths {
    /// Below the daemon's state directory.
    pub fn new(state: &Path, netns: &Path) -> Self {
        Paths { pods: state.join("pods"), shims: state.join("shims"), netns: NetnsDir::new(netns) }
    }

    /// Files of that pod.
    pub fn pod(&self, id: &str) -> PathBuf {
        self.pods.join(id)
    }

    /// Socket of that pod's shim.
    pub fn socket(&self, id: &str) -> PathBuf {
        self.shims.join(format!("{id}.sock"))
    }
}

/// What pods are made with.
pub struct Environment {
    /// Where their files are.
    pub paths: Paths,
    /// Where their records are.
    pub store: Store,
    /// The host's cgroups.
    pub cgroups: Cgroups,
    /// Who starts supervisors.
    pub shims: Box<dyn ShimLauncher>,
    /// Who connects them.
    pub network: Box<dyn PodNetworks>,
    /// Where their containers' files come from.
    pub images: Box<dyn ImageSource>,
    /// Who is told what happens.
    pub events: Events,
    /// What containers are given by default, and what the host can give.
    pub host: HostFacts,
}

/// Shared by all pods.
pub type Shared = Arc<Environment>;
