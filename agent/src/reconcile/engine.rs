//! The resources of a host, in their order: looks at them, and drives runs.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;

use super::error::EngineError;
use super::foreign;
use super::graph::Graph;
use super::leftover::Leftover;
use super::origin::Origins;
use super::planned::{Finding, Plan, Planned, digest};
use super::state::{Applied, State};
use crate::config::settings::ReconcileSettings;
use crate::host::dnf::PackageQuery;
use crate::host::{Host, Platform};
use crate::notify::Notifier;
use crate::plan::{Outcome, ResourceId, Stage};
use crate::resource::{PlanContext, Resource};
use crate::telemetry::chain;

/// Host, resources and how they depend on each other.
pub struct Engine<'h> {
    pub(super) host: &'h Host,
    pub(super) platform: &'h Platform,
    pub(super) resources: BTreeMap<ResourceId, Box<dyn Resource>>,
    pub(super) graph: Graph,
    pub(super) policy: &'h ReconcileSettings,
    pub(super) notifier: Notifier,
    only: Option<BTreeSet<ResourceId>>,
}

impl<'h> Engine<'h> {
    /// Orders the resources. Those that were applied and have left the config are added.
    pub fn new(
        host: &'h Host,
        platform: &'h Platform,
        policy: &'h ReconcileSettings,
        resources: Vec<Box<dyn Resource>>,
    ) -> Result<Engine<'h>, EngineError> {
        let mut resources = resources;
        let known: BTreeSet<ResourceId> = resources.iter().map(|resource| resource.id().clone()).collect();
        // most of the time nothing has left the config, and then the larger file is not read
        let left = State::load(host)?.is_some_and(|state| state.resources.keys().any(|id| !known.contains(id)));
        if left {
            let leftovers = Leftover::all(&Origins::load(host)?, |id| known.contains(id), policy.removed);
            resources.extend(leftovers.into_iter().map(|leftover| Box::new(leftover) as Box<dyn Resource>));
        }
        let edges: Vec<_> = resources.iter().map(|resource| (resource.id().clone(), resource.needs())).collect();
        let graph = Graph::new(&edges)?;
        let resources = resources.into_iter().map(|resource| (resource.id().clone(), resource)).collect();
        Ok(Engine { host, platform, resources, graph, policy, notifier: Notifier::from_environment(), only: None })
    }

    /// Only these, and what they need: the rest is neither looked at nor changed.
    pub fn limited_to(mut self, ids: &BTreeSet<ResourceId>) -> Engine<'h> {
        let mut only: BTreeSet<ResourceId> = BTreeSet::new();
        let mut open: Vec<ResourceId> = ids.iter().cloned().collect();
        while let Some(id) = open.pop() {
            open.extend(self.graph.needs(&id).cloned());
            only.insert(id);
        }
        self.only = Some(only);
        self
    }

    /// The resource of this name.
    pub fn resource(&self, id: &ResourceId) -> Option<&dyn Resource> {
        self.resources.get(id).map(AsRef::as_ref)
    }

    /// All names, in the order of execution.
    pub fn ids(&self) -> impl Iterator<Item = &ResourceId> {
        self.graph.order()
    }

    /// Looks at everything up to `stage` and says what has to be done. Changes nothing.
    pub async fn plan(&self, stage: Stage, state: Option<&State>) -> Plan {
        let applied = state.map(|state| &state.resources);
        let looked_at = self.resources.values().filter(|resource| resource.stage() <= stage);
        let packages = PackageQuery::about(looked_at.flat_map(|resource| resource.packages()));
        let mut resources: Vec<Planned> = Vec::new();
        let mut changing: BTreeSet<ResourceId> = BTreeSet::new();
        for level in self.graph.levels() {
            // what does not need each other is looked at at once: the time goes into waiting for rpm and D-Bus
            let found = join_all(
                level
                    .iter()
                    .filter_map(|id| self.resources.get(id))
                    .filter(|resource| resource.stage() <= stage)
                    .filter(|resource| self.only.as_ref().is_none_or(|only| only.contains(resource.id())))
                    .map(|resource| self.look_with(resource.as_ref(), applied, &changing, &packages)),
            )
            .await;
            for planned in found {
                if planned.change().is_some() {
                    changing.insert(planned.id.clone());
                }
                resources.push(planned);
            }
        }
        Plan { resources }
    }

    /// Looks at one resource again, apart from all others.
    pub(super) async fn look(
        &self,
        resource: &dyn Resource,
        applied: Option<&BTreeMap<ResourceId, Applied>>,
        changing: &BTreeSet<ResourceId>,
    ) -> Planned {
        let packages = PackageQuery::about(resource.packages());
        self.look_with(resource, applied, changing, &packages).await
    }

    async fn look_with(
        &self,
        resource: &dyn Resource,
        applied: Option<&BTreeMap<ResourceId, Applied>>,
        changing: &BTreeSet<ResourceId>,
        packages: &PackageQuery,
    ) -> Planned {
        let id = resource.id();
        let needs: Vec<ResourceId> = self.graph.needs(id).cloned().collect();
        let planned = |finding| Planned { id: id.clone(), stage: resource.stage(), needs: needs.clone(), finding };
        if self.host.is_offline() && resource.live_only() {
            return planned(Finding::Deferred {
                reason: "only a running system can do this: left for first boot".into(),
            });
        }
        let pending = needs.iter().filter(|need| changing.contains(*need)).cloned().collect();
        let applied = applied.and_then(|applied| applied.get(id));
        let context = PlanContext {
            last_applied: applied.map(|applied| &applied.value),
            pending: &pending,
            platform: self.platform,
            packages,
        };
        match resource.plan(self.host, &context).await {
            Ok(outcome @ Outcome::Blocked { .. }) => match self.deferred_need(&needs) {
                // a unit, say, whose package is installed at the first boot
                Some(need) => {
                    planned(Finding::Deferred { reason: format!("needs {need}, which is left for first boot") })
                }
                None => planned(Finding::Observed(outcome)),
            },
            Ok(outcome) => {
                let policy = self.policy.policy_of(id);
                let wanted = resource.applied();
                planned(Finding::Observed(foreign::unless_it_stays(outcome, applied, &wanted, policy)))
            }
            Err(error) => planned(Finding::Failed { error: chain(&error) }),
        }
    }

    /// The first of these that is not done in a tree that does not run.
    fn deferred_need<'n>(&self, needs: &'n [ResourceId]) -> Option<&'n ResourceId> {
        let deferred = |need: &&ResourceId| self.resources.get(*need).is_some_and(|resource| resource.live_only());
        needs.iter().find(|need| self.host.is_offline() && deferred(need))
    }

    /// Names the desired state of the resources up to `stage`.
    pub(super) fn desired_hash(&self, stage: Stage) -> String {
        let desired: Vec<_> = self
            .resources
            .values()
            .filter(|resource| resource.stage() <= stage)
            .map(|resource| (resource.id(), resource.applied()))
            .collect();
        digest(&desired)
    }
}
