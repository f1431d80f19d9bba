//! The changes of a run, one after the other: done, followed up, verified; or taken back.

use std::collections::BTreeSet;
use std::time::Instant;

use super::error::EngineError;
use super::execute::{StepError, Steps};
use super::journal::{EndResult, Owner, Record};
use super::notifications::action_for;
use super::origin::Origins;
use super::planned::{Finding, Planned};
use super::report::{Phase, ResourceState};
use super::run::{Run, microseconds};
use super::transaction::Transaction;
use crate::plan::{Action, Change, Diff, Notify, Outcome, ResourceId, Stage, UnitOp};
use crate::telemetry::{chain, event};

/// Units that are ordered after the boot's own run: waiting for one of them would be waiting for ourselves.
const ORDERED_AFTER_PREPARE: [&str; 2] = ["nodeagent-runtime.service", "kubelet.service"];

impl<'h> Run<'_, 'h> {
    /// One resource whose turn has come.
    pub(super) async fn apply_one(&mut self, planned: &Planned, steps: &mut Steps<'h>) -> Result<(), EngineError> {
        if self.skip_if_needs_fail(planned) {
            return Ok(());
        }
        let began = Instant::now();
        self.engine.notifier.status(&format!("applying {}", planned.id));
        if let Some(change) = self.still_wanted(planned).await {
            self.carry_out_change(&change, steps).await?;
            self.log_change(&change, began);
        }
        if let Some(entry) = self.report.get_mut(&planned.id) {
            entry.duration_us = microseconds(began);
        }
        Ok(())
    }

    /// The change as planned, or as it looks now when something that it needs has changed in this run: then the plan
    /// was a guess.
    async fn still_wanted(&mut self, planned: &Planned) -> Option<Change> {
        if !planned.needs.iter().any(|need| self.changed.contains(need)) {
            return planned.change().cloned();
        }
        let resource = self.engine.resource(&planned.id)?;
        let now = self.engine.look(resource, Some(&self.state.resources), &BTreeSet::new()).await;
        match now.finding {
            Finding::Observed(Outcome::Change(change)) => Some(change),
            Finding::Observed(outcome) => {
                let (state, detail, fix) = self.judge(&planned.id, &outcome);
                self.set(&planned.id, state, detail);
                if let Some(entry) = self.report.get_mut(&planned.id) {
                    entry.fix = fix;
                }
                None
            }
            Finding::Failed { error } => {
                self.set(&planned.id, ResourceState::Failed, error);
                None
            }
            Finding::Deferred { reason } => {
                self.set(&planned.id, ResourceState::Deferred, reason);
                None
            }
        }
    }

    async fn carry_out_change(&mut self, change: &Change, steps: &mut Steps<'h>) -> Result<(), EngineError> {
        let id = &change.id;
        let mut notes = Vec::new();
        for action in &change.actions {
            let action = self.fit_for_boot(action.clone());
            if let Some(due) = self.notifications.due_before(&action) {
                self.notify(&due, steps).await?;
            }
            match steps.run(Owner::Resource(id.clone()), &action).await {
                Ok(note) => notes.extend(note),
                Err(StepError::Journal(error)) => return Err(error.into()),
                Err(StepError::Action(error)) => {
                    return self.fail(&BTreeSet::from([id.clone()]), &chain(&error), steps).await;
                }
            }
            self.notifications.acted(&action);
        }
        self.changed.insert(id.clone());
        if !self.engine.host.is_offline() {
            for notify in &change.notify {
                self.notifications.add(notify.clone(), Some(id));
            }
        }
        let detail = [std::slice::from_ref(&change.summary), &notes].concat().join("; ");
        let state = if change.reboot.is_some() { ResourceState::NeedsReboot } else { ResourceState::Changed };
        self.set(id, state, detail);
        // one that waits for a restart is verified after it
        if self.notifications.concerns(id) {
            self.late_changes.push(change.clone());
            return Ok(());
        }
        // nor can a job that was only enqueued show its effect
        if change.actions.iter().any(|action| self.is_only_enqueued(action)) {
            return Ok(());
        }
        self.verify(change, steps).await
    }

    /// In the boot's first half, jobs of units that are ordered after it are only enqueued.
    fn fit_for_boot(&self, action: Action) -> Action {
        match action {
            Action::Unit { unit, op, wait } => {
                let wait = wait && !(self.is_before_the_runtime() && ORDERED_AFTER_PREPARE.contains(&unit.as_str()));
                Action::Unit { unit, op, wait }
            }
            other => other,
        }
    }

    fn is_before_the_runtime(&self) -> bool {
        self.options.in_boot && self.options.stage < Stage::Activate
    }

    fn is_only_enqueued(&self, action: &Action) -> bool {
        let is_job = |op: &UnitOp| {
            matches!(op, UnitOp::Start | UnitOp::Stop | UnitOp::Restart | UnitOp::TryRestart | UnitOp::TryReload)
        };
        matches!(self.fit_for_boot(action.clone()), Action::Unit { op, wait: false, .. } if is_job(&op))
    }

    /// Looks again: prove by effect.
    async fn verify(&mut self, change: &Change, steps: &mut Steps<'h>) -> Result<(), EngineError> {
        let Some(resource) = self.engine.resource(&change.id) else { return Ok(()) };
        // what takes back says itself whether it did; dnf's history, for one, does not show it
        if resource.is_leftover() || !resource.shows_its_effect() {
            return Ok(());
        }
        let problem = match self.engine.look(resource, None, &BTreeSet::new()).await.finding {
            // it shows its effect after the reboot that it has asked for
            Finding::Observed(Outcome::Change(_) | Outcome::Waiting { .. }) if change.reboot.is_some() => {
                return Ok(());
            }
            // our part is done; what people want to know is who has the next step
            Finding::Observed(Outcome::Waiting { reason }) => {
                self.set(&change.id, ResourceState::Waiting, format!("{}; {reason}", change.summary));
                return Ok(());
            }
            Finding::Observed(Outcome::Change(again)) => {
                format!("it was done, but the host does not show it: still to {}", again.summary)
            }
            Finding::Observed(Outcome::Blocked { reason, .. }) => format!("after the change: {reason}"),
            Finding::Failed { error } => format!("look at it after the change: {error}"),
            Finding::Observed(_) | Finding::Deferred { .. } => return Ok(()),
        };
        self.fail(&BTreeSet::from([change.id.clone()]), &problem, steps).await
    }

    /// What changes asked for: reloads, then restarts.
    pub(super) async fn follow_up(&mut self, steps: &mut Steps<'h>) -> Result<(), EngineError> {
        while let Some(notify) = self.notifications.next() {
            self.notify(&notify, steps).await?;
        }
        Ok(())
    }

    async fn notify(&mut self, notify: &Notify, steps: &mut Steps<'h>) -> Result<(), EngineError> {
        let asked_by = self.notifications.take(notify);
        let action = self.fit_for_boot(action_for(notify, true));
        match steps.run(Owner::Notification(notify.clone()), &action).await {
            Ok(_) => Ok(()),
            Err(StepError::Journal(error)) => Err(error.into()),
            Err(StepError::Action(error)) => {
                let problem = chain(&error);
                self.fail(&asked_by, &problem, steps).await?;
                // back on the old files, the unit gets another chance
                if let Notify::RestartUnit(_) = notify {
                    for again in [Notify::DaemonReload, notify.clone()] {
                        let again = self.fit_for_boot(action_for(&again, true));
                        if let Err(error) = self.engine.host.execute(&again).await {
                            log::warn!("after taking changes back: {}", chain(&error));
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// Those that were not verified when they were changed.
    pub(super) async fn verify_rest(&mut self, steps: &mut Steps<'h>) -> Result<(), EngineError> {
        let late: Vec<Change> = self.late_changes.drain(..).collect();
        for change in late {
            if !matches!(self.state_of(&change.id), Some(ResourceState::Changed | ResourceState::NeedsReboot)) {
                continue;
            }
            self.verify(&change, steps).await?;
        }
        Ok(())
    }

    /// Takes back what these resources did, and says why.
    async fn fail(
        &mut self,
        ids: &BTreeSet<ResourceId>,
        problem: &str,
        steps: &mut Steps<'h>,
    ) -> Result<(), EngineError> {
        let ours = |owner: &Owner| matches!(owner, Owner::Resource(id) if ids.contains(id));
        let failures = steps.undo(ours).await?;
        for id in ids {
            self.changed.remove(id);
            let left = if failures.is_empty() {
                String::new()
            } else {
                self.undo_failed = true;
                format!("; not undone: {}", failures.join(", "))
            };
            log::error!(
                MESSAGE_ID = event::RESOURCE_FAILED, NODEAGENT_RESOURCE = id.as_str(), NODEAGENT_PHASE = "apply",
                NODEAGENT_RESULT = "failed", NODEAGENT_TXN = steps.journal().id();
                "{id}: {problem}{left}"
            );
            self.set(id, ResourceState::Failed, format!("{problem}{left}"));
        }
        Ok(())
    }

    /// The end of the transaction: with everything taken back when that was asked for and anything failed.
    pub(super) async fn end(&mut self, steps: &mut Steps<'h>) -> Result<(), EngineError> {
        let id = steps.journal().id().to_owned();
        let trouble = self.report.resources.iter().find(|entry| entry.state.is_trouble());
        let trouble = trouble.map(|entry| format!("{}: {}", entry.id, entry.detail));
        let result = match trouble {
            Some(why) if self.options.atomic => {
                self.phase(Phase::Undo)?;
                self.undo_all(why, steps).await?
            }
            Some(_) => EndResult::Degraded,
            None => EndResult::Applied,
        };
        // before the end, so that a crash between comes back here
        self.note_origins(&id, steps)?;
        steps.journal().durable(&Record::End { result, at: self.engine.host.clock.now() })?;
        Transaction::prune(self.engine.host)?;
        let message_id = match result {
            EndResult::Applied | EndResult::Superseded => event::TRANSACTION_APPLIED,
            EndResult::Degraded => event::TRANSACTION_DEGRADED,
            EndResult::Undone => event::TRANSACTION_UNDONE,
            EndResult::UndoFailed => event::UNDO_FAILED,
        };
        let summary = self.report.summary();
        log::info!(MESSAGE_ID = message_id, NODEAGENT_TXN = id.as_str(); "transaction {id} {result}: {summary}");
        Ok(())
    }

    /// What was there before, for when the config does not want it any more.
    fn note_origins(&self, transaction: &str, steps: &Steps<'h>) -> Result<(), EngineError> {
        let host = self.engine.host;
        let before = Origins::load(host)?;
        let mut origins = before.clone();
        origins.note(transaction, steps);
        if origins != before {
            origins.save(host)?;
        }
        Ok(())
    }

    async fn undo_all(&mut self, why: String, steps: &mut Steps<'h>) -> Result<EndResult, EngineError> {
        let failures = steps.undo(|_| true).await?;
        let changed = std::mem::take(&mut self.changed);
        for id in &changed {
            if self.state_of(id) != Some(ResourceState::Failed) {
                self.set(id, ResourceState::Undone, "taken back with the whole transaction");
            }
        }
        self.report.undone_because = Some(why);
        if failures.is_empty() {
            return Ok(EndResult::Undone);
        }
        self.undo_failed = true;
        self.report.notes.extend(failures.into_iter().map(|failure| format!("not undone: {failure}")));
        Ok(EndResult::UndoFailed)
    }

    fn log_change(&self, change: &Change, began: Instant) {
        let id = &change.id;
        if !self.changed.contains(id) {
            return;
        }
        let values =
            |pick: fn(&Diff) -> Option<String>| change.diffs.iter().filter_map(pick).collect::<Vec<_>>().join(" ");
        // whole files have no place in a log, and may be secret
        let old = values(|diff| match diff {
            Diff::Value { what, old, .. } => Some(format!("{what}={}", old.as_deref().unwrap_or("(none)"))),
            Diff::File { .. } => None,
        });
        let new = values(|diff| match diff {
            Diff::Value { what, new, .. } => Some(format!("{what}={}", new.as_deref().unwrap_or("(none)"))),
            Diff::File { .. } => None,
        });
        log::info!(
            MESSAGE_ID = event::RESOURCE_CHANGED, NODEAGENT_RESOURCE = id.as_str(), NODEAGENT_PHASE = "apply",
            NODEAGENT_CHANGE = change.summary.as_str(), NODEAGENT_RESULT = "changed",
            NODEAGENT_TXN = self.report.transaction.as_deref().unwrap_or_default(),
            NODEAGENT_DURATION_US = microseconds(began), NODEAGENT_OLD = old, NODEAGENT_NEW = new;
            "{id}: {}", change.summary
        );
        if let Some(why) = &change.reboot {
            log::warn!(
                MESSAGE_ID = event::REBOOT_REQUIRED, NODEAGENT_RESOURCE = id.as_str();
                "{id}: a reboot is required: {why}"
            );
        }
    }
}
