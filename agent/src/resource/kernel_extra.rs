//! The package in which EL 10 has the modules that its main kernel package no longer has.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::repo::DeadRepositories;
use super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::host::Host;
use crate::plan::{Action, Change, Diff, DnfOp, Outcome, ResourceId};

const PACKAGE: &str = "kernel-modules-extra";

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The kernel that runs.
    pub release: String,
    /// Modules that are wanted and that this kernel neither has nor could load.
    pub missing: Vec<String>,
}

/// Decides. The package of exactly the running kernel: without its release dnf takes the newest kernel's, whose modules this one
/// cannot load, and brings that kernel along.
pub fn plan(id: &ResourceId, observed: &Observed, past: &Past) -> Outcome {
    if observed.missing.is_empty() {
        return Outcome::converged();
    }
    let spec = format!("{PACKAGE}-{}", observed.release);
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(true),
        summary: format!("install {spec}, which has {}", observed.missing.join(", ")),
        diffs: vec![Diff::Value { what: format!("package {PACKAGE}"), old: None, new: Some(spec.clone()) }],
        actions: vec![Action::Dnf { op: DnfOp::Install, packages: vec![spec], options: Vec::new() }],
        notify: Vec::new(),
        reboot: None,
    })
}

/// The package, where a module of the config needs it.
pub struct KernelExtra {
    id: ResourceId,
    modules: Vec<String>,
    needs: Vec<ResourceId>,
}

impl KernelExtra {
    /// For these modules.
    pub fn new(modules: Vec<String>) -> KernelExtra {
        KernelExtra { id: KernelExtra::resource_id(), modules, needs: vec![DeadRepositories::resource_id()] }
    }

    /// The name of the resource.
    pub fn resource_id() -> ResourceId {
        ResourceId::new("package", PACKAGE)
    }

    fn observe(&self, host: &Host) -> Result<Observed, ObserveError> {
        let mut missing = Vec::new();
        for name in &self.modules {
            let facts = host.kernel.module(name)?;
            if !facts.present() && facts.file.is_none() {
                missing.push(name.clone());
            }
        }
        Ok(Observed { release: host.kernel.release().to_owned(), missing })
    }
}

#[async_trait]
impl Resource for KernelExtra {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        self.needs.clone()
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        Ok(plan(&self.id, &self.observe(host)?, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        format!(
            "{PACKAGE} of the running kernel is installed where {} would be missing without it. By hand: uname -r; rpm -q {PACKAGE}",
            self.modules.join(", ")
        )
    }

    fn live_only(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"modules": self.modules})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_of_the_kernel_that_runs_and_only_wanted_when_a_module_is_missing() {
        let decide = |missing: &[&str]| {
            let missing = missing.iter().map(|name| (*name).to_owned()).collect();
            let observed = Observed { release: "6.12.0-55.el10.x86_64".into(), missing };
            plan(&KernelExtra::resource_id(), &observed, &Past::Unknown)
        };
        assert_eq!(decide(&[]), Outcome::converged());
        let outcome = decide(&["br_netfilter"]);
        assert!(matches!(
            &outcome.change().unwrap().actions[..],
            [Action::Dnf { packages, .. }] if packages == &["kernel-modules-extra-6.12.0-55.el10.x86_64"]
        ));
    }
}
