//! Transactions as their journals tell them.

use std::collections::BTreeSet;

use super::TRANSACTION_DIR;
use super::journal::{Begin, EndResult, Owner, Record, SCHEMA, path_of};
use crate::host::{Host, RootError};
use crate::plan::{Action, Change, Notify, ResourceId, Undo};

/// A journal is bounded by the files it saves; four of the largest files that the agent reads.
const JOURNAL_LIMIT: u64 = 64 * 1024 * 1024;

/// Journals that are kept.
const KEPT: usize = 32;

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// The file.
    #[error("read transaction journal {path}")]
    Read {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: RootError,
    },
    /// A line in the middle that no agent wrote.
    #[error("transaction journal {path} is damaged in line {line}")]
    Damaged {
        /// Path on the host.
        path: String,
        /// Counts from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Lines that do not fit together.
    #[error("transaction journal {path} makes no sense in line {line}: {problem}")]
    Nonsense {
        /// Path on the host.
        path: String,
        /// Counts from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// From a newer agent.
    #[error("transaction journal {path} was written by agent {agent_version}, with a newer schema; install that one")]
    Newer {
        /// Path on the host.
        path: String,
        /// Who wrote it.
        agent_version: String,
    },
    /// There is no such transaction.
    #[error("there is no transaction {id}")]
    Unknown {
        /// As asked for.
        id: String,
    },
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Counts from 1.
    pub number: usize,
    /// Whose.
    pub owner: Owner,
    /// What ran, or was about to.
    pub action: Action,
    /// What takes it back.
    pub undo: Undo,
    /// How far it came.
    pub progress: Progress,
}

/// How far a step came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It may have run, or not, or in part.
    Intended,
    /// It ran.
    Done,
    /// It failed.
    Failed,
    /// It was taken back.
    Undone,
}

/// A transaction, read from its journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its first record.
    pub begin: Begin,
    /// Its steps, in order.
    pub steps: Vec<Step>,
    /// How it ended; none when it did not.
    pub end: Option<EndResult>,
    /// A rollback was asked for after the end.
    pub rolling_back: bool,
    /// The changes of the last begin or resume.
    pub changes: Vec<Change>,
    /// Bytes of the journal that are whole records.
    pub length: usize,
}

impl Transaction {
    /// Ids of all transactions, oldest first.
    pub fn list(host: &Host) -> Result<Vec<String>, TransactionError> {
        let names = host
            .root
            .list(TRANSACTION_DIR)
            .map_err(|source| TransactionError::Read { path: TRANSACTION_DIR.to_owned(), source })?;
        Ok(names.into_iter().flatten().filter_map(|name| name.strip_suffix(".jsonl").map(str::to_owned)).collect())
    }

    /// Removes journals of which nobody needs to know any more: only the last ones can be rolled back or explain a
    /// state. Called after a transaction has ended, so that a run without changes writes nothing.
    pub fn prune(host: &Host) -> Result<(), TransactionError> {
        let ids = Transaction::list(host)?;
        for id in &ids[..ids.len().saturating_sub(KEPT)] {
            let path = path_of(id);
            host.root.remove(&path).map_err(|source| TransactionError::Read { path, source })?;
        }
        Ok(())
    }

    /// An id for a new transaction. Ids sort in the order of the transactions, whatever the clock does: a machine without
    /// a battery boots in the past.
    pub fn next_id(host: &Host, now: jiff::Timestamp) -> Result<String, TransactionError> {
        let number = |id: &String| id.split('-').next().and_then(|number| number.parse::<u64>().ok());
        let last = Transaction::list(host)?.iter().filter_map(number).max().unwrap_or(0);
        Ok(format!("{:06}-{}", last + 1, now.strftime("%Y%m%dT%H%M%SZ")))
    }

    /// Reads one; none when not even its first record reached the disk: then nothing was done.
    pub fn load(host: &Host, id: &str) -> Result<Option<Transaction>, TransactionError> {
        let path = path_of(id);
        let bytes = host
            .root
            .read_bounded(&path, JOURNAL_LIMIT)
            .map_err(|source| TransactionError::Read { path: path.clone(), source })?
            .ok_or_else(|| TransactionError::Unknown { id: id.to_owned() })?;
        Transaction::parse(&path, &bytes)
    }

    /// The transactions that began and did not end, oldest first.
    pub fn unfinished(host: &Host) -> Result<Vec<Transaction>, TransactionError> {
        let mut found = Vec::new();
        // ends are looked for newest first, because runs are: an older one that did not end would have been dealt with
        // by the run after it, unless that was of an earlier stage
        for id in Transaction::list(host)?.iter().rev().take(8) {
            found.extend(Transaction::load(host, id)?.filter(|transaction| !transaction.is_over()));
        }
        found.reverse();
        Ok(found)
    }

    /// True when nothing is left to be done or undone.
    pub fn is_over(&self) -> bool {
        self.end.is_some() && !self.rolling_back
    }

    /// Reads a journal's bytes.
    pub fn parse(path: &str, bytes: &[u8]) -> Result<Option<Transaction>, TransactionError> {
        let mut transaction: Option<Transaction> = None;
        let mut length = 0;
        for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let line_number = index + 1;
            // a write that the power cut ended: its fsync never returned, so nothing was built on it
            if !line.ends_with(b"\n") {
                break;
            }
            length += line.len();
            let record: Record = serde_json::from_slice(line).map_err(|source| TransactionError::Damaged {
                path: path.to_owned(),
                line: line_number,
                source,
            })?;
            let nonsense = |problem| TransactionError::Nonsense { path: path.to_owned(), line: line_number, problem };
            match (&mut transaction, record) {
                (none @ None, Record::Begin(begin)) => {
                    if begin.schema > SCHEMA {
                        let agent_version = begin.agent_version;
                        return Err(TransactionError::Newer { path: path.to_owned(), agent_version });
                    }
                    let changes = begin.changes.clone();
                    *none =
                        Some(Transaction { begin, steps: Vec::new(), end: None, rolling_back: false, changes, length });
                }
                (None, _) => return Err(nonsense("it comes before the begin")),
                (Some(_), Record::Begin(_)) => return Err(nonsense("a second begin")),
                (Some(transaction), record) => transaction.take(record).map_err(nonsense)?,
            }
        }
        Ok(transaction.map(|transaction| Transaction { length, ..transaction }))
    }

    fn take(&mut self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::Begin(_) => {}
            Record::Resume { changes, .. } => {
                self.changes = changes;
                self.end = None;
            }
            Record::Intent { step, owner, action, undo } => {
                if step != self.steps.len() + 1 {
                    return Err("steps do not count up");
                }
                self.steps.push(Step { number: step, owner, action, undo, progress: Progress::Intended });
            }
            Record::Done { step, undo } => {
                let step = self.step(step)?;
                step.progress = Progress::Done;
                if let Some(undo) = undo {
                    step.undo = undo;
                }
            }
            Record::Failed { step, .. } => self.step(step)?.progress = Progress::Failed,
            Record::Undone { step } => self.step(step)?.progress = Progress::Undone,
            Record::UndoFailed { step, .. } => {
                self.step(step)?;
            }
            Record::End { result, .. } => {
                self.end = Some(result);
                self.rolling_back = false;
            }
            Record::Rollback { .. } => self.rolling_back = true,
        }
        Ok(())
    }

    fn step(&mut self, number: usize) -> Result<&mut Step, &'static str> {
        number.checked_sub(1).and_then(|index| self.steps.get_mut(index)).ok_or("a step that was not begun")
    }

    /// What has had an effect, or may have had, in the order in which it is taken back.
    pub fn to_undo(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().rev().filter(|step| step.progress != Progress::Undone)
    }

    /// What resources asked for whose steps began, and what was not carried out.
    pub fn pending_notifications(&self) -> BTreeSet<Notify> {
        let began: BTreeSet<&ResourceId> = self
            .steps
            .iter()
            .filter(|step| step.progress != Progress::Undone)
            .filter_map(|step| match &step.owner {
                Owner::Resource(id) => Some(id),
                Owner::Notification(_) => None,
            })
            .collect();
        let mut pending: BTreeSet<Notify> = self
            .begin
            .changes
            .iter()
            .chain(&self.changes)
            .filter(|change| began.contains(&change.id))
            .flat_map(|change| change.notify.iter().cloned())
            .collect();
        for step in &self.steps {
            if let (Owner::Notification(notify), Progress::Done) = (&step.owner, step.progress) {
                pending.remove(notify);
            }
        }
        pending
    }
}
