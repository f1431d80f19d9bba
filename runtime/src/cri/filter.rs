//! Which pods and containers a list is about.

use std::collections::HashMap;

use nodeagent_cri_api::{
    ContainerFilter, ContainerState, ContainerStatsFilter, PodSandboxFilter, PodSandboxState, PodSandboxStatsFilter,
};

use super::convert::{container_state, sandbox_state};
use crate::container::ContainerRecord;
use crate::sandbox::SandboxRecord;

type Labels = HashMap<String, String>;

/// Conditions on pods; what is not said lets everything through.
#[derive(Debug, Default)]
pub(super) struct Pods {
    id: String,
    state: Option<PodSandboxState>,
    labels: Labels,
}

impl Pods {
    pub(super) fn new(filter: Option<PodSandboxFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        let state = filter.state.map(|value| value.state());
        Pods { id: filter.id, state, labels: filter.label_selector }
    }

    pub(super) fn of_stats(filter: Option<PodSandboxStatsFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Pods { id: filter.id, state: None, labels: filter.label_selector }
    }

    pub(super) fn lets(&self, pod: &SandboxRecord) -> bool {
        pod.id.starts_with(&self.id)
            && self.state.is_none_or(|state| sandbox_state(pod.state) == state)
            && selects(&self.labels, &pod.config.labels)
    }
}

/// Conditions on containers; what is not said lets everything through.
#[derive(Debug, Default)]
pub(super) struct Containers {
    id: String,
    sandbox: String,
    state: Option<ContainerState>,
    labels: Labels,
}

impl Containers {
    pub(super) fn new(filter: Option<ContainerFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        let state = filter.state.map(|value| value.state());
        Containers { id: filter.id, sandbox: filter.pod_sandbox_id, state, labels: filter.label_selector }
    }

    pub(super) fn of_stats(filter: Option<ContainerStatsFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Containers { id: filter.id, sandbox: filter.pod_sandbox_id, state: None, labels: filter.label_selector }
    }

    pub(super) fn lets(&self, container: &ContainerRecord) -> bool {
        container.id.starts_with(&self.id)
            && container.sandbox.starts_with(&self.sandbox)
            && self.state.is_none_or(|state| container_state(container.phase) == state)
            && selects(&self.labels, &container.config.labels)
    }
}

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use nodeagent_cri_api::{PodSandboxConfig, PodSandboxStateValue, UpdatePodSandboxResourcesRequest};

    use super::*;
    use crate::cgroup::{Cgroups, Driver, Layout};
    use crate::sandbox::SandboxState;

    fn pod() -> SandboxRecord {
        let cgroups = Cgroups::new(Layout::V1 { hierarchies: Vec::new() }, Driver::Cgroupfs);
        let labels = [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "front".to_owned())];
        SandboxRecord {
            id: "abcdef".into(),
            created_at: 1,
            state: SandboxState::NotReady,
            config: PodSandboxConfig { labels: labels.into(), ..Default::default() },
            runtime_handler: String::new(),
            cgroup: cgroups.path_of("", "abcdef").unwrap(),
            made_parent: false,
            shim_pid: 0,
            first_pid: 0,
            selinux_level: String::new(),
            netns: None,
            network_owed: false,
            ips: Vec::new(),
            resized: UpdatePodSandboxResourcesRequest::default(),
        }
    }

    fn lets(id: &str, state: Option<PodSandboxState>, labels: &[(&str, &str)]) -> bool {
        let label_selector = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let state = state.map(|state| PodSandboxStateValue { state: state.into() });
        Pods::new(Some(PodSandboxFilter { id: id.to_owned(), state, label_selector })).lets(&pod())
    }

    #[test]
    fn no_condition_lets_everything_through() {
        assert!(Pods::new(None).lets(&pod()));
        assert!(lets("", None, &[]));
    }

    #[test]
    fn every_condition_must_hold() {
        assert!(lets("abc", Some(PodSandboxState::SandboxNotready), &[("app", "web")]));
        assert!(!lets("abd", None, &[]));
        assert!(!lets("", Some(PodSandboxState::SandboxReady), &[]));
        assert!(!lets("", None, &[("app", "web"), ("tier", "back")]));
        assert!(!lets("", None, &[("none", "")]));
    }
}
