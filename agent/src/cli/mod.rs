//! The command line: one subcommand per file.

mod adopt;
mod apply;
mod bake;
mod completions;
mod config;
mod confirm;
mod doctor;
mod explain;
pub mod failure;
mod man;
pub mod output;
mod plan;
mod reconcile;
pub mod render;
mod reset;
mod rollback;
mod schema;
mod session;
mod status;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use log::LevelFilter;

use crate::exit::{self, Exit};
use failure::Failure;
use output::ColorChoice;

/// Brings a CentOS-like host to the state of a Kubernetes node, and keeps it there.
#[derive(Debug, Parser)]
#[command(name = "agent", version, propagate_version = true, after_help = exit_codes(), max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Work on the tree in DIR, which does not run, instead of on this system
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Read the config from PATH, a file or a directory like /etc/nodeagent, instead of from the host
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Print JSON for scripts
    #[arg(long, global = true)]
    json: bool,
    /// off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", env = "NODEAGENT_LOG")]
    log_level: LevelFilter,
    /// When to colour what is printed
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

#[derive(Debug, Subcommand)]
enum Command {
    Plan(plan::Plan),
    Apply(apply::Apply),
    Reconcile(reconcile::Reconcile),
    Status(status::Status),
    Doctor(doctor::Doctor),
    Bake(bake::Bake),
    Adopt(adopt::Adopt),
    Confirm(confirm::Confirm),
    Rollback(rollback::Rollback),
    Reset(reset::Reset),
    Explain(explain::Explain),
    Config(config::Config),
    Schema(schema::Schema),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Cli {
    /// How much to log.
    pub fn log_level(&self) -> LevelFilter {
        self.global.log_level
    }

    /// Runs the command and says how it ended; what went wrong is printed here.
    pub async fn run(self) -> Exit {
        let global = self.global;
        let result = match self.command {
            Command::Plan(command) => command.run(&global).await,
            Command::Apply(command) => command.run(&global).await,
            Command::Reconcile(command) => command.run(&global).await,
            Command::Status(command) => command.run(&global).await,
            Command::Doctor(command) => command.run(&global).await,
            Command::Bake(command) => command.run(&global).await,
            Command::Adopt(command) => command.run(&global).await,
            Command::Confirm(command) => command.run(&global).await,
            Command::Rollback(command) => command.run(&global).await,
            Command::Reset(command) => command.run(&global).await,
            Command::Explain(command) => command.run(&global),
            Command::Config(command) => command.run(&global),
            Command::Schema(command) => command.run(),
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        };
        result.unwrap_or_else(|failure: Failure| {
            failure.print(global.json);
            failure.exit
        })
    }
}

fn exit_codes() -> String {
    let lines: Vec<_> = exit::ALL.iter().map(|(exit, text)| format!("  {:>2}  {text}", exit.code())).collect();
    format!("Exit codes:\n{}", lines.join("\n"))
}
