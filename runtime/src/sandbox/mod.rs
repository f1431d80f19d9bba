//! Pods: one task each, which owns the state of the pod and of its containers.
//!
//! [`Pods`] knows them all. A call finds the pod's [`PodHandle`], looks at its latest [`PodView`] or sends it a
//! command. [`setup`] makes a pod, [`task`] is its life, [`teardown`] its end, [`recover`] what a new daemon does with
//! the pods of its predecessor. [`shim`] is the client of the pod's supervisor.

mod cni;
mod command;
mod environment;
mod error;
mod files;
mod flight;
mod pods;
mod record;
mod recover;
mod resize;
mod setup;
mod shim;
mod task;
mod teardown;
mod user_namespace;
mod view;

pub use command::PodHandle;
pub use environment::{Environment, Paths, PodNetworks, Shared};
pub use error::{NetworkFailure, PodError};
pub use files::hostname;
pub use flight::{Abandoned, Flights};
pub use pods::Pods;
pub use record::{Key, SandboxRecord, SandboxState};
pub use shim::{Executed, MemfdLauncher, Shim, ShimError, ShimLauncher, Started};
pub use user_namespace::id_maps;
pub use view::{ContainerView, PodView};

#[cfg(test)]
mod tests;
