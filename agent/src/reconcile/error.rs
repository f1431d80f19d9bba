//! Why a run could not be made.

use super::confirm::ConfirmError;
use super::graph::GraphError;
use super::journal::JournalError;
use super::lock::LockError;
use super::origin::OriginError;
use super::state::StateError;
use super::transaction::TransactionError;
use crate::host::RootError;
use crate::plan::ResourceId;

/// Why a run could not be made at all. What goes wrong with a resource is in the report instead.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The resources have no order.
    #[error("order resources")]
    Graph(#[from] GraphError),
    /// Somebody else is at it, or the lock cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// State.
    #[error(transparent)]
    State(#[from] StateError),
    /// Changes on probation.
    #[error(transparent)]
    Confirm(#[from] ConfirmError),
    /// What was there before the agent.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// A journal cannot be read.
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Who this system is.
    #[error("read the system's identity")]
    Identity(#[source] RootError),
    /// The report for others to read.
    #[error("publish status")]
    Publish(#[source] RootError),
    /// Earlier changes can no longer be told apart from this one's.
    #[error("transaction {id} is not the last one: {later} came after it; roll that one back first")]
    NotTheLast {
        /// As asked for.
        id: String,
        /// What came later.
        later: String,
    },
    /// Only a difference can be adopted.
    #[error("{id} cannot be adopted: {why}")]
    NotAdopted {
        /// Which.
        id: ResourceId,
        /// What it is instead.
        why: String,
    },
    /// There is nothing to roll back.
    #[error("there is no transaction to roll back")]
    NothingToRollBack,
}
