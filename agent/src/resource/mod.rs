//! What a node must look like, one kind per file.
//!
//! Every kind has the same parts in the same order: what is desired, what is observed, `plan()` (pure: both in, an [`Outcome`]
//! out) and the [`Resource`] that ties them to a host. Applying is not here: a plan is a list of actions, and the engine
//! carries out the actions of all kinds alike.

pub mod block;
pub mod cluster;
pub mod file;
pub mod host;
pub mod init;
pub mod join;
pub mod kernel_extra;
pub mod kernel_module;
pub mod kubelet;
pub mod membership;
pub mod owned_file;
pub mod package;
mod registry;
pub mod repo;
pub mod runtime;
pub mod selinux;
pub mod selinux_boolean;
pub mod selinux_labels;
pub mod swap;
pub mod sysctl;
pub mod unit;
pub mod update;
pub mod version_lock;

use std::collections::BTreeSet;

use async_trait::async_trait;

pub use registry::registry;

use crate::host::command::CommandError;
use crate::host::dnf::PackageQuery;
use crate::host::firewall::FirewallError;
use crate::host::kernel::KernelError;
use crate::host::systemd::SystemdError;
use crate::host::{Host, Platform, RootError};
use crate::plan::{Outcome, Reason, ResourceId, Stage};

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
    /// firewalld.
    #[error("look at the firewall")]
    Firewall(#[from] FirewallError),
    /// What a program says.
    #[error("look at packages")]
    Command(#[from] CommandError),
}

/// Why there is no plan for a resource.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// It could not be looked at. Which resource it is stands beside it in every report.
    #[error(transparent)]
    Observe(Box<ObserveError>),
    /// A setting that only turns out to be wrong when it meets the platform or another setting.
    #[error("{key}: {problem}")]
    Setting {
        /// Name of the setting.
        key: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
}

impl<E: Into<ObserveError>> From<E> for ResourceError {
    fn from(error: E) -> ResourceError {
        ResourceError::Observe(Box::new(error.into()))
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
    /// What is installed of all that [`Resource::packages`] name.
    pub packages: &'a PackageQuery,
}

impl PlanContext<'_> {
    /// What was applied before, compared with what is wanted now.
    pub fn past(&self, desired: &serde_json::Value) -> Past {
        if self.last_applied == Some(desired) { Past::AsDesired } else { Past::Unknown }
    }
}

/// What was applied before, compared with what is wanted now. Only asked when the host differs from what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// Never applied, or the config has changed since.
    Unknown,
    /// The same was applied before: whoever changed the host, it was not us.
    AsDesired,
}

impl Past {
    /// Why a change is needed.
    pub fn reason(&self, missing: bool) -> Reason {
        match self {
            Past::AsDesired => Reason::Drifted { last: None },
            Past::Unknown if missing => Reason::Missing,
            Past::Unknown => Reason::Different,
        }
    }

    /// As [`Past::reason`], of a value that was there.
    pub fn reason_of_value(&self, missing: bool, last: &str) -> Reason {
        match self.reason(missing) {
            Reason::Drifted { .. } => Reason::Drifted { last: Some(last.to_owned()) },
            other => other,
        }
    }
}

/// SHA-256 in hex, for state that must not hold the text itself.
fn digest(text: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One thing that a node must have.
#[async_trait]
pub trait Resource: Send + Sync {
    /// Its name, which is stable: reports, state and overrides use it.
    fn id(&self) -> &ResourceId;

    /// What must be right before it can be; nothing unless it says so. Ids that this node does not have are ignored.
    fn needs(&self) -> Vec<ResourceId> {
        Vec::new()
    }

    /// Packages of which it wants to know whether they are installed: all resources' are asked for at once.
    fn packages(&self) -> Vec<String> {
        Vec::new()
    }

    /// The first stage of the boot that may do it; most things wait for the network and dnf.
    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    /// Looks at the host, changes nothing, and says what has to be done.
    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError>;

    /// What it does, which files it owns, how to look by hand.
    fn explain(&self) -> String;

    /// Units that are known to change the same thing, for the case that somebody does.
    fn rivals(&self) -> &'static [&'static str] {
        &[]
    }

    /// True when it cannot be done to a tree that does not run; it is then left for the first boot.
    fn live_only(&self) -> bool {
        false
    }

    /// False when looking again cannot tell whether it was done: its actions say so themselves.
    fn shows_its_effect(&self) -> bool {
        true
    }

    /// True when the config does not want it any more: after this run it is forgotten.
    fn is_leftover(&self) -> bool {
        false
    }

    /// What the engine keeps after a successful apply and hands back as `last_applied`.
    fn applied(&self) -> serde_json::Value;
}
