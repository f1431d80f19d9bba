//! One boolean of the SELinux policy: now, and in the policy that is loaded at boot.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::host::Host;
use crate::plan::{Action, Change, Diff, Outcome, ResourceId};

/// Decides. `live` is none where the policy has no such boolean.
pub fn plan(id: &ResourceId, on: bool, selinux: bool, live: Option<bool>, past: &Past) -> Outcome {
    let name = id.name().trim_start_matches("boolean.");
    let word = |on: bool| if on { "on" } else { "off" };
    match live {
        _ if !selinux => Outcome::Converged { note: Some("SELinux is off: nothing is refused".to_owned()) },
        None => Outcome::Blocked {
            reason: format!("the SELinux policy has no boolean {name}"),
            fix: Some("see: getsebool -a; it may come with container-selinux".to_owned()),
        },
        Some(live) if live == on => Outcome::converged(),
        Some(live) => Outcome::Change(Change {
            id: id.clone(),
            reason: past.reason_of_value(false, word(on)),
            summary: format!("switch the SELinux boolean {name} {}", word(on)),
            diffs: vec![Diff::Value {
                what: format!("SELinux boolean {name}"),
                old: Some(word(live).to_owned()),
                new: Some(word(on).to_owned()),
            }],
            actions: vec![Action::SetBoolean { name: name.to_owned(), on }],
            notify: Vec::new(),
            reboot: None,
        }),
    }
}

/// One boolean.
pub struct SelinuxBoolean {
    id: ResourceId,
    name: String,
    on: bool,
}

impl SelinuxBoolean {
    /// The boolean of this name.
    pub fn new(name: &str, on: bool) -> SelinuxBoolean {
        SelinuxBoolean { id: ResourceId::new("selinux", &format!("boolean.{name}")), name: name.to_owned(), on }
    }

    fn observe(&self, host: &Host) -> Result<(bool, Option<bool>), ObserveError> {
        Ok((host.kernel.enforcing()?.is_some(), host.kernel.selinux_boolean(&self.name)?))
    }
}

#[async_trait]
impl Resource for SelinuxBoolean {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    // container-selinux brings some
    fn needs(&self) -> Vec<ResourceId> {
        vec![ResourceId::new("package", "host")]
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let (selinux, live) = self.observe(host)?;
        Ok(plan(&self.id, self.on, selinux, live, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        format!(
            "The boolean {name} of the SELinux policy, now and after a boot. By hand: getsebool {name}",
            name = self.name
        )
    }

    fn live_only(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"on": self.on})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boolean_is_switched_when_it_differs_and_there_is_something_to_switch() {
        let id = ResourceId::new("selinux", "boolean.container_manage_cgroup");
        let decide = |selinux, live| plan(&id, true, selinux, live, &Past::Unknown);
        assert_eq!(decide(true, Some(true)), Outcome::converged());
        let outcome = decide(true, Some(false));
        let set = Action::SetBoolean { name: "container_manage_cgroup".into(), on: true };
        assert_eq!(outcome.change().unwrap().actions, [set]);
        assert!(matches!(decide(true, None), Outcome::Blocked { .. }));
        assert!(matches!(decide(false, None), Outcome::Converged { note: Some(_) }));
    }
}
