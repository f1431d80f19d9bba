//! The host's name: now, and at boot.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::super::owned_file::{FileNow, OwnedFile};
use super::super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::host::Host;
use crate::host::kernel::Parameter;
use crate::plan::{Action, Change, Diff, Outcome, ResourceId};

/// Read by systemd at boot.
const FILE: &str = "/etc/hostname";

/// The kernel's own.
const LIVE: &str = "kernel.hostname";

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The file.
    pub file: FileNow,
    /// The kernel's; none in a tree that does not run.
    pub live: Option<String>,
}

/// Decides.
pub fn plan(id: &ResourceId, name: &str, observed: &Observed, past: &Past) -> Outcome {
    if let Some(obstacle) = observed.file.obstacle() {
        return Outcome::Blocked { reason: format!("{FILE} is {obstacle}"), fix: Some(format!("move {FILE} away")) };
    }
    // comments are allowed in it, and a name without its line end
    let in_file =
        |text: &str| text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')) == Some(name);
    let same = observed.file.text().is_some_and(in_file);
    let (mut actions, mut diffs) = (Vec::new(), Vec::new());
    if let Some(step) = OwnedFile::public(FILE, format!("{name}\n")).step_unless(&observed.file, same) {
        actions.extend(step.actions);
        diffs.extend(step.diffs);
    }
    if let Some(live) = observed.live.as_ref().filter(|live| *live != name) {
        diffs.push(Diff::Value { what: "host name now".into(), old: Some(live.clone()), new: Some(name.to_owned()) });
        actions.push(Action::WriteSysctl { key: LIVE.to_owned(), value: name.to_owned() });
    }
    if actions.is_empty() {
        return Outcome::converged();
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason_of_value(observed.file.found.is_none(), name),
        summary: format!("call this host {name}"),
        diffs,
        actions,
        notify: Vec::new(),
        reboot: None,
    })
}

/// The host's name.
pub struct Hostname {
    id: ResourceId,
    name: String,
}

impl Hostname {
    /// This one.
    pub fn new(name: &str) -> Hostname {
        Hostname { id: ResourceId::single("hostname"), name: name.to_owned() }
    }

    fn observe(host: &Host) -> Result<Observed, ObserveError> {
        Ok(Observed { file: FileNow::observe(&host.root, FILE)?, live: host.kernel.sysctl(&Parameter::parse(LIVE)?)? })
    }
}

#[async_trait]
impl Resource for Hostname {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        Ok(plan(&self.id, &self.name, &Hostname::observe(host)?, &context.past(&self.applied())))
    }

    fn rivals(&self) -> &'static [&'static str] {
        &["cloud-init.service", "cloud-init-network.service"]
    }

    fn explain(&self) -> String {
        format!("The host is called {} now and after a boot ({FILE}). By hand: hostnamectl; cat {FILE}", self.name)
    }

    fn applied(&self) -> Value {
        json!({"name": self.name})
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::owned_file::Found;
    use super::*;

    fn decide(text: Option<&str>, live: Option<&str>) -> Outcome {
        let found = text.map(|text| Found::File { text: Some(text.to_owned()), mode: 0o644, uid: 0, gid: 0 });
        let observed = Observed { file: FileNow { missing_directories: vec![], found }, live: live.map(str::to_owned) };
        plan(&ResourceId::single("hostname"), "node1", &observed, &Past::Unknown)
    }

    #[test]
    fn the_name_is_right_in_both_places_or_made_so() {
        assert_eq!(decide(Some("# c\nnode1"), Some("node1")), Outcome::converged());
        assert_eq!(decide(Some("node1\n"), None), Outcome::converged(), "a tree has no name of its own yet");
        for (text, live, actions) in
            [(None, Some("node1"), 1), (Some("old\n"), Some("old"), 2), (Some("node1\n"), Some("localhost"), 1)]
        {
            assert_eq!(decide(text, live).change().unwrap().actions.len(), actions, "{text:?} {live:?}");
        }
    }
}
