//! `agent explain`

use clap::Args;
use serde::Serialize;

use super::failure::Failure;
use super::session::Session;
use super::{Global, output};
use crate::exit::Exit;
use crate::plan::ResourceId;

/// Say what a resource does, which files it owns, and how to look at it by hand
#[derive(Debug, Args)]
pub struct Explain {
    /// As in `agent status`: KIND/NAME; without it all of this host's are listed
    resource: Option<ResourceId>,
}

#[derive(Serialize)]
struct Explanation {
    id: ResourceId,
    needs: Vec<ResourceId>,
    text: String,
}

impl Explain {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let session = Session::open(global)?;
        let engine = session.engine()?;
        let explanations: Vec<Explanation> = engine
            .ids()
            .filter(|id| self.resource.as_ref().is_none_or(|wanted| wanted == *id))
            .filter_map(|id| engine.resource(id))
            .map(|resource| Explanation {
                id: resource.id().clone(),
                needs: resource.needs(),
                text: resource.explain(),
            })
            .collect();
        if let (Some(wanted), true) = (&self.resource, explanations.is_empty()) {
            return Err(Failure::no_resource(wanted, engine.ids()));
        }
        if global.json {
            output::json(&explanations);
        } else {
            for explanation in &explanations {
                output::say(&format!("{}\n{}\n", explanation.id, indent(explanation.text.trim_end())));
            }
        }
        Ok(Exit::Converged)
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}").trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
