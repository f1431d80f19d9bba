//! One step: captured, journaled, done. And the way back.

use std::collections::BTreeMap;

use super::journal::{Journal, JournalError, Owner, Record};
use super::transaction::{Progress, Step, Transaction};
use crate::host::{ActionError, Host};
use crate::plan::{Action, Undo};
use crate::telemetry::chain;

/// Why a step did not do what it is for.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The host said no; the step was not begun, or is in the journal as failed.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// The journal cannot be written: nothing more may be done.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The steps of a run, on a host, in a journal.
pub struct Steps<'h> {
    host: &'h Host,
    journal: Journal,
    steps: BTreeMap<usize, Step>,
}

impl<'h> Steps<'h> {
    /// A transaction that begins.
    pub fn new(host: &'h Host, journal: Journal) -> Steps<'h> {
        Steps { host, journal, steps: BTreeMap::new() }
    }

    /// A transaction that goes on.
    pub fn of(host: &'h Host, journal: Journal, transaction: &Transaction) -> Steps<'h> {
        let steps = transaction.steps.iter().map(|step| (step.number, step.clone())).collect();
        Steps { host, journal, steps }
    }

    /// What was done and not taken back.
    pub fn done(&self) -> impl Iterator<Item = &Step> {
        self.steps.values().filter(|step| step.progress == Progress::Done)
    }

    /// The journal, for records that are no steps.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Captures, journals, and carries out. What the host notes about it is handed back.
    pub async fn run(&mut self, owner: Owner, action: &Action) -> Result<Option<String>, StepError> {
        let undo = self.host.capture(action).await?;
        let number = self.journal.intent(owner.clone(), action, &undo)?;
        let mut step = Step { number, owner, action: action.clone(), undo, progress: Progress::Intended };
        let result = self.host.execute(action).await;
        step.progress = if result.is_ok() { Progress::Done } else { Progress::Failed };
        let executed = match result {
            Ok(executed) => executed,
            Err(error) => {
                self.steps.insert(number, step);
                self.journal.relaxed(&Record::Failed { step: number, error: chain(&error) })?;
                return Err(error.into());
            }
        };
        let done = Record::Done { step: number, undo: executed.undo.clone() };
        match executed.undo {
            // without it there would be no way back after a power cut
            Some(undo) => {
                step.undo = undo;
                self.steps.insert(number, step);
                self.journal.durable(&done)?;
            }
            None => {
                self.steps.insert(number, step);
                self.journal.relaxed(&done)?;
            }
        }
        Ok(executed.note)
    }

    /// Takes back every step that `concerns` says, last first, as far as it goes. The texts are what could not be taken
    /// back; an error is the journal's alone.
    pub async fn undo(&mut self, concerns: impl Fn(&Owner) -> bool) -> Result<Vec<String>, JournalError> {
        let mut failures = Vec::new();
        let wanted: Vec<usize> = self
            .steps
            .values()
            .rev()
            .filter(|step| step.progress != Progress::Undone && concerns(&step.owner))
            .map(|step| step.number)
            .collect();
        for number in wanted {
            let Some(step) = self.steps.get_mut(&number) else { continue };
            // a package transaction that never got its number left nothing, or what dnf itself will say
            let result = match (&step.undo, step.progress) {
                (Undo::Impossible { .. }, Progress::Failed) => Ok(()),
                (undo, _) => self.host.undo(undo).await,
            };
            match result {
                Ok(()) => {
                    step.progress = Progress::Undone;
                    self.journal.relaxed(&Record::Undone { step: number })?;
                }
                Err(error) => {
                    let error = chain(&error);
                    failures.push(format!("step {number}: {error}"));
                    self.journal.relaxed(&Record::UndoFailed { step: number, error })?;
                }
            }
        }
        Ok(failures)
    }
}
