//! `agent rollback`

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::failure::Failure;
use super::session::Session;
use super::{Global, output, session};
use crate::exit::Exit;
use crate::reconcile::lock::Patience;
use crate::reconcile::{Options, confirm, rollback};

/// Take the last transaction back, or the one that is named
///
/// Only the last transaction that has an effect can be taken back: undo data of an earlier one describes a host that has
/// changed since. Shows the steps; --yes takes them.
#[derive(Debug, Args)]
pub struct Rollback {
    /// Id of the transaction, as in `agent status`
    transaction: Option<String>,
    /// Take back what `agent apply --confirm` did and nobody has confirmed; its timer runs this
    #[arg(long, conflicts_with = "transaction")]
    unconfirmed: bool,
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
        if self.unconfirmed {
            return unconfirmed(self.yes, global).await;
        }
        let session = Session::open(global)?;
        let engine = session.engine()?;
        let transaction = rollback::candidate(&engine, self.transaction.as_deref())?;
        let id = transaction.begin.id.clone();
        let steps: Vec<String> = transaction.to_undo().map(|step| step.undo.to_string()).collect();
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

/// The boot or a run may be at it; the timer goes off only once.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Needs no config: one that is broken by now is a reason to take it back.
async fn unconfirmed(yes: bool, global: &Global) -> Result<Exit, Failure> {
    let host = session::open_host(global)?;
    let pending = confirm::read(&host)?.filter(|record| record.status == confirm::Status::Pending);
    let Some(record) = pending else {
        output::say("no changes wait for a confirmation");
        return Ok(Exit::Converged);
    };
    if !yes {
        output::say(&format!("changes are taken back at {}. Pass --yes to do it now.", record.until));
        return Ok(Exit::Differences);
    }
    let expired =
        rollback::unconfirmed(&host, &Options { patience: Patience::For(PATIENCE), ..Options::new("rollback") })
            .await?;
    if global.json {
        let ids = expired.transactions.join(",");
        output::json(&Outcome { transaction: &ids, done: true, steps: Vec::new(), failures: &expired.failures });
    } else {
        output::say(&expired.in_words());
    }
    Ok(if expired.failures.is_empty() { Exit::Converged } else { Exit::UndoFailed })
}
