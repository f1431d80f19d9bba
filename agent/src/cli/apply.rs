//! `agent apply`

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::failure::Failure;
use super::session::Session;
use super::{Global, output, render};
use crate::config::settings::RemovedPolicy;
use crate::config::value::Span;
use crate::exit::Exit;
use crate::firstboot;
use crate::plan::Stage;
use crate::reconcile::confirm::Probation;
use crate::reconcile::lock::Patience;
use crate::reconcile::state::State;
use crate::reconcile::{Engine, EngineError, Options, Report};

/// The boot waits for a run that somebody else has under way; a person is told about it.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);

/// Bring the host to the state of its config
///
/// On a terminal the plan is shown first, and applied when you agree. Without one, --yes is needed.
#[derive(Debug, Args)]
pub struct Apply {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Do what this stage of the boot does, as its unit runs it
    #[arg(long)]
    stage: Option<Stage>,
    /// Undo everything when anything fails
    #[arg(long)]
    atomic: bool,
    /// What becomes of what was applied for a resource that has left the config, instead of reconcile.removed
    #[arg(long, value_name = "POLICY")]
    removed: Option<RemovedPolicy>,
    /// Take all of it back after this time, unless `agent confirm` is run before
    #[arg(long, value_name = "SPAN", conflicts_with = "stage")]
    confirm: Option<Span>,
}

impl Apply {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let mut session = Session::open(global)?;
        session.override_removed(self.removed);
        let engine = session.engine()?;
        let mut options = Options::new("apply");
        options.atomic = self.atomic;
        if let Some(window) = self.confirm {
            options.probation = Some(probation(&session, window, global)?);
        }
        if !self.yes && !agreed(&session, &engine, self.stage, global).await? {
            return Ok(Exit::Differences);
        }
        let report = match self.stage {
            Some(stage) => {
                options.stage = stage;
                options.in_boot = true;
                options.patience = match stage {
                    Stage::Activate => Patience::For(BOOT_PATIENCE),
                    Stage::Early | Stage::Prepare => Patience::ForThoseBefore(BOOT_PATIENCE),
                };
                firstboot::run(&engine, &session.config.settings, &session.host, &options).await?
            }
            None => engine.run(&options).await?,
        };
        Ok(show(&report, global))
    }
}

/// What the timer has to run: this very program, on the files of this host alone.
fn probation(session: &Session, window: Span, global: &Global) -> Result<Probation, Failure> {
    if session.host.is_offline() {
        return Err(Failure::precondition("a tree that does not run has no timer: leave out --confirm"));
    }
    if window.duration().is_zero() {
        return Err(Failure::precondition("--confirm 0s would take everything back at once: give some time"));
    }
    let program = std::env::current_exe()
        .map_err(|error| Failure::precondition(format!("find the path of this program: {error}")))?;
    let program = program.to_string_lossy();
    let words = [program.as_ref(), "--log-level", global.log_level.as_str(), "rollback", "--unconfirmed", "--yes"];
    Ok(Probation { window: window.duration(), command: words.map(str::to_owned).to_vec() })
}

/// Shows the plan and asks. True when there is nothing to agree to.
async fn agreed(
    session: &Session,
    engine: &Engine<'_>,
    stage: Option<Stage>,
    global: &Global,
) -> Result<bool, Failure> {
    let state = State::load(&session.host).map_err(EngineError::from)?;
    let plan = engine.plan(stage.unwrap_or(Stage::Activate), state.as_ref()).await;
    if plan.is_empty() {
        return Ok(true);
    }
    if global.json || !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Failure::precondition("there is no terminal to ask on: pass --yes to apply without being asked"));
    }
    output::say(&render::plan(&plan, true, global.color.resolve()));
    drop(write!(std::io::stdout(), "\nApply these {} changes? [y/N] ", plan.changes().count()));
    drop(std::io::stdout().flush());
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::precondition(format!("read the answer: {error}")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Prints a report and takes its exit code.
pub(super) fn show(report: &Report, global: &Global) -> Exit {
    if global.json {
        output::json(report);
    } else {
        output::say(&render::report(report, global.color.resolve()));
    }
    report.exit()
}
