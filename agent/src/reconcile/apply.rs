//! One run: from what was found to what is journaled, done, verified and remembered.

use std::collections::BTreeSet;
use std::time::Instant;

use super::confirm;
use super::engine::{Engine, EngineError, Options};
use super::execute::Steps;
use super::flap;
use super::journal::{Begin, Journal, Record, SCHEMA};
use super::lock::Lock;
use super::notifications::Notifications;
use super::origin::Origins;
use super::planned::{Finding, Plan, Planned};
use super::recover::Recovery;
use super::report::{Phase, Report, ResourceReport, ResourceState};
use super::state::{Applied, Identity, State, boot_id};
use super::transaction::Transaction;
use crate::config::settings::DriftPolicy;
use crate::exit::Exit;
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
    held: bool,
    began: Instant,
}

impl<'h> Engine<'h> {
    /// Brings the host to its settings, as far as `options` allow, and says how it stands.
    pub async fn run(&self, options: &Options) -> Result<Report, EngineError> {
        let began = Instant::now();
        let _lock = Lock::take(self.host, &command_line(options), options.patience).await?;
        let held = confirm::settle(self, options).await?;
        let identity = Identity::read(self.host).map_err(EngineError::Identity)?;
        let loaded = State::load(self.host)?;
        let state = loaded.clone().unwrap_or_else(|| State::new(identity.clone()));
        let report = Report::begin(options.command, options.stage, self.host.clock.now());
        let mut run = Run {
            engine: self,
            options,
            state,
            report,
            changed: BTreeSet::new(),
            notifications: Notifications::default(),
            late_changes: Vec::new(),
            undo_failed: false,
            held: held.is_some(),
            began,
        };
        run.report.notes.extend(held);
        run.adopt_identity(identity);
        let recovery = run.recover().await?;
        let plan = self.plan(options.stage, Some(&run.state)).await;
        run.take_plan(&plan);
        run.name_rivals(&plan).await;
        run.carry_out(&plan, recovery).await?;
        run.forget_origins()?;
        run.remember(&plan);
        if loaded.as_ref() != Some(&run.state) {
            run.state.boot_id = boot_id(self.host).map_err(EngineError::Identity)?;
            run.state.agent_version = env!("CARGO_PKG_VERSION").to_owned();
            run.state.save(self.host)?;
        }
        run.finish()
    }
}

fn command_line(options: &Options) -> String {
    format!("agent {} --stage {}", options.command, options.stage.word())
}

impl<'h> Run<'_, 'h> {
    /// State that was written on another system is about a copied disk: what is applied is on the disk still.
    fn adopt_identity(&mut self, identity: Identity) {
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
    fn take_plan(&mut self, plan: &Plan) {
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
    async fn name_rivals(&mut self, plan: &Plan) {
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

    /// Journals and carries out what is to be done, if anything is.
    async fn carry_out(&mut self, plan: &Plan, recovery: Recovery) -> Result<(), EngineError> {
        self.block_dependents(plan);
        let changes: Vec<Change> = plan
            .changes()
            .filter(|change| self.state_of(&change.id) == Some(ResourceState::Pending))
            .cloned()
            .collect();
        for notify in recovery.notifications {
            self.notifications.add(notify, None);
        }
        if changes.is_empty() && recovery.resume.is_none() && self.notifications.next().is_none() {
            return Ok(());
        }
        if let Some(probation) = &self.options.probation {
            let until = confirm::arm(self.engine, probation).await?;
            self.report.notes.push(format!("these changes are taken back at {until} unless you run `agent confirm`"));
        }
        let mut steps = self.begin(plan, changes, recovery.resume)?;
        self.phase(Phase::Apply)?;
        for planned in &plan.resources {
            if self.state_of(&planned.id) == Some(ResourceState::Pending) {
                self.apply_one(planned, &mut steps).await?;
                self.publish()?;
            }
        }
        self.follow_up(&mut steps).await?;
        self.phase(Phase::Verify)?;
        self.verify_rest(&mut steps).await?;
        self.end(&mut steps).await
    }

    fn begin(
        &mut self,
        plan: &Plan,
        changes: Vec<Change>,
        resume: Option<Transaction>,
    ) -> Result<Steps<'h>, EngineError> {
        let host = self.engine.host;
        let boot_id = boot_id(host).map_err(EngineError::Identity)?;
        let at = host.clock.now();
        if let Some(transaction) = resume {
            let id = transaction.begin.id.clone();
            log::warn!(
                MESSAGE_ID = event::TRANSACTION_RESUMED, NODEAGENT_TXN = id.as_str();
                "transaction {id} goes on after an interruption, {} changes left", changes.len()
            );
            self.report.notes.push(format!("transaction {id} was interrupted; this run went on with it"));
            let journal = Journal::open(host, &id, transaction.steps.len(), transaction.length)?;
            let mut steps = Steps::of(host, self.with_crash_point(journal), &transaction);
            steps.journal().durable(&Record::Resume { boot_id, at, changes })?;
            self.report.transaction = Some(id);
            return Ok(steps);
        }
        let id = Transaction::next_id(host, at)?;
        log::info!(
            MESSAGE_ID = event::TRANSACTION_BEGIN, NODEAGENT_TXN = id.as_str();
            "transaction {id} begins with {} changes", changes.len()
        );
        let mut journal = self.with_crash_point(Journal::create(host, &id)?);
        journal.durable(&Record::Begin(Begin {
            schema: SCHEMA,
            id: id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id,
            at,
            stage: self.options.stage,
            atomic: self.options.atomic,
            desired_hash: self.engine.desired_hash(self.options.stage),
            plan_hash: plan.hash(),
            changes,
        }))?;
        self.report.transaction = Some(id);
        Ok(Steps::new(host, journal))
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn with_crash_point(&self, journal: Journal) -> Journal {
        journal.with_crash_point(self.options.crash.clone())
    }

    #[cfg(not(any(test, feature = "testing")))]
    #[allow(clippy::unused_self)] // the shape of the one above
    pub(super) fn with_crash_point(&self, journal: Journal) -> Journal {
        journal
    }

    /// What cannot go on because of what it needs is said before anything starts.
    fn block_dependents(&mut self, plan: &Plan) {
        for planned in &plan.resources {
            self.skip_if_needs_fail(planned);
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

    /// What the next run has to know.
    fn remember(&mut self, plan: &Plan) {
        let now = self.engine.host.clock.now();
        for planned in &plan.resources {
            let Some(resource) = self.engine.resource(&planned.id) else { continue };
            if resource.is_leftover() {
                continue;
            }
            let transaction = match self.state_of(&planned.id) {
                Some(ResourceState::Changed | ResourceState::NeedsReboot) => self.report.transaction.clone(),
                // as found, or as left by an earlier transaction
                Some(ResourceState::Converged | ResourceState::Waiting) => {
                    self.state.resources.get(&planned.id).and_then(|applied| applied.transaction.clone())
                }
                _ => continue,
            };
            let changed = self.changed.contains(&planned.id);
            if changed && self.options.obey_policy && self.state.resources.contains_key(&planned.id) {
                flap::note_repair(&mut self.state, &planned.id, now);
            }
            let transaction = if changed { self.report.transaction.clone() } else { transaction };
            self.state.resources.insert(planned.id.clone(), Applied { value: resource.applied(), transaction });
        }
        for id in self.forgotten() {
            self.state.resources.remove(&id);
        }
        if self.report.transaction.is_some() {
            self.state.last_transaction.clone_from(&self.report.transaction);
        }
    }

    /// What has left the config, and is off the host or to be kept there.
    pub(super) fn forgotten(&self) -> Vec<ResourceId> {
        let done = |id: &ResourceId| match self.engine.resource(id) {
            // nothing was ever done for it
            None => true,
            Some(resource) if resource.is_leftover() => {
                matches!(self.state_of(id), Some(ResourceState::Changed | ResourceState::Converged))
            }
            Some(_) => false,
        };
        self.state.resources.keys().filter(|id| done(id)).cloned().collect()
    }

    /// Without a transaction nobody else has written down what is forgotten.
    fn forget_origins(&self) -> Result<(), EngineError> {
        let forgotten = self.forgotten();
        if forgotten.is_empty() {
            return Ok(());
        }
        let before = Origins::load(self.engine.host)?;
        let mut origins = before.clone();
        for id in &forgotten {
            origins.forget(id);
        }
        if origins != before {
            origins.save(self.engine.host)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Report, EngineError> {
        let exit = self.exit();
        self.report.exit_code = Some(exit.code());
        self.report.finished = Some(self.engine.host.clock.now().to_string());
        self.report.first_boot_done = crate::firstboot::is_done(self.engine.host, &self.state.identity);
        self.phase(Phase::Done)?;
        let summary = self.report.summary();
        self.engine.notifier.status(&summary);
        Ok(self.report)
    }

    fn exit(&self) -> Exit {
        let any = |states: &[ResourceState]| self.report.resources.iter().any(|entry| states.contains(&entry.state));
        if self.undo_failed {
            Exit::UndoFailed
        } else if self.report.undone_because.is_some() {
            Exit::Undone
        } else if self.report.resources.iter().any(|entry| entry.state.is_trouble()) {
            Exit::Degraded
        } else if any(&[ResourceState::NeedsReboot]) {
            Exit::RebootRequired
        } else if any(&[ResourceState::Drifted, ResourceState::Conflict]) {
            Exit::Differences
        } else {
            Exit::Converged
        }
    }
}

pub(super) fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
