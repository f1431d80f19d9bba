//! The write-ahead journal of one transaction: `/var/lib/nodeagent/txn/<id>.jsonl`, one JSON record per line.
//!
//! ```text
//! begin ─ { intent ─ [the action runs] ─ done │ failed ─ undone }* ─ end
//! ```
//!
//! An intent is on disk, with what takes the action back, before the action starts. So after a crash each intent without
//! a `done` names the only things that may be half done. A `done` needs no fsync of its own unless it carries undo data:
//! when it is lost, the action is repeated, and all actions are idempotent.

use std::fs::File;
use std::io::Write;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{STATE_DIR, TRANSACTION_DIR};
use crate::host::root::Ownership;
use crate::host::{Host, RootError};
use crate::plan::{Action, Change, Notify, ResourceId, Stage, Undo};

/// Version of the records.
pub const SCHEMA: u32 = 1;

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// What is about to be done; the first line.
    Begin(Begin),
    /// A later run goes on with what an earlier one began.
    Resume {
        /// The boot in which it goes on.
        boot_id: Option<String>,
        /// When.
        at: Timestamp,
        /// What is still to be done.
        changes: Vec<Change>,
    },
    /// An action is about to run.
    Intent {
        /// Counts from 1 within the journal.
        step: usize,
        /// Whose action it is.
        owner: Owner,
        /// What will run.
        action: Action,
        /// What takes it back.
        undo: Undo,
    },
    /// The action ran.
    Done {
        /// Its step.
        step: usize,
        /// Undo data that only exists afterwards; replaces the intent's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        undo: Option<Undo>,
    },
    /// The action failed.
    Failed {
        /// Its step.
        step: usize,
        /// The chain of causes.
        error: String,
    },
    /// The step was taken back.
    Undone {
        /// Which.
        step: usize,
    },
    /// The step could not be taken back.
    UndoFailed {
        /// Which.
        step: usize,
        /// The chain of causes.
        error: String,
    },
    /// Nothing more will be done.
    End {
        /// With what result.
        result: EndResult,
        /// When.
        at: Timestamp,
    },
    /// Somebody asked for the whole to be taken back; `undone` records and another end follow.
    Rollback {
        /// When.
        at: Timestamp,
    },
}

/// The first record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Version of the records.
    pub schema: u32,
    /// Id of the transaction.
    pub id: String,
    /// The agent that wrote it.
    pub agent_version: String,
    /// The boot in which it began.
    pub boot_id: Option<String>,
    /// When.
    pub at: Timestamp,
    /// Which resources could take part.
    pub stage: Stage,
    /// Everything is undone when anything fails.
    pub atomic: bool,
    /// Names the desired state: after a crash, the transaction goes on when it is still the same.
    pub desired_hash: String,
    /// Names what will be executed.
    pub plan_hash: String,
    /// What will be executed.
    pub changes: Vec<Change>,
}

/// Whose action it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// A resource's.
    Resource(ResourceId),
    /// What the engine does after changes, for all that asked for it.
    Notification(Notify),
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndResult {
    /// All was done.
    Applied,
    /// Something failed and was undone, the rest stays.
    Degraded,
    /// All was undone.
    Undone,
    /// Not all could be undone.
    UndoFailed,
    /// A newer transaction took over what was left.
    Superseded,
}

impl std::fmt::Display for EndResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            EndResult::Applied => "is applied",
            EndResult::Degraded => "is applied in part",
            EndResult::Undone => "is undone",
            EndResult::UndoFailed => "could not be undone",
            EndResult::Superseded => "was superseded",
        })
    }
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Its directory or file.
    #[error("open transaction journal {path}")]
    Open {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: RootError,
    },
    /// Writing a record, or making it durable.
    #[error("write transaction journal {path}")]
    Write {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A record that does not serialise.
    #[error("encode a record of transaction journal {path}")]
    Encode {
        /// Path on the host.
        path: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A test asked for a crash here.
    #[cfg(any(test, feature = "testing"))]
    #[error("crash asked for after record {0}")]
    Crash(usize),
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    id: String,
    path: String,
    file: File,
    steps: usize,
    #[cfg(any(test, feature = "testing"))]
    crash: CrashPoint,
}

/// Where a test wants the process to die: after so many records of this process have been written.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Clone, Default)]
pub struct CrashPoint {
    after: Option<usize>,
    written: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

#[cfg(any(test, feature = "testing"))]
impl CrashPoint {
    /// Dies after the given number of records.
    pub fn after(records: usize) -> CrashPoint {
        CrashPoint { after: Some(records), ..CrashPoint::default() }
    }

    /// Records written so far.
    pub fn written(&self) -> usize {
        self.written.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn record_written(&self) -> Result<(), JournalError> {
        let count = self.written.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        if self.after.is_some_and(|after| count >= after) { Err(JournalError::Crash(count)) } else { Ok(()) }
    }
}

/// Path of a transaction's journal.
pub fn path_of(id: &str) -> String {
    format!("{TRANSACTION_DIR}/{id}.jsonl")
}

impl Journal {
    /// Starts the journal of a new transaction.
    pub fn create(host: &Host, id: &str) -> Result<Journal, JournalError> {
        let owner = Ownership { mode: 0o700, uid: 0, gid: 0 };
        for dir in [STATE_DIR, TRANSACTION_DIR] {
            let open = |source| JournalError::Open { path: dir.to_owned(), source };
            if !host.root.exists(dir).map_err(open)? {
                host.root.make_directory(dir, owner).map_err(open)?;
            }
        }
        Journal::open(host, id, 0, 0)
    }

    /// Goes on with a journal that has `steps` steps in its first `length` bytes. What is behind them is a record that a
    /// power cut tore; it goes away.
    pub fn open(host: &Host, id: &str, steps: usize, length: usize) -> Result<Journal, JournalError> {
        let path = path_of(id);
        let file =
            host.root.open_append(&path, 0o600).map_err(|source| JournalError::Open { path: path.clone(), source })?;
        file.set_len(length as u64).map_err(|source| JournalError::Write { path: path.clone(), source })?;
        Ok(Journal {
            id: id.to_owned(),
            path,
            file,
            steps,
            #[cfg(any(test, feature = "testing"))]
            crash: CrashPoint::default(),
        })
    }

    /// Dies where the test wants it.
    #[cfg(any(test, feature = "testing"))]
    pub fn with_crash_point(mut self, crash: CrashPoint) -> Journal {
        self.crash = crash;
        self
    }

    /// Id of the transaction.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Writes the intent of the next step and waits until it is on disk.
    pub fn intent(&mut self, owner: Owner, action: &Action, undo: &Undo) -> Result<usize, JournalError> {
        self.steps += 1;
        let step = self.steps;
        self.durable(&Record::Intent { step, owner, action: action.clone(), undo: undo.clone() })?;
        Ok(step)
    }

    /// Writes a record and waits until it, and all before it, are on disk.
    pub fn durable(&mut self, record: &Record) -> Result<(), JournalError> {
        self.append(record)?;
        self.file.sync_data().map_err(|source| JournalError::Write { path: self.path.clone(), source })?;
        #[cfg(any(test, feature = "testing"))]
        self.crash.record_written()?;
        Ok(())
    }

    /// Writes a record that may be lost in a power cut.
    pub fn relaxed(&mut self, record: &Record) -> Result<(), JournalError> {
        self.append(record)?;
        #[cfg(any(test, feature = "testing"))]
        self.crash.record_written()?;
        Ok(())
    }

    fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let mut line =
            serde_json::to_vec(record).map_err(|source| JournalError::Encode { path: self.path.clone(), source })?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|source| JournalError::Write { path: self.path.clone(), source })
    }
}
