//! Labels of files as the policy wants them, by SELinux's own program: which rule wins for a path is its business.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Host;
use super::action::ActionError;
use super::command::Command;
use crate::plan::Undo;

/// Brought by policycoreutils, which every host with a policy has.
pub const RESTORECON: &str = "/usr/sbin/restorecon";

/// A few files; most of the time goes into reading the policy's rules.
const LIMIT: Duration = Duration::from_secs(120);

impl Host {
    /// Each of these, and nothing below them, gets the label that the policy's rules say.
    pub(super) async fn relabel(&self, paths: &[String]) -> Result<(), ActionError> {
        // types that admins may choose freely are otherwise left alone, and user and level are not set
        let command = Command::new(RESTORECON, LIMIT).args(["-F"]).args(paths.iter().cloned());
        self.commands.run(&command).await?.success(&command)?;
        Ok(())
    }

    /// The labels that these have now.
    pub(super) fn capture_labels<'p>(&self, paths: impl Iterator<Item = &'p String>) -> Result<Undo, ActionError> {
        let mut labels = BTreeMap::new();
        for path in paths {
            if let Some(label) = self.root.selinux_label(path)? {
                labels.insert(path.clone(), label);
            }
        }
        Ok(if labels.is_empty() { Undo::Nothing } else { Undo::SetLabels { labels } })
    }

    /// Puts labels back; what is gone since needs none.
    pub(super) fn put_labels(&self, labels: &BTreeMap<String, String>) -> Result<(), ActionError> {
        for (path, label) in labels {
            if self.root.selinux_label(path)?.is_some_and(|now| now != *label) {
                self.root.set_selinux_label(path, label)?;
            }
        }
        Ok(())
    }
}
