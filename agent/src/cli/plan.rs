//! `agent plan`

use clap::Args;

use super::failure::Failure;
use super::session::Session;
use super::{Global, output, render};
use crate::config::settings::RemovedPolicy;
use crate::exit::Exit;
use crate::plan::Stage;
use crate::reconcile::planned::Planned;
use crate::reconcile::state::State;

/// Show what apply would do, without doing it
///
/// Files are shown as a unified diff, values as old → new. Exits with 0 when there is nothing to do, 2 when there is, and
/// 3 when a resource is blocked or cannot be looked at.
#[derive(Debug, Args)]
pub struct Plan {
    /// Only what this stage of the boot would do
    #[arg(long, default_value = "activate")]
    stage: Stage,
    /// List the changes without their diffs
    #[arg(long)]
    brief: bool,
    /// What becomes of what was applied for a resource that has left the config, instead of reconcile.removed
    #[arg(long, value_name = "POLICY")]
    removed: Option<RemovedPolicy>,
}

impl Plan {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let mut session = Session::open(global)?;
        session.override_removed(self.removed);
        let engine = session.engine()?;
        let state = State::load(&session.host).map_err(crate::reconcile::EngineError::from)?;
        let plan = engine.plan(self.stage, state.as_ref()).await;
        if global.json {
            output::json(&render::public(&plan));
        } else {
            output::say(&render::plan(&plan, !self.brief, global.color.resolve()));
        }
        Ok(if plan.resources.iter().any(Planned::is_obstacle) {
            Exit::Degraded
        } else if plan.is_empty() && !plan.resources.iter().any(Planned::is_conflict) {
            Exit::Converged
        } else {
            Exit::Differences
        })
    }
}
