//! `agent bake`

use clap::Args;

use super::failure::Failure;
use super::session::Session;
use super::{Global, apply};
use crate::exit::Exit;
use crate::firstboot::seal;
use crate::reconcile::Options;

/// Prepare a tree that does not run: an image, or a system that is being installed
///
/// Needs --root, or to run where a running system is not (kickstart's %post, a container build). Nothing of the tree is
/// executed. What only a running system can do is left for its first boot: listed as deferred, and written down in
/// /var/lib/nodeagent/sealed-plan.json, with which the first boot compares what its config wants.
#[derive(Debug, Args)]
pub struct Bake {
    /// Undo everything when anything fails
    #[arg(long)]
    atomic: bool,
}

impl Bake {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let session = Session::open(global)?;
        if !session.host.is_offline() {
            return Err(Failure::precondition("this is a running system: bake needs --root DIR (or use apply)"));
        }
        let engine = session.engine()?;
        let options = Options { atomic: self.atomic, ..Options::new("bake") };
        let report = engine.run(&options).await?;
        seal::seal(&engine, &session.host, &report)?;
        Ok(apply::show(&report, global))
    }
}
