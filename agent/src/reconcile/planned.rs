//! The plan of a whole run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::plan::{Change, Outcome, ResourceId, Stage};

/// What was found about one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "finding", rename_all = "kebab-case")]
pub enum Finding {
    /// The resource's own answer.
    Observed(Outcome),
    /// It could not be looked at.
    Failed {
        /// The whole chain of causes.
        error: String,
    },
    /// It cannot be done here and now; something else will.
    Deferred {
        /// What will.
        reason: String,
    },
}

/// One resource of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Planned {
    /// Which.
    pub id: ResourceId,
    /// When in the boot.
    pub stage: Stage,
    /// What it needs directly.
    pub needs: Vec<ResourceId>,
    /// What was found.
    pub finding: Finding,
}

impl Planned {
    /// The change, where there is one.
    pub fn change(&self) -> Option<&Change> {
        match &self.finding {
            Finding::Observed(outcome) => outcome.change(),
            Finding::Failed { .. } | Finding::Deferred { .. } => None,
        }
    }

    /// Whether somebody else wants it otherwise.
    pub fn is_conflict(&self) -> bool {
        matches!(self.finding, Finding::Observed(Outcome::Conflict { .. }))
    }

    /// Whether what needs this resource may go on.
    pub fn is_obstacle(&self) -> bool {
        matches!(self.finding, Finding::Failed { .. } | Finding::Observed(Outcome::Blocked { .. }))
    }
}

/// What a run will do. Two plans of the same host and config are equal, whatever the order of the config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// In the order of execution.
    pub resources: Vec<Planned>,
}

impl Plan {
    /// The changes, in the order of execution.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.resources.iter().filter_map(Planned::change)
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes().next().is_none()
    }

    /// What was planned for this resource.
    pub fn get(&self, id: &ResourceId) -> Option<&Planned> {
        self.resources.iter().find(|planned| planned.id == *id)
    }

    /// Names what would be executed: equal for plans that do the same.
    pub fn hash(&self) -> String {
        let mut changes: Vec<_> = self.changes().map(|change| (&change.id, &change.actions, &change.notify)).collect();
        changes.sort_by_key(|(id, _, _)| *id);
        digest(&changes)
    }
}

/// SHA-256 over the JSON of a value whose serialisation is deterministic and cannot fail (no maps with odd keys).
pub fn digest(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).unwrap_or_default();
    Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect()
}
