//! What a node must look like, one kind per file.
//!
//! Every kind has the same parts in the same order: what is desired, what is observed, `plan()` (pure: both in, an [`Outcome`]
//! out) and the [`Resource`] that ties them to a host. Applying is not here: a plan is a list of actions, and the engine
//! carries out the actions of all kinds alike.

use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::config::settings::Settings;
use crate::host::command::CommandError;
use crate::host::kernel::KernelError;
use crate::host::systemd::SystemdError;
use crate::host::{Host, Platform, RootError};
use crate::plan::{Outcome, ResourceId, Stage};

/// Why something on the host could not be looked at. A finding about the host is an [`Outcome`], not an error.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// A file.
    #[error("look at files")]
    File(#[from] RootError),
    /// The kernel.
    #[error("look at the kernel")]
    Kernel(#[from] KernelError),
    /// A unit.
    #[error("look at units")]
    Systemd(#[from] SystemdError),
    /// What a program says.
    #[error("look at packages")]
    Command(#[from] CommandError),
}

/// Why there is no plan for a resource.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// It could not be looked at.
    #[error("observe {id}")]
    Observe {
        /// Which resource.
        id: ResourceId,
        /// Why.
        #[source]
        source: Box<ObserveError>,
    },
    /// A setting that only turns out to be wrong when it meets the platform or another setting.
    #[error("{key}: {problem}")]
    Setting {
        /// Name of the setting.
        key: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
}

impl ResourceError {
    #[allow(dead_code)]
    fn observe(id: &ResourceId, source: ObserveError) -> ResourceError {
        ResourceError::Observe { id: id.clone(), source: Box::new(source) }
    }
}

/// What a plan may take into account beside the host.
pub struct PlanContext<'a> {
    /// What the engine recorded when this resource was last applied.
    pub last_applied: Option<&'a serde_json::Value>,
    /// Dependencies that change in this run: plan as if they had.
    pub pending: &'a BTreeSet<ResourceId>,
    /// The system.
    pub platform: &'a Platform,
}

/// One thing that a node must have.
#[async_trait]
pub trait Resource: Send + Sync {
    /// Its name, which is stable: reports, state and overrides use it.
    fn id(&self) -> &ResourceId;

    /// What must be right before it can be. Ids that this node does not have are ignored.
    fn needs(&self) -> Vec<ResourceId>;

    /// The first stage of the boot that may do it.
    fn stage(&self) -> Stage;

    /// Looks at the host, changes nothing, and says what has to be done.
    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError>;

    /// What it does, which files it owns, how to look by hand.
    fn explain(&self) -> String;

    /// True when it cannot be done to a tree that does not run; it is then left for the first boot.
    fn live_only(&self) -> bool {
        false
    }

    /// What the engine keeps after a successful apply and hands back as `last_applied`.
    fn applied(&self) -> serde_json::Value;
}

/// Every resource of a node with these settings, in an order in which needs come first where it matters to a reader; the
/// engine orders by [`Resource::needs`].
pub fn registry(_settings: &Settings, _platform: &Platform) -> Result<Vec<Box<dyn Resource>>, ResourceError> {
    Ok(Vec::new())
}
