//! A run on probation: armed before its first change, and settled before the next run.

use jiff::{SignedDuration, Timestamp};

use super::confirm::{self, ConfirmError, Probation, Record, Status};
use super::engine::Engine;
use super::error::EngineError;
use super::options::Options;
use super::rollback;
use super::state::boot_id;
use super::transaction::Transaction;
use crate::host::Host;
use crate::host::systemd::Timer;
use crate::plan::Stage;
use crate::telemetry::event;

/// Begins a probation: from here on the changes are taken back unless somebody confirms them.
pub(super) async fn arm(engine: &Engine<'_>, probation: &Probation) -> Result<Timestamp, EngineError> {
    let host = engine.host;
    let window = SignedDuration::try_from(probation.window).unwrap_or(SignedDuration::from_hours(24));
    let until = host.clock.now() + window;
    let record = Record {
        schema: confirm::SCHEMA,
        status: Status::Pending,
        until,
        boot_id: boot_id(host).map_err(EngineError::Identity)?,
        after: Transaction::list(host)?.pop(),
        desired_hash: engine.desired_hash(Stage::Activate),
    };
    // the file first: a timer without it would find nothing to take back
    confirm::write(host, &record)?;
    let timer = Timer {
        name: confirm::UNIT.to_owned(),
        description: "nodeagent: take back changes that nobody has confirmed".to_owned(),
        after: probation.window,
        command: probation.command.clone(),
    };
    if let Err(error) = host.systemd.start_timer(&timer).await {
        host.root.remove(confirm::PATH).map_err(ConfirmError::Write)?;
        return Err(ConfirmError::Arm(error).into());
    }
    log::info!(MESSAGE_ID = event::CONFIRM_ARMED; "changes are taken back at {until} unless `agent confirm` is run");
    Ok(until)
}

/// Before a run, with the lock held: takes back what nobody has confirmed in time, and says what the run must not do.
pub(super) async fn settle(engine: &Engine<'_>, options: &Options) -> Result<Option<String>, EngineError> {
    let host = engine.host;
    let Some(record) = confirm::read(host)? else { return Ok(None) };
    if options.keep_hold {
        return Ok(None);
    }
    let by_a_person = !options.obey_policy && !options.in_boot;
    // before sysinit.target there is no network to take a package back with: the next stage does it
    let can_take_back = options.stage > Stage::Early;
    let over = record.status == Status::Pending && is_over(host, &record)?;
    if over && can_take_back {
        let expired = rollback::take_back(host, options).await?;
        log::warn!("{}", expired.in_words());
    }
    match record.status {
        Status::Pending if !over && by_a_person => Err(ConfirmError::Pending { until: record.until }.into()),
        Status::Pending if !over => Ok(None),
        // whoever asks for it by hand has seen what it did
        _ if by_a_person => {
            host.root.remove(confirm::PATH).map_err(ConfirmError::Write)?;
            Ok(None)
        }
        Status::Reset => Ok(Some("this node was reset: `agent apply` makes it a node again".to_owned())),
        _ if record.desired_hash == engine.desired_hash(Stage::Activate) => Ok(Some(
            "this config was taken back because nobody confirmed it: change it, or run `agent apply` again".to_owned(),
        )),
        _ if can_take_back => {
            host.root.remove(confirm::PATH).map_err(ConfirmError::Write)?;
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn is_over(host: &Host, record: &Record) -> Result<bool, EngineError> {
    let boot = boot_id(host).map_err(EngineError::Identity)?;
    Ok(boot != record.boot_id || host.clock.now() >= record.until)
}
