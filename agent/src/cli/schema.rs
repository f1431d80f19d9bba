//! `agent schema`

use clap::{Args, ValueEnum};

use super::failure::Failure;
use super::{output, render};
use crate::config::fragment::Fragment;
use crate::exit::Exit;
use crate::reconcile::Report;

/// Print the JSON schema of the config, or of what --json prints
#[derive(Debug, Args)]
pub struct Schema {
    /// Of what
    #[arg(default_value = "config")]
    of: Subject,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Subject {
    /// A config file
    Config,
    /// `agent status --json`, /run/nodeagent/status.json, and apply, reconcile and bake with --json
    Status,
    /// `agent plan --json`
    Plan,
    /// `agent doctor --json`
    Doctor,
}

impl Schema {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        output::json(&match self.of {
            Subject::Config => schemars::schema_for!(Fragment),
            Subject::Status => schemars::schema_for!(Report),
            Subject::Plan => schemars::schema_for!(render::PublicPlan),
            Subject::Doctor => schemars::schema_for!(super::doctor::Diagnosis),
        });
        Ok(Exit::Converged)
    }
}
