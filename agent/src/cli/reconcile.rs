//! `agent reconcile`

use clap::Args;

use super::failure::Failure;
use super::session::Session;
use super::{Global, apply};
use crate::exit::Exit;
use crate::reconcile::Options;

/// Find what has drifted, and repair it where the policy says so
///
/// As apply, but it obeys reconcile.policy and its overrides, and stops repairing what is changed back again and again.
/// The timer and path units run it.
#[derive(Debug, Args)]
pub struct Reconcile {
    /// Undo everything when anything fails
    #[arg(long)]
    atomic: bool,
}

impl Reconcile {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let session = Session::open(global)?;
        let engine = session.engine()?;
        let options = Options { atomic: self.atomic, obey_policy: true, ..Options::new("reconcile") };
        let report = engine.run(&options).await?;
        Ok(apply::show(&report, global))
    }
}
