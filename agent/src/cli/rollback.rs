//! `agent rollback`

use clap::Args;
use serde::Serialize;

use super::failure::Failure;
use super::session::Session;
use super::{Global, output, render};
use crate::exit::Exit;
use crate::reconcile::{Options, rollback};

/// Take the last transaction back, or the one that is named
///
/// Only the last transaction that has an effect can be taken back: undo data of an earlier one describes a host that has
/// changed since. Shows the steps; --yes takes them.
#[derive(Debug, Args)]
pub struct Rollback {
    /// Id of the transaction, as in `agent status`
    transaction: Option<String>,
    /// Do it, instead of showing what would be done
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
struct Outcome<'a> {
    transaction: &'a str,
    done: bool,
    steps: Vec<String>,
    failures: &'a [String],
}

impl Rollback {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let session = Session::open(global)?;
        let engine = session.engine()?;
        let transaction = rollback::candidate(&engine, self.transaction.as_deref())?;
        let id = transaction.begin.id.clone();
        let steps: Vec<String> = transaction.to_undo().map(|step| render::undo(&step.undo)).collect();
        if !self.yes {
            if global.json {
                output::json(&Outcome { transaction: &id, done: false, steps, failures: &[] });
            } else {
                let list = steps.join("\n  ");
                output::say(&format!("Rolling back transaction {id} would\n  {list}\nPass --yes to do it."));
            }
            return Ok(Exit::Differences);
        }
        let done = rollback::rollback(&engine, Some(&id), &Options::new("rollback")).await?;
        if global.json {
            output::json(&Outcome { transaction: &done.id, done: true, steps, failures: &done.failures });
        } else if done.failures.is_empty() {
            output::say(&format!("transaction {} is undone, {} steps", done.id, steps.len()));
        } else {
            output::complain(&format!("transaction {} is undone in part:\n  {}", done.id, done.failures.join("\n  ")));
        }
        Ok(if done.failures.is_empty() { Exit::Converged } else { Exit::UndoFailed })
    }
}
