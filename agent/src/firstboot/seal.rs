//! What a baked tree leaves for its first boot: `/var/lib/nodeagent/sealed-plan.json`.
//!
//! Only a running system can load a module or start a unit, so a bake cannot plan these; it names them and what was wanted of
//! each. The first boot plans them anew from the config, and compares: an image whose config is not the one that it was baked
//! with is told apart from one that is as it was tested.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::host::root::Ownership;
use crate::host::{Host, RootError};
use crate::plan::{ResourceId, Stage};
use crate::reconcile::{Engine, Report, ResourceState, STATE_DIR};

/// The sealed plan.
pub const SEAL_PATH: &str = "/var/lib/nodeagent/sealed-plan.json";

const SCHEMA: u32 = 1;

/// Why the sealed plan could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Reading.
    #[error("read sealed plan")]
    Read(#[source] RootError),
    /// Not what a bake writes.
    #[error("sealed plan {SEAL_PATH} is damaged; bake the image again, or remove the file")]
    Damaged(#[source] serde_json::Error),
    /// Writing.
    #[error("write sealed plan")]
    Write(#[source] RootError),
}

/// What is left for the first boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedPlan {
    schema: u32,
    /// The agent that baked.
    agent_version: String,
    /// In the order of execution.
    pub steps: Vec<SealedStep>,
}

/// One resource that waits for its first boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedStep {
    /// Which.
    pub id: ResourceId,
    /// In which stage of the boot it will be done.
    pub stage: Stage,
    /// What is wanted of it, in its own words.
    pub desired: Value,
    /// Why it could not be done in a tree.
    pub reason: String,
}

/// Writes down what this bake has left. The same again writes nothing.
pub fn seal(engine: &Engine<'_>, host: &Host, report: &Report) -> Result<SealedPlan, SealError> {
    let deferred = report.resources.iter().filter(|entry| entry.state == ResourceState::Deferred);
    let steps = deferred.filter_map(|entry| {
        let resource = engine.resource(&entry.id)?;
        Some(SealedStep {
            id: entry.id.clone(),
            stage: resource.stage(),
            desired: resource.applied(),
            reason: entry.detail.clone(),
        })
    });
    let plan =
        SealedPlan { schema: SCHEMA, agent_version: env!("CARGO_PKG_VERSION").to_owned(), steps: steps.collect() };
    if read(host).ok().flatten().as_ref() == Some(&plan) {
        return Ok(plan);
    }
    if plan.steps.is_empty() {
        open(host)?;
        return Ok(plan);
    }
    let owner = Ownership { mode: 0o700, uid: 0, gid: 0 };
    if !host.root.exists(STATE_DIR).map_err(SealError::Write)? {
        host.root.make_directory(STATE_DIR, owner).map_err(SealError::Write)?;
    }
    let mut json = serde_json::to_vec_pretty(&plan).map_err(SealError::Damaged)?;
    json.push(b'\n');
    host.root.write(SEAL_PATH, &json, Ownership { mode: 0o600, ..owner }).map_err(SealError::Write)?;
    Ok(plan)
}

/// The sealed plan, if the tree was baked.
pub fn read(host: &Host) -> Result<Option<SealedPlan>, SealError> {
    let Some(bytes) = host.root.read(SEAL_PATH).map_err(SealError::Read)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(SealError::Damaged)
}

/// What differs between what the image was baked for and what this config wants.
pub(super) fn differences(plan: &SealedPlan, engine: &Engine<'_>) -> Vec<String> {
    let difference = |step: &SealedStep| match engine.resource(&step.id) {
        None => Some(format!("{} was sealed by the bake and is no longer in the config", step.id)),
        Some(resource) if resource.applied() != step.desired => {
            Some(format!("{} was sealed by the bake with other settings than the config has now", step.id))
        }
        Some(_) => None,
    };
    plan.steps.iter().filter_map(difference).collect()
}

/// The first boot is done: nothing is left over.
pub(super) fn open(host: &Host) -> Result<(), SealError> {
    host.root.remove(SEAL_PATH).map_err(SealError::Write).map(drop)
}
