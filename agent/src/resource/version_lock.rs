//! The versions of Kubernetes and its runtime, locked: no update replaces them, from whatever repository (dnf-versionlock(8)).

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::block::Marks;
use super::owned_file::{FileNow, OwnedFile};
use super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::host::Host;
use crate::host::dnf::Installed;
use crate::plan::{Change, Outcome, ResourceId};

/// The package of the plugin.
pub const PACKAGE: &str = "python3-dnf-plugin-versionlock";

/// Where the plugin looks. Its lines are glob patterns of packages.
const FILE: &str = "/etc/dnf/plugins/versionlock.list";

const MARKS: Marks = Marks { sign: "#", whose: "nodeagent's locks" };

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The list.
    pub file: FileNow,
    /// Sorted: name and version of what is installed.
    pub installed: Vec<(String, Installed)>,
    /// What is to be locked changes in this run.
    pub arriving: bool,
}

/// Decides. Lines of others stay.
pub fn plan(id: &ResourceId, observed: &Observed, past: &Past) -> Outcome {
    if let Some(obstacle) = observed.file.obstacle() {
        return Outcome::Blocked { reason: format!("{FILE} is {obstacle}"), fix: Some(format!("move {FILE} away")) };
    }
    let text = observed.file.text().unwrap_or_default();
    let file = OwnedFile::public(FILE, with_block(text, &observed.installed));
    let same = file.content == text && !observed.arriving;
    let Some(step) = file.step_unless(&observed.file, same) else { return Outcome::converged() };
    let names: Vec<&str> = observed.installed.iter().map(|(name, _)| name.as_str()).collect();
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(step.missing),
        summary: match names.is_empty() {
            true => "lock the versions of what is about to be installed".to_owned(),
            false => format!("lock the versions of {}", names.join(", ")),
        },
        diffs: step.diffs,
        actions: step.actions,
        notify: Vec::new(),
        reboot: None,
    })
}

/// The list with our part anew.
fn with_block(text: &str, installed: &[(String, Installed)]) -> String {
    let ours: String = installed.iter().map(|(name, version)| format!("{name}-{}.*\n", version.evr())).collect();
    MARKS.put(text, &ours)
}

/// The locks.
pub struct VersionLock {
    id: ResourceId,
    names: Vec<String>,
}

impl VersionLock {
    /// Of these packages.
    pub fn new(mut names: Vec<String>) -> VersionLock {
        names.sort();
        VersionLock { id: ResourceId::new("package", "lock"), names }
    }

    /// Those that this is about, of all that were asked for.
    fn locked(&self, installed: &BTreeMap<String, Installed>) -> Vec<(String, Installed)> {
        let of = |name: &String| Some((name.clone(), installed.get(name)?.clone()));
        self.names.iter().filter_map(of).collect()
    }

    async fn observe(&self, host: &Host, context: &PlanContext<'_>) -> Result<Observed, ObserveError> {
        Ok(Observed {
            file: FileNow::observe(&host.root, FILE)?,
            installed: self.locked(context.packages.answer(host).await?),
            arriving: self.needs().iter().any(|need| context.pending.contains(need)),
        })
    }
}

#[async_trait]
impl Resource for VersionLock {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn packages(&self) -> Vec<String> {
        self.names.clone()
    }

    fn needs(&self) -> Vec<ResourceId> {
        ["host", "kubernetes", "runtime"].into_iter().map(|name| ResourceId::new("package", name)).collect()
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        Ok(plan(&self.id, &self.observe(host, context).await?, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        format!(
            "{FILE} locks the installed versions of {}; the agent's own transactions go past it. Lines of others stay. By \
             hand: dnf versionlock list",
            self.names.join(", ")
        )
    }

    fn live_only(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"names": self.names})
    }
}

#[cfg(test)]
mod tests {
    use super::super::owned_file::Found;
    use super::*;

    fn observed(text: &str, version: &str) -> Observed {
        let found = Found::File { text: Some(text.to_owned()), mode: 0o644, uid: 0, gid: 0 };
        let kubelet = Installed { version: version.into(), release: "1".into(), arch: "x86_64".into() };
        Observed {
            file: FileNow { missing_directories: vec![], found: Some(found) },
            installed: vec![("kubelet".to_owned(), kubelet)],
            arriving: false,
        }
    }

    fn decide(observed: &Observed) -> Outcome {
        plan(&ResourceId::new("package", "lock"), observed, &Past::Unknown)
    }

    const BEGIN: &str = "# begin of nodeagent's locks; changes made here are undone";
    const END: &str = "# end of nodeagent's locks";

    #[test]
    fn our_locks_follow_what_is_installed_and_those_of_others_stay() {
        let first = with_block("# mine\nvim-9.*", &observed("", "1.36.2").installed);
        assert_eq!(first, format!("# mine\nvim-9.*\n{BEGIN}\nkubelet-1.36.2-1.*\n{END}\n"));
        assert_eq!(decide(&observed(&first, "1.36.2")), Outcome::converged());
        let behind = format!("{first}emacs-30.*\n");
        let next = with_block(&behind, &observed("", "1.37.0").installed);
        assert_eq!(next, format!("# mine\nvim-9.*\n{BEGIN}\nkubelet-1.37.0-1.*\n{END}\nemacs-30.*\n"));
        assert!(decide(&observed(&behind, "1.37.0")).change().is_some());
        let without_end = with_block(&format!("{BEGIN}\nother-1.*\n"), &observed("", "1.36.2").installed);
        assert!(without_end.ends_with(&format!("{END}\nother-1.*\n")), "nothing of others is lost: {without_end}");
    }

    #[test]
    fn what_arrives_in_this_run_is_locked_in_this_run() {
        let right = with_block("", &observed("", "1.36.2").installed);
        let outcome = decide(&Observed { arriving: true, ..observed(&right, "1.36.2") });
        assert!(outcome.change().is_some(), "{outcome:?}");
    }
}
