//! What can go wrong with a container.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cgroup::CgroupError;
use crate::image::ImageError;
use crate::sandbox::{PodError, ShimError};
use crate::state::StateError;

use super::Phase;
use super::spec::SpecError;

/// What can go wrong with a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container.
    #[error("container {id} is not known")]
    NotFound {
        /// As it was asked for.
        id: String,
    },
    /// Not in this state.
    #[error("container {id} is {phase:?}, which does not allow to {action} it")]
    WrongPhase {
        /// The container.
        id: String,
        /// Where it is in its life.
        phase: Phase,
        /// What was asked.
        action: &'static str,
    },
    /// The configuration cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Its image is not here.
    #[error("image {image} is not here")]
    NoImage {
        /// As it was asked for.
        image: String,
    },
    /// Its pod.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// No random numbers.
    #[error("cannot make an identifier")]
    Id(#[source] io::Error),
    /// What it asks for cannot be given.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The runtime that made it.
    #[error("runtime handler of container {id}")]
    Runtime {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: crate::handler::CommandError,
    },
    /// A program that one of its devices wants to be run.
    #[error("{stage} hook of container {id}")]
    Hook {
        /// The container.
        id: String,
        /// When.
        stage: &'static str,
        /// Why.
        #[source]
        source: crate::handler::CommandError,
    },
    /// A supervisor from before an update.
    #[error("the supervisor of container {id}'s pod is older than this daemon and knows no hooks: make the pod anew")]
    NoHooks {
        /// The container.
        id: String,
    },
    /// Its root file system.
    #[error("root file system of container {id}")]
    Rootfs {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: Box<ImageError>,
    },
    /// A directory of it.
    #[error("cannot make {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its cgroup.
    #[error("cgroup of container {id}")]
    Cgroup {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: CgroupError,
    },
    /// Its record.
    #[error("record of container {id}")]
    Record {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: StateError,
    },
    /// Its pod's supervisor.
    #[error("cannot {action} container {id}")]
    Shim {
        /// What was asked of it.
        action: &'static str,
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: ShimError,
    },
    /// A command ran out of time.
    #[error("command in container {id} did not end within {seconds} s and was killed")]
    ExecTimeout {
        /// The container.
        id: String,
        /// Its time.
        seconds: i64,
    },
    /// It does not die.
    #[error("container {id} survives SIGKILL")]
    Unkillable {
        /// The container.
        id: String,
    },
    /// What several callers waited for.
    #[error(transparent)]
    Shared(#[from] Arc<ContainerError>),
    /// The daemon is going down.
    #[error("the daemon is stopping")]
    Stopping,
}
