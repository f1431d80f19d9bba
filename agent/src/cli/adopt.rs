//! `agent adopt`

use std::collections::BTreeSet;

use clap::Args;
use serde::Serialize;

use super::failure::Failure;
use super::session::Session;
use super::{Global, output};
use crate::exit::Exit;
use crate::plan::ResourceId;
use crate::reconcile::{Options, adopt};

/// Have what somebody has changed on the host stay, though the config says otherwise
///
/// What a resource differs in now is neither repaired nor reported any more. Another difference is drift again, and a config that
/// wants something else of the resource is applied. Nothing is changed on the host. For a resource that others change again and
/// again there is `keep` in reconcile.overrides.
#[derive(Debug, Args)]
pub struct Adopt {
    /// As in `agent plan`: KIND/NAME
    #[arg(required = true)]
    resources: Vec<ResourceId>,
    /// Have the config count again
    #[arg(long)]
    undo: bool,
}

#[derive(Serialize)]
struct Adopted {
    id: ResourceId,
    /// What stays; none where the host is as the config wants it.
    stays: Option<String>,
    adopted: bool,
}

impl Adopt {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let session = Session::open(global)?;
        let engine = session.engine()?;
        let ids: BTreeSet<ResourceId> = self.resources.into_iter().collect();
        if let Some(unknown) = ids.iter().find(|id| engine.resource(id).is_none()) {
            return Err(Failure::no_resource(unknown, engine.ids()));
        }
        let options = Options::new("adopt");
        let all: Vec<Adopted> = if self.undo {
            let ended = adopt::disown(&engine, &ids, &options).await?;
            ended.into_iter().map(|id| Adopted { id, stays: None, adopted: false }).collect()
        } else {
            let adoptions = adopt::adopt(&engine, &ids, &options).await?;
            let entry = |it: adopt::Adoption| Adopted { adopted: it.stays.is_some(), id: it.id, stays: it.stays };
            adoptions.into_iter().map(entry).collect()
        };
        if global.json {
            output::json(&all);
        } else {
            all.iter().for_each(|entry| output::say(&in_words(entry, self.undo)));
            if all.is_empty() {
                output::say("none of these was adopted");
            }
        }
        Ok(Exit::Converged)
    }
}

fn in_words(entry: &Adopted, undo: bool) -> String {
    match &entry.stays {
        Some(stays) => format!("{}: stays as it is, though {stays}", entry.id),
        None if undo => format!("{}: the config counts again", entry.id),
        None => format!("{}: is as the config wants it; nothing to adopt", entry.id),
    }
}
