//! The host's packages brought up to date, once: when the node is made, or when the config asks for it anew. What comes later
//! is for dnf-automatic, which knows the administrator's windows.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::kernel_extra::KernelExtra;
use super::repo::DeadRepositories;
use super::{ObserveError, PlanContext, Resource, ResourceError};
use crate::config::settings::UpdatePolicy;
use crate::host::Host;
use crate::plan::{Action, Change, Diff, DnfOp, Outcome, Reason, ResourceId};

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// It was done before, as it is asked for now.
    pub done: bool,
    /// A newer kernel than the one that runs.
    pub waiting_kernel: Option<String>,
}

/// Decides.
pub fn plan(id: &ResourceId, policy: UpdatePolicy, observed: &Observed) -> Outcome {
    if observed.done {
        let note = observed.waiting_kernel.as_ref();
        return Outcome::Converged { note: note.map(|kernel| format!("kernel {kernel} runs after the next reboot")) };
    }
    let (which, options) = match policy {
        UpdatePolicy::None => return Outcome::converged(),
        UpdatePolicy::Security => ("security updates", vec!["--refresh".to_owned(), "--security".to_owned()]),
        UpdatePolicy::All => ("updates", vec!["--refresh".to_owned()]),
    };
    Outcome::Change(Change {
        id: id.clone(),
        reason: Reason::Missing,
        summary: format!("install all {which}, once"),
        diffs: vec![Diff::Value {
            what: "installed packages".to_owned(),
            old: None,
            new: Some(format!("all {which}")),
        }],
        actions: vec![Action::Dnf { op: DnfOp::Upgrade, packages: Vec::new(), options }],
        notify: Vec::new(),
        reboot: None,
    })
}

/// The updates.
pub struct Updates {
    id: ResourceId,
    policy: UpdatePolicy,
    needs: Vec<ResourceId>,
}

impl Updates {
    /// None when nothing is asked for.
    pub fn new(policy: UpdatePolicy, repos: &[ResourceId]) -> Option<Updates> {
        if policy == UpdatePolicy::None {
            return None;
        }
        // a new kernel takes the modules package of the running one out of the repositories
        let needs = [DeadRepositories::resource_id(), KernelExtra::resource_id()];
        let needs = repos.iter().cloned().chain(needs).collect();
        Some(Updates { id: ResourceId::new("package", "updates"), policy, needs })
    }

    fn observe(&self, host: &Host, context: &PlanContext<'_>) -> Result<Observed, ObserveError> {
        let newest = crate::host::platform::newest_kernel(&host.root)?;
        let waiting_kernel = newest.filter(|kernel| kernel != host.kernel.release());
        Ok(Observed { done: context.last_applied == Some(&self.applied()), waiting_kernel })
    }
}

#[async_trait]
impl Resource for Updates {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        self.needs.clone()
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        Ok(plan(&self.id, self.policy, &self.observe(host, context)?))
    }

    fn explain(&self) -> String {
        "Updates are installed once, in one dnf transaction, which `dnf history undo` takes back. Kubernetes' own packages are \
         not among them. Later updates are for dnf-automatic. By hand: dnf upgrade --refresh [--security]"
            .to_owned()
    }

    fn live_only(&self) -> bool {
        true
    }

    fn shows_its_effect(&self) -> bool {
        false
    }

    fn applied(&self) -> Value {
        json!({"update": self.policy})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_are_installed_once_and_a_kernel_that_waits_is_said() {
        let id = ResourceId::new("package", "updates");
        let outcome = plan(&id, UpdatePolicy::Security, &Observed::default());
        assert!(
            matches!(&outcome.change().unwrap().actions[..], [Action::Dnf { op: DnfOp::Upgrade, options, .. }] if options.contains(&"--security".to_owned())),
            "{outcome:?}"
        );
        let done = Observed { done: true, waiting_kernel: None };
        assert_eq!(plan(&id, UpdatePolicy::All, &done), Outcome::converged());
        let waiting = Observed { done: true, waiting_kernel: Some("5.14.0-600.el9.x86_64".into()) };
        let outcome = plan(&id, UpdatePolicy::All, &waiting);
        assert!(matches!(&outcome, Outcome::Converged { note: Some(note) } if note.contains("reboot")), "{outcome:?}");
    }
}
