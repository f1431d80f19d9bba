//! A run under way: what is known about each resource, and what may be done about it.

use std::collections::BTreeSet;
use std::time::Instant;

use super::engine::Engine;
use super::error::EngineError;
use super::flap;
use super::notifications::Notifications;
use super::options::Options;
use super::planned::{Finding, Plan, Planned};
use super::report::{Phase, Report, ResourceReport, ResourceState};
use super::state::{Identity, State};
use crate::config::settings::DriftPolicy;
use crate::plan::{Change, Outcome, ResourceId};
use crate::telemetry::{chain, event};

/// What is known in the course of a run.
pub(super) struct Run<'e, 'h> {
    pub(super) engine: &'e Engine<'h>,
    pub(super) options: &'e Options,
    pub(super) state: State,
    pub(super) report: Report,
    /// What was really changed, verified or about to be.
    pub(super) changed: BTreeSet<ResourceId>,
    pub(super) notifications: Notifications,
    /// Changes that can only be verified after what follows them.
    pub(super) late_changes: Vec<Change>,
    pub(super) undo_failed: bool,
    /// What is wanted was taken back because nobody confirmed it: nothing is changed.
    pub(super) held: bool,
    pub(super) began: Instant,
}

impl Run<'_, '_> {
    /// State that was written on another system is about a copied disk: what is applied is on the disk still.
    pub(super) fn take_identity(&mut self, identity: Identity) {
        if self.state.identity.differs_from(&identity) {
            log::warn!(MESSAGE_ID = event::CLONE_FOUND; "state is from another system: this one is a copy of it");
            self.report.notes.push("this system is a copy of another one: its state was taken over".to_owned());
        }
        let known = Identity {
            machine_id: identity.machine_id.or(self.state.identity.machine_id.take()),
            instance_id: identity.instance_id.or(self.state.identity.instance_id.take()),
        };
        self.state.identity = known;
    }

    /// Enters what was found into the report, and settles what may be done about it.
    pub(super) fn take_plan(&mut self, plan: &Plan) {
        for planned in &plan.resources {
            let (state, detail, fix) = match &planned.finding {
                Finding::Failed { error } => (ResourceState::Failed, error.clone(), None),
                Finding::Deferred { reason } => (ResourceState::Deferred, reason.clone(), None),
                Finding::Observed(outcome) => self.judge(&planned.id, outcome),
            };
            let id = planned.id.clone();
            self.report.resources.push(ResourceReport { id, state, detail, fix, duration_us: 0 });
        }
    }

    /// Where a repair was given up, who else is at it.
    pub(super) async fn name_rivals(&mut self, plan: &Plan) {
        for change in plan.changes() {
            if !matches!(self.state_of(&change.id), Some(ResourceState::Blocked)) {
                continue;
            }
            let fix = match self.engine.rivals_of(change).await {
                Ok(Some(who)) => format!("see whether {who} changes it back; `agent apply` does not count"),
                Ok(None) => continue,
                Err(error) => {
                    log::warn!(NODEAGENT_RESOURCE = change.id.as_str(); "look for who changes it: {}", chain(&error));
                    continue;
                }
            };
            if let Some(entry) = self.report.get_mut(&change.id) {
                entry.fix = Some(fix);
            }
        }
    }

    pub(super) fn judge(&self, id: &ResourceId, outcome: &Outcome) -> (ResourceState, String, Option<String>) {
        match outcome {
            Outcome::Converged { note } => (ResourceState::Converged, note.clone().unwrap_or_default(), None),
            Outcome::Waiting { reason } => (ResourceState::Waiting, reason.clone(), None),
            Outcome::Conflict { reason } => {
                log::warn!(MESSAGE_ID = event::CONFLICT, NODEAGENT_RESOURCE = id.as_str(); "{id}: {reason}");
                (ResourceState::Conflict, reason.clone(), None)
            }
            Outcome::Blocked { reason, fix } => {
                log::error!(MESSAGE_ID = event::RESOURCE_BLOCKED, NODEAGENT_RESOURCE = id.as_str(); "{id}: {reason}");
                (ResourceState::Blocked, reason.clone(), fix.clone())
            }
            Outcome::Change(change) if self.held => (ResourceState::Drifted, change.summary.clone(), None),
            Outcome::Change(change) if self.options.obey_policy => self.judge_drift(id, change),
            Outcome::Change(change) => (ResourceState::Pending, change.summary.clone(), None),
        }
    }

    fn judge_drift(&self, id: &ResourceId, change: &Change) -> (ResourceState, String, Option<String>) {
        let policy = self.engine.policy;
        if policy.policy_of(id) == DriftPolicy::Report {
            log::warn!(
                MESSAGE_ID = event::DRIFT_FOUND, NODEAGENT_RESOURCE = id.as_str();
                "{id}: would {}", change.summary
            );
            return (ResourceState::Drifted, change.summary.clone(), None);
        }
        let repairs = flap::recent_repairs(&self.state, id, self.engine.host.clock.now());
        if repairs >= policy.max_repairs_per_hour as usize {
            let reason = format!("repaired {repairs} times within an hour and different again: left alone");
            log::error!(MESSAGE_ID = event::FLAPPING, NODEAGENT_RESOURCE = id.as_str(); "{id}: {reason}");
            let fix = "find what else changes it, or run `agent apply`, which does not count".to_owned();
            return (ResourceState::Blocked, reason, Some(fix));
        }
        (ResourceState::Pending, change.summary.clone(), None)
    }

    pub(super) fn state_of(&self, id: &ResourceId) -> Option<ResourceState> {
        self.report.resources.iter().find(|entry| entry.id == *id).map(|entry| entry.state)
    }

    pub(super) fn set(&mut self, id: &ResourceId, state: ResourceState, detail: impl Into<String>) {
        if let Some(entry) = self.report.get_mut(id) {
            entry.state = state;
            entry.detail = detail.into();
        }
    }

    /// True when it was to be changed and something that it needs is in the way.
    pub(super) fn skip_if_needs_fail(&mut self, planned: &Planned) -> bool {
        if self.state_of(&planned.id) != Some(ResourceState::Pending) {
            return false;
        }
        let in_the_way =
            |state| matches!(state, Some(ResourceState::Failed | ResourceState::Blocked | ResourceState::Skipped));
        let Some(obstacle) = planned.needs.iter().find(|need| in_the_way(self.state_of(need))) else { return false };
        let detail = format!("not tried: it needs {obstacle}");
        self.set(&planned.id, ResourceState::Skipped, detail);
        true
    }

    pub(super) fn phase(&mut self, phase: Phase) -> Result<(), EngineError> {
        self.report.phase = phase;
        self.publish()
    }

    pub(super) fn publish(&mut self) -> Result<(), EngineError> {
        self.report.duration_us = microseconds(self.began);
        self.report.publish(self.engine.host).map_err(EngineError::Publish)
    }
}

pub(super) fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
