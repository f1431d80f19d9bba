//! The first boot: what its three units run, a stamp that is bound to this very system, and a marker while it is under way.
//!
//! - *early*, on every boot before sysinit.target: modules and kernel parameters. It never looks at the stamp.
//! - *prepare*, before the runtime and the kubelet: packages, files, units. It may enqueue units that are ordered after it,
//!   never wait for them.
//! - *activate*, after the runtime: everything, and the proof that the runtime answers; then the stamp.
//!
//! With a stamp of this system and nothing left over from a crash, prepare and activate leave at once.

mod runtime;
pub mod seal;
mod stamp;

use crate::config::settings::Settings;
use crate::exit::Exit;
use crate::host::Host;
use crate::plan::Stage;
use crate::reconcile::lock::LockError;
use crate::reconcile::state::Identity;
use crate::reconcile::transaction::Transaction;
use crate::reconcile::{Engine, EngineError, Options, Report};
use crate::telemetry::{chain, event};

pub use stamp::{MARKER_PATH, STAMP_PATH, StampError};

/// Why a stage of the first boot could not be run.
#[derive(Debug, thiserror::Error)]
pub enum FirstBootError {
    /// The run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The stamp.
    #[error(transparent)]
    Stamp(#[from] StampError),
    /// What the bake has left.
    #[error(transparent)]
    Seal(#[from] seal::SealError),
}

/// True when the first boot is done, on the system with this identity. A stamp that cannot be read is none: the worst that
/// comes of it is a run that finds nothing to do.
pub fn is_done(host: &Host, identity: &Identity) -> bool {
    match stamp::read(host) {
        Ok(Some(stamp)) => !identity.differs_from(&stamp.identity),
        Ok(None) => false,
        Err(error) => {
            log::warn!("{}", chain(&error));
            false
        }
    }
}

/// One stage, as its unit runs it.
pub async fn run(
    engine: &Engine<'_>,
    settings: &Settings,
    host: &Host,
    options: &Options,
) -> Result<Report, FirstBootError> {
    if options.stage == Stage::Early {
        return Ok(engine.run(options).await?);
    }
    let identity = Identity::read(host).map_err(EngineError::Identity)?;
    let interrupted = !Transaction::unfinished(host).map_err(EngineError::from)?.is_empty();
    if is_done(host, &identity) && !interrupted {
        return Ok(nothing_to_do(host, options));
    }
    stamp::begin(host, &identity, options.stage)?;
    let mut report = match engine.run(options).await {
        // All that this stage does, that run does too, or activate after it. Waiting for it would be waiting for ourselves.
        Err(EngineError::Lock(LockError::Ahead { holder, .. })) if options.stage == Stage::Prepare => {
            log::info!("leaving the host to another run: {holder}");
            return Ok(left_to(host, options, &holder));
        }
        run => run?,
    };
    if options.stage == Stage::Activate {
        report.notes.extend(seal::read(host)?.iter().flat_map(|plan| seal::differences(plan, engine)));
        runtime::prove(host, &settings.runtime, &mut report).await;
        if matches!(report.exit(), Exit::Converged | Exit::RebootRequired | Exit::Differences) {
            stamp::finish(host, &identity)?;
            seal::open(host)?;
            report.first_boot_done = true;
            log::info!(MESSAGE_ID = event::FIRST_BOOT_DONE; "the first boot is done");
        }
        report.publish(host).map_err(EngineError::Publish)?;
    }
    Ok(report)
}

fn nothing_to_do(host: &Host, options: &Options) -> Report {
    let mut report = ended(host, options, "the first boot is done on this system; reconcile looks after it".to_owned());
    report.first_boot_done = true;
    report
}

fn left_to(host: &Host, options: &Options, holder: &str) -> Report {
    ended(host, options, format!("nothing was done, the host is left to another run: {holder}"))
}

/// A report of a run that was not needed.
fn ended(host: &Host, options: &Options, why: String) -> Report {
    let now = host.clock.now();
    let mut report = Report::begin(options.command, options.stage, now);
    report.notes.push(why);
    report.finished = Some(now.to_string());
    report.exit_code = Some(Exit::Converged.code());
    report
}
