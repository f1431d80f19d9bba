//! What a crash left: goes on with it when the config still wants the same, and takes it back when it does not.

use std::collections::BTreeSet;

use super::error::EngineError;
use super::execute::Steps;
use super::journal::{EndResult, Journal, Record};
use super::rollback;
use super::run::Run;
use super::transaction::Transaction;
use crate::plan::Notify;
use crate::telemetry::event;

/// What a run inherits.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// The transaction to go on with.
    pub resume: Option<Transaction>,
    /// Reloads and restarts that changes asked for before the crash.
    pub notifications: BTreeSet<Notify>,
}

impl<'h> Run<'_, 'h> {
    /// Deals with every transaction that did not end, oldest first. One of a later stage is left for that stage: before
    /// sysinit.target there is no network to undo a package with.
    pub(super) async fn recover(&mut self) -> Result<Recovery, EngineError> {
        let mut recovery = Recovery::default();
        let host = self.engine.host;
        for transaction in Transaction::unfinished(host)? {
            let begin = &transaction.begin;
            if begin.stage > self.options.stage {
                continue;
            }
            let unchanged = begin.desired_hash == self.engine.desired_hash(begin.stage);
            if transaction.rolling_back || !unchanged {
                let why = if transaction.rolling_back { "its rollback was interrupted" } else { "the config changed" };
                self.take_back(&transaction, why).await?;
                continue;
            }
            if !host.is_offline() {
                recovery.notifications.extend(transaction.pending_notifications());
            }
            if let Some(older) = recovery.resume.replace(transaction) {
                self.close(&older, EndResult::Superseded)?;
            }
        }
        Ok(recovery)
    }

    async fn take_back(&mut self, transaction: &Transaction, why: &str) -> Result<(), EngineError> {
        let id = &transaction.begin.id;
        let mut steps = self.reopen(transaction)?;
        let failures = steps.undo(|_| true).await?;
        let result = if failures.is_empty() { EndResult::Undone } else { EndResult::UndoFailed };
        steps.journal().durable(&Record::End { result, at: self.engine.host.clock.now() })?;
        for failure in &failures {
            log::error!(MESSAGE_ID = event::UNDO_FAILED, NODEAGENT_TXN = id.as_str(); "transaction {id}: {failure}");
        }
        log::warn!(
            MESSAGE_ID = event::TRANSACTION_UNDONE, NODEAGENT_TXN = id.as_str();
            "transaction {id} {result}: it was interrupted, and {why}"
        );
        self.report.notes.push(format!("transaction {id} was interrupted and {result}: {why}"));
        self.report.notes.extend(failures.into_iter().map(|failure| format!("not undone: {failure}")));
        self.state.resources.retain(|_, applied| applied.transaction.as_ref() != Some(id));
        rollback::forget_origins(self.engine.host, id)?;
        Ok(())
    }

    fn close(&mut self, transaction: &Transaction, result: EndResult) -> Result<(), EngineError> {
        let at = self.engine.host.clock.now();
        self.reopen(transaction)?.journal().durable(&Record::End { result, at })?;
        Ok(())
    }

    fn reopen(&self, transaction: &Transaction) -> Result<Steps<'h>, EngineError> {
        let host = self.engine.host;
        let journal = Journal::open(host, &transaction.begin.id, transaction.steps.len(), transaction.length)?;
        #[cfg(any(test, feature = "testing"))]
        let journal = journal.with_crash_point(self.options.crash.clone());
        Ok(Steps::of(host, journal, transaction))
    }
}
