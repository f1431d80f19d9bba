//! `agent reset`

use clap::Args;

use super::failure::Failure;
use super::session::Session;
use super::{Global, apply, output, render};
use crate::config::settings::RemovedPolicy;
use crate::exit::Exit;
use crate::plan::Stage;
use crate::reconcile::reset::ClusterReset;
use crate::reconcile::state::State;
use crate::reconcile::{Engine, EngineError, Options, confirm};

/// Make this node a plain host again
///
/// Stops the kubelet, removes its pods, their mounts and what the cluster left, and takes back everything that the agent did,
/// last change first. What somebody else has changed since is reported and left. Shows the plan; --yes does it. Afterwards
/// neither the boot nor the timer applies the config again: `agent apply` does.
#[derive(Debug, Args)]
pub struct Reset {
    /// Do it, instead of showing what would be done
    #[arg(long, short)]
    yes: bool,
}

impl Reset {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let mut session = Session::open(global)?;
        if session.host.is_offline() {
            return Err(Failure::precondition(
                "a tree that does not run has no pods: roll its transactions back instead",
            ));
        }
        session.override_removed(Some(RemovedPolicy::Undo));
        let settings = &session.config.settings;
        // nothing else is wanted: all that was applied has left the config
        let cluster = ClusterReset::new(settings.runtime.socket.as_str());
        let engine = Engine::new(&session.host, &session.platform, &settings.reconcile, vec![Box::new(cluster)])?;
        if !self.yes {
            let state = State::load(&session.host).map_err(EngineError::from)?;
            let plan = engine.plan(Stage::Activate, state.as_ref()).await;
            if global.json {
                output::json(&render::public(&plan));
            } else {
                output::say(&render::plan(&plan, true, global.color.resolve()));
                output::say("Pass --yes to do it.");
            }
            return Ok(if plan.is_empty() { Exit::Converged } else { Exit::Differences });
        }
        // before the first change: a boot in the middle must not make it a node again
        confirm::hold_after_reset(&session.host).map_err(EngineError::from)?;
        let report = engine.run(&Options { keep_hold: true, ..Options::new("reset") }).await?;
        Ok(apply::show(&report, global))
    }
}
