//! A fix that no resource of the config does, as a resource of one run: journaled, verified and undone like any other.

use async_trait::async_trait;
use serde_json::Value;

use crate::host::Host;
use crate::plan::{Action, Change, Outcome, Reason, ResourceId, Stage};
use crate::resource::{PlanContext, Resource, ResourceError};

/// The kind of such resources; nothing is remembered of them but their journal.
pub const KIND: &str = "doctor";

/// One fix.
pub struct FixResource {
    id: ResourceId,
    message: String,
    actions: Vec<Action>,
}

impl FixResource {
    /// For the check of this name, with what it found.
    pub fn new(check: &str, message: &str, actions: Vec<Action>) -> FixResource {
        FixResource { id: ResourceId::new(KIND, check), message: message.to_owned(), actions }
    }
}

#[async_trait]
impl Resource for FixResource {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn stage(&self) -> Stage {
        Stage::Activate
    }

    async fn plan(&self, _host: &Host, _context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        Ok(Outcome::Change(Change {
            id: self.id.clone(),
            reason: Reason::Different,
            summary: format!("fix: {}", self.message),
            diffs: Vec::new(),
            actions: self.actions.clone(),
            notify: Vec::new(),
            reboot: None,
        }))
    }

    fn explain(&self) -> String {
        format!("What `agent doctor` found: {}", self.message)
    }

    fn live_only(&self) -> bool {
        true
    }

    // the doctor looks again itself
    fn is_leftover(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        Value::Null
    }
}
