//! Changes on probation: taken back by themselves unless somebody confirms them in time.
//!
//! `apply --confirm 10m` writes down what it is about to do and arms a timer of systemd's before the first change, so that the
//! timer goes off even when this process, or the network that the person came over, is gone. A reboot ends the probation too:
//! the timer does not outlive it, and a host that had to be rebooted was not confirmed. A config that was taken back is not
//! applied again by the boot or by `reconcile`: only by a person, or when it changes.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::STATE_DIR;
use crate::host::root::Ownership;
use crate::host::{Host, RootError};
use crate::telemetry::{chain, event};

/// Where the probation is written down.
pub const PATH: &str = "/var/lib/nodeagent/confirm.json";

/// The timer and the service that it starts, without their endings.
pub const UNIT: &str = "nodeagent-unconfirmed";

pub(super) const SCHEMA: u32 = 1;

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
    pub(super) schema: u32,
    /// How it stands.
    pub status: Status,
    /// When the changes are taken back.
    pub until: Timestamp,
    pub(super) boot_id: Option<String>,
    /// The last transaction before: everything later is on probation.
    pub(super) after: Option<String>,
    /// Names the config that is on probation.
    pub(super) desired_hash: String,
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

/// What is written down, if anything is.
pub fn read(host: &Host) -> Result<Option<Record>, ConfirmError> {
    let Some(bytes) = host.root.read(PATH).map_err(ConfirmError::Read)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(ConfirmError::Damaged)
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
pub(super) async fn disarm(host: &Host) {
    if let Err(error) = host.systemd.stop_timer(UNIT).await {
        log::warn!("stop {UNIT}.timer: {}", chain(&error));
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

pub(super) fn write(host: &Host, record: &Record) -> Result<(), ConfirmError> {
    let owner = Ownership { mode: 0o700, uid: 0, gid: 0 };
    if !host.root.exists(STATE_DIR).map_err(ConfirmError::Write)? {
        host.root.make_directory(STATE_DIR, owner).map_err(ConfirmError::Write)?;
    }
    let mut json = serde_json::to_vec_pretty(record).map_err(ConfirmError::Damaged)?;
    json.push(b'\n');
    host.root.write(PATH, &json, Ownership { mode: 0o600, ..owner }).map_err(ConfirmError::Write)
}
