//! Takes back a transaction that has ended.

use super::confirm;
use super::engine::Engine;
use super::error::EngineError;
use super::execute::Steps;
use super::journal::{EndResult, Journal, Record};
use super::lock::Lock;
use super::options::Options;
use super::origin::Origins;
use super::state::State;
use super::transaction::Transaction;
use crate::host::Host;
use crate::telemetry::event;

/// What a rollback came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    /// The transaction.
    pub id: String,
    /// What could not be taken back.
    pub failures: Vec<String>,
}

/// What came of a probation that had run out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// The transactions that were taken back, newest first.
    pub transactions: Vec<String>,
    /// What could not be.
    pub failures: Vec<String>,
}

impl Expired {
    /// For people.
    pub fn in_words(&self) -> String {
        let undone = match self.transactions.as_slice() {
            [] => "nothing had been changed".to_owned(),
            ids => format!("taken back: transaction {}", ids.join(", ")),
        };
        match self.failures.as_slice() {
            [] => format!("nobody confirmed the changes; {undone}"),
            failures => format!("nobody confirmed the changes; {undone}; not undone: {}", failures.join(", ")),
        }
    }
}

/// The transaction that would be rolled back, with its steps: `id`, or the last one that has any effect.
pub fn candidate(engine: &Engine<'_>, id: Option<&str>) -> Result<Transaction, EngineError> {
    let mut later = None;
    for candidate in Transaction::list(engine.host)?.iter().rev() {
        let Some(transaction) = Transaction::load(engine.host, candidate)? else { continue };
        let has_effect = transaction.to_undo().next().is_some();
        match id {
            Some(id) if id == candidate => {
                return match later {
                    // an earlier transaction's undo data describes a host that the later one has changed since
                    Some(later) => Err(EngineError::NotTheLast { id: id.to_owned(), later }),
                    None if has_effect => Ok(transaction),
                    None => Err(EngineError::NothingToRollBack),
                };
            }
            None if has_effect => return Ok(transaction),
            _ => later = later.or_else(|| has_effect.then(|| candidate.clone())),
        }
    }
    Err(EngineError::NothingToRollBack)
}

/// What a transaction did that was taken back is not there to be taken back any more.
pub(super) fn forget_origins(host: &Host, transaction: &str) -> Result<(), EngineError> {
    let before = Origins::load(host)?;
    let mut origins = before.clone();
    origins.forget_transaction(transaction);
    if origins != before {
        origins.save(host)?;
    }
    Ok(())
}

/// Takes it back, in reverse.
pub async fn rollback(engine: &Engine<'_>, id: Option<&str>, options: &Options) -> Result<RolledBack, EngineError> {
    let host = engine.host;
    let _lock = Lock::take(host, "agent rollback", options.patience).await?;
    let transaction = candidate(engine, id)?;
    undo(host, &transaction, options).await
}

/// Takes back all changes of `apply --confirm` that nobody has confirmed, if there are any.
pub async fn unconfirmed(host: &Host, options: &Options) -> Result<Expired, EngineError> {
    let _lock = Lock::take(host, "agent rollback --unconfirmed", options.patience).await?;
    take_back(host, options).await
}

/// Takes everything on probation back, newest first, and remembers that it was not wanted. With the lock held.
pub(super) async fn take_back(host: &Host, options: &Options) -> Result<Expired, EngineError> {
    let Some(mut record) = confirm::read(host)?.filter(|record| record.status == confirm::Status::Pending) else {
        return Ok(Expired::default());
    };
    let mut expired = Expired::default();
    for id in Transaction::list(host)?.into_iter().rev() {
        if record.after.as_ref().is_some_and(|after| id <= *after) {
            break;
        }
        let Some(transaction) = Transaction::load(host, &id)? else { continue };
        if transaction.is_over() && transaction.to_undo().next().is_none() {
            continue;
        }
        expired.failures.extend(undo(host, &transaction, options).await?.failures);
        expired.transactions.push(id);
    }
    record.status = confirm::Status::Rejected;
    confirm::write(host, &record)?;
    confirm::disarm(host).await;
    Ok(expired)
}

/// With the lock held.
#[cfg_attr(not(any(test, feature = "testing")), allow(unused_variables))]
pub(super) async fn undo(host: &Host, transaction: &Transaction, options: &Options) -> Result<RolledBack, EngineError> {
    let id = transaction.begin.id.clone();
    let journal = Journal::open(host, &id, transaction.steps.len(), transaction.length)?;
    #[cfg(any(test, feature = "testing"))]
    let journal = journal.with_crash_point(options.crash.clone());
    let mut steps = Steps::of(host, journal, transaction);
    steps.journal().durable(&Record::Rollback { at: host.clock.now() })?;
    let failures = steps.undo(|_| true).await?;
    if let Some(mut state) = State::load(host)? {
        state.resources.retain(|_, applied| applied.transaction.as_ref() != Some(&id));
        state.save(host)?;
    }
    forget_origins(host, &id)?;
    let result = if failures.is_empty() { EndResult::Undone } else { EndResult::UndoFailed };
    steps.journal().durable(&Record::End { result, at: host.clock.now() })?;
    let message_id = if failures.is_empty() { event::TRANSACTION_UNDONE } else { event::UNDO_FAILED };
    log::warn!(MESSAGE_ID = message_id, NODEAGENT_TXN = id.as_str(); "transaction {id} {result}, as asked for");
    Ok(RolledBack { id, failures })
}
