//! `agent adopt`: a person wants what the host has, though the config says otherwise.

use std::collections::BTreeSet;

use super::engine::Engine;
use super::error::EngineError;
use super::foreign;
use super::lock::Lock;
use super::options::Options;
use super::planned::Finding;
use super::state::{Adopted, Applied, Identity, State};
use crate::plan::{Outcome, ResourceId};

/// One resource that was asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// Which.
    pub id: ResourceId,
    /// What stays as it is; none where the host is as the config wants it.
    pub stays: Option<String>,
}

/// Has the differences of these stay. Changes nothing but what is remembered; nothing at all when one of them cannot be adopted.
pub async fn adopt(
    engine: &Engine<'_>,
    ids: &BTreeSet<ResourceId>,
    options: &Options,
) -> Result<Vec<Adoption>, EngineError> {
    let host = engine.host;
    let _lock = Lock::take(host, "agent adopt", options.patience).await?;
    let mut state = load(engine)?;
    let mut adoptions = Vec::new();
    for id in ids {
        let Some(resource) = engine.resource(id) else { continue };
        // as without what was adopted before: it may differ in another way by now
        let finding = engine.look(resource, None, &BTreeSet::new()).await.finding;
        let refused = |why: &str| EngineError::NotAdopted { id: id.clone(), why: why.to_owned() };
        let outcome = match finding {
            Finding::Observed(outcome) => outcome,
            Finding::Failed { error } => return Err(refused(&error)),
            Finding::Deferred { reason } => return Err(refused(&reason)),
        };
        let difference = foreign::difference(&outcome);
        if difference.is_none() && !matches!(outcome, Outcome::Converged { .. }) {
            return Err(refused(&foreign::in_words(&outcome)));
        }
        let stays = difference.is_some().then(|| foreign::in_words(&outcome));
        let at = host.clock.now();
        let before = state.resources.get(id).and_then(|applied| applied.transaction.clone());
        let adopted = difference.map(|difference| Adopted { difference, at });
        let applied = Applied { value: resource.applied(), transaction: before, adopted };
        state.resources.insert(id.clone(), applied);
        adoptions.push(Adoption { id: id.clone(), stays });
    }
    state.save(host)?;
    Ok(adoptions)
}

/// Has the config count again for these; those that were adopted.
pub async fn disown(
    engine: &Engine<'_>,
    ids: &BTreeSet<ResourceId>,
    options: &Options,
) -> Result<Vec<ResourceId>, EngineError> {
    let _lock = Lock::take(engine.host, "agent adopt --undo", options.patience).await?;
    let mut state = load(engine)?;
    let mut ended = Vec::new();
    for id in ids {
        if let Some(applied) = state.resources.get_mut(id)
            && applied.adopted.take().is_some()
        {
            ended.push(id.clone());
        }
    }
    if !ended.is_empty() {
        state.save(engine.host)?;
    }
    Ok(ended)
}

fn load(engine: &Engine<'_>) -> Result<State, EngineError> {
    let identity = Identity::read(engine.host).map_err(EngineError::Identity)?;
    Ok(State::load(engine.host)?.unwrap_or_else(|| State::new(identity)))
}
