//! What a run came to: for people, for `status.json` and for the exit code.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RUN_DIR;
use crate::exit::Exit;
use crate::host::root::Ownership;
use crate::host::{Host, RootError};
use crate::plan::{ResourceId, Stage};

/// Where the last report is, for everybody to read: it has no secrets.
pub const STATUS_PATH: &str = "/run/nodeagent/status.json";

/// Version of the format.
pub const SCHEMA: u32 = 1;

/// How a resource stands after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceState {
    /// As it should be, and it was before.
    Converged,
    /// Changed by this run, and verified.
    Changed,
    /// To be changed; only looked at, or its turn has not come.
    Pending,
    /// Different, and the policy is to say so.
    Drifted,
    /// Fine as far as it goes; somebody else has the next step.
    Waiting,
    /// Left for the first boot.
    Deferred,
    /// Done, but it takes a reboot.
    NeedsReboot,
    /// Somebody else changed it on purpose.
    Conflict,
    /// Something stands in the way.
    Blocked,
    /// Not tried, because something that it needs is not right.
    Skipped,
    /// It failed; its own steps were undone.
    Failed,
    /// Changed and taken back with the whole transaction.
    Undone,
}

impl ResourceState {
    /// The word that people and scripts see.
    pub fn word(self) -> &'static str {
        match self {
            ResourceState::Converged => "converged",
            ResourceState::Changed => "changed",
            ResourceState::Pending => "pending",
            ResourceState::Drifted => "drifted",
            ResourceState::Waiting => "waiting",
            ResourceState::Deferred => "deferred",
            ResourceState::NeedsReboot => "needs-reboot",
            ResourceState::Conflict => "conflict",
            ResourceState::Blocked => "blocked",
            ResourceState::Skipped => "skipped",
            ResourceState::Failed => "failed",
            ResourceState::Undone => "undone",
        }
    }

    /// True when a person should look.
    pub fn is_trouble(self) -> bool {
        matches!(self, ResourceState::Blocked | ResourceState::Skipped | ResourceState::Failed | ResourceState::Undone)
    }
}

/// One resource of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceReport {
    /// Which.
    pub id: ResourceId,
    /// How it stands.
    pub state: ResourceState,
    /// What was done, or why not, in a line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Time spent on it.
    pub duration_us: u64,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Looking at the host.
    Observe,
    /// Changing it.
    Apply,
    /// Looking again.
    Verify,
    /// Taking back.
    Undo,
    /// Over.
    Done,
}

impl Phase {
    /// The word that people and scripts see.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Observe => "observe",
            Phase::Apply => "apply",
            Phase::Verify => "verify",
            Phase::Undo => "undo",
            Phase::Done => "done",
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Version of the format.
    pub schema: u32,
    /// The agent that wrote it.
    pub agent_version: String,
    /// apply, reconcile, bake, rollback.
    pub command: String,
    /// Which resources took part.
    pub stage: Stage,
    /// How far it is.
    pub phase: Phase,
    /// Whether the first boot is done, on this very system.
    pub first_boot_done: bool,
    /// The transaction, if anything was changed.
    pub transaction: Option<String>,
    /// Why the whole was taken back, when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone_because: Option<String>,
    /// When it started.
    pub started: String,
    /// When it ended.
    pub finished: Option<String>,
    /// From start to end.
    pub duration_us: u64,
    /// The resources, in the order of execution.
    pub resources: Vec<ResourceReport>,
    /// Things that a person should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The exit code, once it is over.
    pub exit_code: Option<u8>,
}

impl Report {
    /// A run that begins.
    pub fn begin(command: &str, stage: Stage, now: Timestamp) -> Report {
        Report {
            schema: SCHEMA,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            command: command.to_owned(),
            stage,
            phase: Phase::Observe,
            first_boot_done: false,
            transaction: None,
            undone_because: None,
            started: now.to_string(),
            finished: None,
            duration_us: 0,
            resources: Vec::new(),
            notes: Vec::new(),
            exit_code: None,
        }
    }

    /// How the run ended; a run that is not over has not converged.
    pub fn exit(&self) -> Exit {
        self.exit_code.map_or(Exit::Internal, Exit::from_code)
    }

    /// The entry of a resource.
    pub fn get_mut(&mut self, id: &ResourceId) -> Option<&mut ResourceReport> {
        self.resources.iter_mut().find(|entry| entry.id == *id)
    }

    /// How many resources stand so.
    pub fn count(&self, state: ResourceState) -> usize {
        self.resources.iter().filter(|entry| entry.state == state).count()
    }

    /// The run in a line.
    pub fn summary(&self) -> String {
        let total = self.resources.len();
        let troubled: Vec<_> = self.resources.iter().filter(|entry| entry.state.is_trouble()).collect();
        let changed = self.count(ResourceState::Changed);
        match (troubled.as_slice(), changed) {
            ([], 0) => format!("{total} resources, nothing changed"),
            ([], _) => format!("{total} resources, {changed} changed"),
            ([first, ..], _) => {
                format!("{total} resources, {changed} changed, {} in trouble: {}", troubled.len(), first.id)
            }
        }
    }

    /// Writes it for everybody to read. A tree that does not run has no `/run`: nothing is written there.
    pub fn publish(&self, host: &Host) -> Result<(), RootError> {
        if host.is_offline() {
            return Ok(());
        }
        let owner = Ownership { mode: 0o755, uid: 0, gid: 0 };
        if !host.root.exists(RUN_DIR)? {
            host.root.make_directory(RUN_DIR, owner)?;
        }
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        host.root.write(STATUS_PATH, &json, Ownership { mode: 0o644, ..owner })
    }
}
