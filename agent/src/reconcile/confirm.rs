//! Changes on probation: taken back by themselves unless somebody confirms them in time.
//!
//! `apply --confirm 10m` writes down what it is about to do and arms a timer of systemd's before the first change, so that the
//! timer goes off even when this process, or the network that the person came over, is gone. A reboot ends the probation too:
//! the timer does not outlive it, and a host that had to be rebooted was not confirmed. A config that was taken back is not
//! applied again by the boot or by `reconcile`: only by a person, or when it changes.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::STATE_DIR;
use super::engine::{Engine, EngineError, Options};
use super::rollback;
use super::state::boot_id;
use super::transaction::Transaction;
use crate::host::root::Ownership;
use crate::host::systemd::Timer;
use crate::host::{Host, RootError};
use crate::plan::Stage;
use crate::telemetry::{chain, event};

/// Where the probation is written down.
pub const PATH: &str = "/var/lib/nodeagent/confirm.json";

/// The timer and the service that it starts, without their endings.
pub const UNIT: &str = "nodeagent-unconfirmed";

const SCHEMA: u32 = 1;

/// Why a probation could not be begun, read or ended.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmError {
    /// Reading it.
    #[error("read {PATH}")]
    Read(#[source] RootError),
    /// Writing it.
    #[error("write {PATH}")]
    Write(#[source] RootError),
    /// Not what the agent writes.
    #[error("{PATH} is damaged; look at `agent status`, then remove it")]
    Damaged(#[source] serde_json::Error),
    /// The timer.
    #[error("arm the timer that takes unconfirmed changes back; nothing was touched")]
    Arm(#[source] crate::host::systemd::SystemdError),
    /// Somebody else's changes wait.
    #[error(
        "changes wait for their confirmation until {until}: run `agent confirm`, or `agent rollback --unconfirmed`"
    )]
    Pending {
        /// When they are taken back.
        until: Timestamp,
    },
    /// There is nothing to confirm.
    #[error("no changes wait for a confirmation")]
    Nothing,
}

/// How `apply --confirm` is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probation {
    /// How long to wait.
    pub window: Duration,
    /// What takes the changes back: this program, by its path, and its arguments.
    pub command: Vec<String>,
}

/// What is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    schema: u32,
    /// How it stands.
    pub status: Status,
    /// When the changes are taken back.
    pub until: Timestamp,
    boot_id: Option<String>,
    /// The last transaction before: everything later is on probation.
    after: Option<String>,
    /// Names the config that is on probation.
    desired_hash: String,
}

/// How a probation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Nobody has confirmed yet.
    Pending,
    /// Nobody has, and it was taken back.
    Rejected,
    /// The node was reset: no config is applied.
    Reset,
}

/// What came of a probation that had run out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// The transactions that were taken back, newest first.
    pub transactions: Vec<String>,
    /// What could not be.
    pub failures: Vec<String>,
}

/// What is written down, if anything is.
pub fn read(host: &Host) -> Result<Option<Record>, ConfirmError> {
    let Some(bytes) = host.root.read(PATH).map_err(ConfirmError::Read)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(ConfirmError::Damaged)
}

/// Begins a probation: from here on the changes are taken back unless somebody confirms them.
pub(super) async fn arm(engine: &Engine<'_>, probation: &Probation) -> Result<Timestamp, EngineError> {
    let host = engine.host;
    let window = SignedDuration::try_from(probation.window).unwrap_or(SignedDuration::from_hours(24));
    let until = host.clock.now() + window;
    let record = Record {
        schema: SCHEMA,
        status: Status::Pending,
        until,
        boot_id: boot_id(host).map_err(EngineError::Identity)?,
        after: Transaction::list(host)?.pop(),
        desired_hash: engine.desired_hash(Stage::Activate),
    };
    // the file first: a timer without it would find nothing to take back
    write(host, &record)?;
    let timer = Timer {
        name: UNIT.to_owned(),
        description: "nodeagent: take back changes that nobody has confirmed".to_owned(),
        after: probation.window,
        command: probation.command.clone(),
    };
    if let Err(error) = host.systemd.start_timer(&timer).await {
        host.root.remove(PATH).map_err(ConfirmError::Write)?;
        return Err(ConfirmError::Arm(error).into());
    }
    log::info!(MESSAGE_ID = event::CONFIRM_ARMED; "changes are taken back at {until} unless `agent confirm` is run");
    Ok(until)
}

/// Ends it: the changes stay.
pub async fn confirm(host: &Host) -> Result<(), ConfirmError> {
    match read(host)? {
        Some(Record { status: Status::Pending, .. }) => {}
        _ => return Err(ConfirmError::Nothing),
    }
    // the file first: from here on a timer that goes off finds nothing to take back
    host.root.remove(PATH).map_err(ConfirmError::Write)?;
    log::info!(MESSAGE_ID = event::CONFIRMED; "the changes are confirmed");
    disarm(host).await;
    Ok(())
}

/// A timer that is left goes off, finds nothing, and is gone.
async fn disarm(host: &Host) {
    if let Err(error) = host.systemd.stop_timer(UNIT).await {
        log::warn!("stop {UNIT}.timer: {}", chain(&error));
    }
}

/// Before a run, with the lock held: takes back what nobody has confirmed in time, and says what the run must not do.
pub(super) async fn settle(engine: &Engine<'_>, options: &Options) -> Result<Option<String>, EngineError> {
    let host = engine.host;
    let Some(record) = read(host)? else { return Ok(None) };
    if options.keep_hold {
        return Ok(None);
    }
    let by_a_person = !options.obey_policy && !options.in_boot;
    // before sysinit.target there is no network to take a package back with: the next stage does it
    let can_take_back = options.stage > Stage::Early;
    let over = record.status == Status::Pending && is_over(host, &record)?;
    if over && can_take_back {
        let expired = take_back(host, options).await?;
        log::warn!("{}", expired.in_words());
    }
    match record.status {
        Status::Pending if !over && by_a_person => Err(ConfirmError::Pending { until: record.until }.into()),
        Status::Pending if !over => Ok(None),
        // whoever asks for it by hand has seen what it did
        _ if by_a_person => {
            host.root.remove(PATH).map_err(ConfirmError::Write)?;
            Ok(None)
        }
        Status::Reset => Ok(Some("this node was reset: `agent apply` makes it a node again".to_owned())),
        _ if record.desired_hash == engine.desired_hash(Stage::Activate) => Ok(Some(
            "this config was taken back because nobody confirmed it: change it, or run `agent apply` again".to_owned(),
        )),
        _ if can_take_back => {
            host.root.remove(PATH).map_err(ConfirmError::Write)?;
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// From here on neither the boot nor the timer changes anything, until a person applies a config.
pub fn hold_after_reset(host: &Host) -> Result<(), ConfirmError> {
    let record = Record {
        schema: SCHEMA,
        status: Status::Reset,
        until: host.clock.now(),
        boot_id: None,
        after: None,
        desired_hash: String::new(),
    };
    write(host, &record)
}

fn is_over(host: &Host, record: &Record) -> Result<bool, EngineError> {
    let boot = boot_id(host).map_err(EngineError::Identity)?;
    Ok(boot != record.boot_id || host.clock.now() >= record.until)
}

/// Takes everything on probation back, newest first, and remembers that it was not wanted. With the lock held.
pub async fn take_back(host: &Host, options: &Options) -> Result<Expired, EngineError> {
    let Some(mut record) = read(host)?.filter(|record| record.status == Status::Pending) else {
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
        expired.failures.extend(rollback::undo(host, &transaction, options).await?.failures);
        expired.transactions.push(id);
    }
    record.status = Status::Rejected;
    write(host, &record)?;
    disarm(host).await;
    Ok(expired)
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

fn write(host: &Host, record: &Record) -> Result<(), ConfirmError> {
    let owner = Ownership { mode: 0o700, uid: 0, gid: 0 };
    if !host.root.exists(STATE_DIR).map_err(ConfirmError::Write)? {
        host.root.make_directory(STATE_DIR, owner).map_err(ConfirmError::Write)?;
    }
    let mut json = serde_json::to_vec_pretty(record).map_err(ConfirmError::Damaged)?;
    json.push(b'\n');
    host.root.write(PATH, &json, Ownership { mode: 0o600, ..owner }).map_err(ConfirmError::Write)
}
