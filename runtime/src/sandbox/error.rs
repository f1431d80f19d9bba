//! What can go wrong with a pod.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::ShimError;
use crate::cgroup::CgroupError;
use crate::handler::{CommandError, SandboxContainerError};
use crate::network::netns::NetnsError;
use crate::selinux::RelabelError;
use crate::state::StateError;

/// Failure of the network, whoever provides it.
pub type NetworkFailure = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong with a pod.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No such pod.
    #[error("sandbox {id} is not known")]
    NotFound {
        /// As it was asked for.
        id: String,
    },
    /// The configuration cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A handler that is not configured.
    #[error("runtime handler `{name}` is not configured; {known}, besides the built-in one without a name")]
    Handler {
        /// As it was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The label of its files.
    #[error("files of sandbox {id}")]
    Label {
        /// The pod.
        id: String,
        /// Why.
        #[source]
        source: RelabelError,
    },
    /// The pod's first container, which another runtime is to make.
    #[error("cannot start the first container of sandbox {id} by runtime handler {name}")]
    First {
        /// The pod.
        id: String,
        /// The handler.
        name: String,
        /// Why.
        #[source]
        source: SandboxContainerError,
    },
    /// What another runtime knows of it.
    #[error("runtime handler of sandbox {id}")]
    Runtime {
        /// The pod.
        id: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// It takes no containers any more.
    #[error("sandbox {id} is not ready")]
    NotReady {
        /// The pod.
        id: String,
    },
    /// Its limits are just being changed.
    #[error("sandbox {id} is being resized by another call")]
    Busy {
        /// The pod.
        id: String,
    },
    /// No random numbers.
    #[error("cannot make an identifier")]
    Id(#[source] io::Error),
    /// Its record.
    #[error("record of sandbox {id}")]
    Record {
        /// The pod.
        id: String,
        /// Why.
        #[source]
        source: StateError,
    },
    /// Its files.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its cgroup.
    #[error("cgroup of sandbox {id}")]
    Cgroup {
        /// The pod.
        id: String,
        /// Why.
        #[source]
        source: CgroupError,
    },
    /// Its supervisor.
    #[error("cannot {action} for sandbox {id}")]
    Shim {
        /// What was asked of it.
        action: &'static str,
        /// The pod.
        id: String,
        /// Why.
        #[source]
        source: ShimError,
    },
    /// Its network.
    #[error("cannot {action} the network of sandbox {id}")]
    Network {
        /// `set up` or `take down`.
        action: &'static str,
        /// The pod.
        id: String,
        /// Why.
        #[source]
        source: NetworkFailure,
    },
    /// The name of its network namespace.
    #[error("network namespace of sandbox {id}")]
    Netns {
        /// The pod.
        id: String,
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// A container of it could not be removed.
    #[error("container {container} of sandbox {id}")]
    Container {
        /// The container.
        container: String,
        /// The pod.
        id: String,
        /// Why.
        #[source]
        source: Box<crate::container::ContainerError>,
    },
    /// What several callers waited for.
    #[error(transparent)]
    Shared(#[from] Arc<PodError>),
    /// The daemon is going down.
    #[error("the daemon is stopping")]
    Stopping,
}
