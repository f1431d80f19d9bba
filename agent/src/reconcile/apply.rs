//! One run: from what was found to what is journaled, done, verified and remembered.

use std::collections::BTreeSet;
use std::time::Instant;

use super::engine::Engine;
use super::error::EngineError;
use super::execute::Steps;
use super::flap;
use super::journal::{Begin, Journal, Record, SCHEMA};
use super::lock::Lock;
use super::notifications::Notifications;
use super::options::Options;
use super::origin::Origins;
use super::planned::Plan;
use super::probation;
use super::recover::Recovery;
use super::report::{Phase, Report, ResourceState};
use super::run::Run;
use super::state::{Applied, Identity, State, boot_id};
use super::transaction::Transaction;
use crate::exit::Exit;
use crate::plan::{Change, ResourceId};
use crate::telemetry::event;

impl<'h> Engine<'h> {
    /// Brings the host to its settings, as far as `options` allow, and says how it stands.
    pub async fn run(&self, options: &Options) -> Result<Report, EngineError> {
        let began = Instant::now();
        let _lock = Lock::take(self.host, &command_line(options), options.patience).await?;
        let held = probation::settle(self, options).await?;
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
        run.take_identity(identity);
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
        if let Some(terms) = &self.options.probation {
            let until = probation::arm(self.engine, terms).await?;
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
            #[cfg(any(test, feature = "testing"))]
            let journal = journal.with_crash_point(self.options.crash.clone());
            let mut steps = Steps::of(host, journal, &transaction);
            steps.journal().durable(&Record::Resume { boot_id, at, changes })?;
            self.report.transaction = Some(id);
            return Ok(steps);
        }
        let id = Transaction::next_id(host, at)?;
        log::info!(
            MESSAGE_ID = event::TRANSACTION_BEGIN, NODEAGENT_TXN = id.as_str();
            "transaction {id} begins with {} changes", changes.len()
        );
        let journal = Journal::create(host, &id)?;
        #[cfg(any(test, feature = "testing"))]
        let journal = journal.with_crash_point(self.options.crash.clone());
        let mut journal = journal;
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

    /// What cannot go on because of what it needs is said before anything starts.
    fn block_dependents(&mut self, plan: &Plan) {
        for planned in &plan.resources {
            self.skip_if_needs_fail(planned);
        }
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
            let value = resource.applied();
            let before = self.state.resources.get(&planned.id).filter(|before| !changed && before.value == value);
            let adopted = before.and_then(|before| before.adopted.clone());
            self.state.resources.insert(planned.id.clone(), Applied { value, transaction, adopted });
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
