//! A file with a given text: `[[file]]`, and the files of tools that the agent sets up itself.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::owned_file::{FileNow, OwnedFile};
use super::{Past, PlanContext, Resource, ResourceError};
use crate::config::settings::{CgroupDriver, RuntimeSettings};
use crate::host::Host;
use crate::plan::{Change, Notify, Outcome, ResourceId, Stage};

/// The file, and who has to take it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The file.
    pub file: OwnedFile,
    /// What has to follow a change.
    pub notify: Vec<Notify>,
}

/// What is there.
pub type Observed = FileNow;

/// Decides.
pub fn plan(id: &ResourceId, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    let file = &desired.file;
    if let Some(obstacle) = observed.obstacle() {
        return Outcome::Blocked {
            reason: format!("{} is {obstacle}", file.path),
            fix: Some(format!("move {} away", file.path)),
        };
    }
    let Some(step) = file.step(observed) else { return Outcome::converged() };
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(step.missing),
        summary: format!("write {}", file.path),
        diffs: step.diffs,
        actions: step.actions,
        notify: desired.notify.clone(),
        reboot: None,
    })
}

/// One file.
pub struct FileResource {
    id: ResourceId,
    desired: Desired,
    stage: Stage,
    purpose: &'static str,
}

impl FileResource {
    /// A file of the config.
    pub fn configured(file: OwnedFile) -> FileResource {
        FileResource::new(file, Vec::new(), Stage::Prepare, "from a [[file]] table of the config")
    }

    /// What is wanted.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// A file of ours.
    pub fn new(file: OwnedFile, notify: Vec<Notify>, stage: Stage, purpose: &'static str) -> FileResource {
        FileResource { id: ResourceId::new("file", &file.path), desired: Desired { file, notify }, stage, purpose }
    }
}

#[async_trait]
impl Resource for FileResource {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn stage(&self) -> Stage {
        self.stage
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = FileNow::observe(&host.root, &self.desired.file.path)?;
        Ok(plan(&self.id, &self.desired, &observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        let file = &self.desired.file;
        format!(
            "The whole text of {path}, mode {mode:04o}, owner {uid}:{gid}, {purpose}. By hand: stat {path}; cat {path}",
            path = file.path,
            mode = file.mode,
            uid = file.uid,
            gid = file.gid,
            purpose = self.purpose,
        )
    }

    fn applied(&self) -> Value {
        let file = &self.desired.file;
        // a digest: the state file may be read by more people than the file
        json!({"digest": super::digest(&file.content), "mode": file.mode, "uid": file.uid, "gid": file.gid})
    }
}

/// `/etc/crictl.yaml`, so that crictl finds the runtime without being told.
pub fn crictl(socket: &str) -> OwnedFile {
    let content = format!(
        "{}runtime-endpoint: unix://{socket}\nimage-endpoint: unix://{socket}\ntimeout: 30\ndebug: false\n",
        super::owned_file::HEADER
    );
    OwnedFile::public("/etc/crictl.yaml", content)
}

/// The runtime's own config file.
pub const RUNTIME_TOML: &str = "/etc/nodeagent/runtime.toml";

/// What the runtime is told; the rest of its settings keep their defaults.
pub fn runtime_toml(runtime: &RuntimeSettings) -> OwnedFile {
    let compat = if runtime.crio_compat_socket { "/run/crio/crio.sock" } else { "" };
    let driver = match runtime.cgroup_driver {
        None => "auto",
        Some(CgroupDriver::Systemd) => "systemd",
        Some(CgroupDriver::Cgroupfs) => "cgroupfs",
    };
    let mut content = super::owned_file::HEADER.to_owned();
    for (key, value) in [
        ("listen", runtime.socket.as_str()),
        ("compat_socket", compat),
        ("root", runtime.root.as_str()),
        ("cgroup_driver", driver),
    ] {
        content.push_str(&format!("{key} = {}\n", toml::Value::from(value)));
    }
    OwnedFile::public(RUNTIME_TOML, content)
}

#[cfg(test)]
mod tests {
    use super::super::owned_file::Found;
    use super::*;
    use crate::plan::{Action, Reason};

    fn found(text: &str, mode: u32) -> Observed {
        let found = Found::File { text: Some(text.to_owned()), mode, uid: 0, gid: 0 };
        FileNow { missing_directories: vec![], found: Some(found) }
    }

    fn decide(observed: &Observed, past: &Past) -> Outcome {
        let desired = Desired { file: OwnedFile::public("/etc/x/y.conf", "new\n".into()), notify: vec![] };
        plan(&ResourceId::new("file", "/etc/x/y.conf"), &desired, observed, past)
    }

    #[test]
    fn a_file_is_written_when_its_text_or_its_mode_differs() {
        assert_eq!(decide(&found("new\n", 0o644), &Past::Unknown), Outcome::converged());
        for (observed, reason) in
            [(found("old\n", 0o644), Reason::Different), (found("new\n", 0o666), Reason::Different)]
        {
            assert_eq!(decide(&observed, &Past::Unknown).change().unwrap().reason, reason);
        }
        let drifted = decide(&found("old\n", 0o644), &Past::AsDesired);
        assert!(matches!(drifted.change().unwrap().reason, Reason::Drifted { .. }));
    }

    #[test]
    fn directories_that_are_missing_are_made_by_actions_that_can_be_undone() {
        let observed = FileNow { missing_directories: vec!["/etc/x".into()], found: None };
        let outcome = decide(&observed, &Past::Unknown);
        let change = outcome.change().unwrap();
        assert_eq!(change.reason, Reason::Missing);
        assert!(matches!(&change.actions[..], [Action::MakeDirectory { .. }, Action::WriteFile { .. }]));
    }

    #[test]
    fn a_directory_in_the_way_is_not_removed() {
        let observed = FileNow { missing_directories: vec![], found: Some(Found::Other("a directory")) };
        assert!(matches!(decide(&observed, &Past::Unknown), Outcome::Blocked { .. }));
    }
}
