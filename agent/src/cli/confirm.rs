//! `agent confirm`

use clap::Args;
use serde::Serialize;

use super::failure::Failure;
use super::{Global, output, session};
use crate::exit::Exit;
use crate::reconcile::confirm;

/// Keep the changes of `agent apply --confirm`, which are taken back otherwise
#[derive(Debug, Args)]
pub struct Confirm {}

#[derive(Serialize)]
struct Confirmed {
    confirmed: bool,
}

impl Confirm {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let host = session::open_host(global)?;
        confirm::confirm(&host).await?;
        if global.json {
            output::json(&Confirmed { confirmed: true });
        } else {
            output::say("the changes are confirmed and stay");
        }
        Ok(Exit::Converged)
    }
}
