//! What was there before us, by resource: `/var/lib/nodeagent/origins.json`.
//!
//! Journals are pruned; this is not. It is what a resource that has left the config, or a reset, puts back, and with the
//! digest of what we wrote it tells whether somebody else has changed it since.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::STATE_DIR;
use super::execute::Steps;
use super::journal::Owner;
use super::planned::digest;
use super::transaction::Step;
use crate::host::root::Ownership;
use crate::host::{Host, RootError};
use crate::plan::{Action, ResourceId, Undo, UnitOp};

/// Version of the format.
const SCHEMA: u32 = 1;

/// The file; not readable for others, because it has files of others in it.
pub const PATH: &str = "/var/lib/nodeagent/origins.json";

/// Files that were replaced are in it: as a journal.
const LIMIT: u64 = 64 * 1024 * 1024;

/// Of one thing that is repaired again and again, the first entry and so many of the last are kept.
const KEPT: usize = 8;

/// Why what was there before cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// Reading it.
    #[error("read {PATH}")]
    Read(#[source] RootError),
    /// Writing it.
    #[error("write {PATH}")]
    Write(#[source] RootError),
    /// Not what the agent writes.
    #[error("{PATH} is damaged; move it away, and what was there before the agent can no longer be put back")]
    Damaged(#[source] serde_json::Error),
    /// From a newer agent.
    #[error("{PATH} has schema {found}, this agent knows {SCHEMA}: it was written by a newer agent; install that one")]
    Newer {
        /// What the file says.
        found: u32,
    },
}

/// One thing that was done for a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// In which transaction.
    pub transaction: String,
    /// As which of its steps.
    pub step: usize,
    /// What takes it back.
    pub undo: Undo,
    /// SHA-256 of the text that we left in the file; none where it is no file, or was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
}

/// What takes one thing back to before the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// How.
    pub undo: Undo,
    /// SHA-256 of what we left there last, where it is a file.
    pub left: Option<String>,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origins {
    schema: u32,
    resources: BTreeMap<ResourceId, Vec<Entry>>,
}

impl Origins {
    /// What is on disk; nothing when there is nothing.
    pub fn load(host: &Host) -> Result<Origins, OriginError> {
        let bytes = host.root.read_bounded(PATH, LIMIT).map_err(OriginError::Read)?;
        let Some(bytes) = bytes else { return Ok(Origins::default()) };
        let origins: Origins = serde_json::from_slice(&bytes).map_err(OriginError::Damaged)?;
        if origins.schema > SCHEMA {
            return Err(OriginError::Newer { found: origins.schema });
        }
        Ok(origins)
    }

    /// Replaces what is on disk; whole or not at all.
    pub fn save(&mut self, host: &Host) -> Result<(), OriginError> {
        self.schema = SCHEMA;
        let owner = Ownership { mode: 0o700, uid: 0, gid: 0 };
        if !host.root.exists(STATE_DIR).map_err(OriginError::Write)? {
            host.root.make_directory(STATE_DIR, owner).map_err(OriginError::Write)?;
        }
        let mut bytes = serde_json::to_vec(self).map_err(OriginError::Damaged)?;
        bytes.push(b'\n');
        host.root.write(PATH, &bytes, Ownership { mode: 0o600, ..owner }).map_err(OriginError::Write)
    }

    /// Enters what a transaction did and did not take back. Doing so twice is doing it once.
    pub fn note(&mut self, transaction: &str, steps: &Steps<'_>) {
        for step in steps.done() {
            if let Owner::Resource(id) = &step.owner
                && ![crate::doctor::fix::KIND, super::reset::KIND].contains(&id.kind())
            {
                self.note_step(transaction, id, step);
            }
        }
    }

    fn note_step(&mut self, transaction: &str, id: &ResourceId, step: &Step) {
        let Some(thing) = thing(&step.undo) else { return };
        // taking back is not doing: the resource is about to be forgotten
        if matches!(step.action, Action::TakeBack { .. }) {
            return;
        }
        let entries = self.resources.entry(id.clone()).or_default();
        if entries.iter().any(|entry| entry.transaction == transaction && entry.step == step.number) {
            return;
        }
        let left = match &step.action {
            Action::WriteFile { content, .. } => Some(sha256(content.as_bytes())),
            Action::Symlink { target, .. } => Some(link_digest(target)),
            _ => None,
        };
        let undo = step.undo.clone();
        entries.push(Entry { transaction: transaction.to_owned(), step: step.number, undo, left });
        let same: Vec<usize> = entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| self::thing(&entry.undo).as_ref() == Some(&thing))
            .map(|(index, _)| index)
            .collect();
        if same.len() > KEPT + 1 {
            entries.remove(same[1]);
        }
    }

    /// Forgets what a transaction did: it was taken back.
    pub fn forget_transaction(&mut self, transaction: &str) {
        for entries in self.resources.values_mut() {
            entries.retain(|entry| entry.transaction != transaction);
        }
        self.resources.retain(|_, entries| !entries.is_empty());
    }

    /// Forgets a resource: what is there now is not ours any more.
    pub fn forget(&mut self, id: &ResourceId) {
        self.resources.remove(id);
    }

    /// Resources of which there is something to put back.
    pub fn ids(&self) -> impl Iterator<Item = &ResourceId> {
        self.resources.keys()
    }

    /// When the resource was last changed, for an order; larger is later.
    pub fn last_change(&self, id: &ResourceId) -> Option<(&str, usize)> {
        let entries = self.resources.get(id)?.iter();
        entries.map(|entry| (entry.transaction.as_str(), entry.step)).max()
    }

    /// What puts the resource back to before the agent, last change first: of each thing the oldest undo, and what we left
    /// there last.
    pub fn restores(&self, id: &ResourceId) -> Vec<Restore> {
        let mut restores: Vec<(String, Restore)> = Vec::new();
        for entry in self.resources.get(id).into_iter().flatten() {
            let Some(thing) = thing(&entry.undo) else { continue };
            match restores.iter_mut().find(|(known, _)| *known == thing) {
                Some((_, restore)) => restore.left.clone_from(&entry.left),
                None => restores.push((thing, Restore { undo: entry.undo.clone(), left: entry.left.clone() })),
            }
        }
        restores.into_iter().rev().map(|(_, restore)| restore).collect()
    }
}

/// The digest of a link, which is no file of the same text.
pub fn link_digest(target: &str) -> String {
    digest(&("link", target))
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names what an undo is about, so that a later change of the same thing is known as one; none when it does nothing.
fn thing(undo: &Undo) -> Option<String> {
    Some(match undo {
        Undo::RestoreFile { path, .. } | Undo::RemoveDirectory { path } => format!("path {path}"),
        Undo::WriteSysctl { key, .. } => format!("sysctl {key}"),
        Undo::SetEnforce { .. } => "enforce".to_owned(),
        Undo::SetBoolean { name, .. } => format!("boolean {name}"),
        Undo::SetLabels { labels } => format!("labels {}", labels.keys().cloned().collect::<Vec<_>>().join(" ")),
        Undo::Unit { unit, op } => match op {
            UnitOp::Enable | UnitOp::Disable => format!("boot of {unit}"),
            UnitOp::Mask | UnitOp::Unmask => format!("mask of {unit}"),
            UnitOp::Start | UnitOp::Stop | UnitOp::Restart | UnitOp::TryRestart | UnitOp::TryReload => {
                format!("run of {unit}")
            }
        },
        Undo::DnfUndo { transaction } => format!("dnf {transaction}"),
        Undo::Swapon { device } | Undo::Swapoff { device } => format!("swap {device}"),
        Undo::CloseFirewall { entry } | Undo::OpenFirewall { entry } => format!("firewall {entry}"),
        Undo::DefaultZone { .. } => "default zone".to_owned(),
        Undo::Impossible { reason } => format!("impossible {reason}"),
        Undo::Nothing => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::SavedFile;
    use crate::reconcile::transaction::Progress;

    fn write(content: &str) -> Action {
        Action::WriteFile { path: "/etc/x".into(), content: content.into(), mode: 0o644, uid: 0, gid: 0, secret: false }
    }

    fn previous(text: Option<&str>) -> Undo {
        let saved = |text: &str| SavedFile::Regular { content: text.to_owned(), mode: 0o644, uid: 0, gid: 0 };
        Undo::RestoreFile { path: "/etc/x".into(), previous: text.map(saved) }
    }

    fn step(number: usize, action: Action, undo: Undo) -> Step {
        let owner = Owner::Resource(id());
        Step { number, owner, action, undo, progress: Progress::Done }
    }

    fn id() -> ResourceId {
        ResourceId::new("file", "/etc/x")
    }

    #[test]
    fn the_oldest_undo_and_the_newest_text_count() {
        let mut origins = Origins::default();
        origins.note_step("000001", &id(), &step(1, write("one"), previous(None)));
        origins.note_step("000002", &id(), &step(1, write("two"), previous(Some("drifted"))));
        let left = Some(sha256(b"two"));
        assert_eq!(origins.restores(&id()), [Restore { undo: previous(None), left }]);
        origins.forget_transaction("000002");
        let left = Some(sha256(b"one"));
        assert_eq!(origins.restores(&id()), [Restore { undo: previous(None), left }]);
        origins.forget_transaction("000001");
        assert_eq!(origins.ids().count(), 0);
    }

    #[test]
    fn a_transaction_that_is_noted_again_after_a_crash_is_noted_once() {
        let mut origins = Origins::default();
        let made = step(1, write("one"), previous(None));
        origins.note_step("000001", &id(), &made);
        let once = origins.clone();
        origins.note_step("000001", &id(), &made);
        assert_eq!(origins, once);
    }

    #[test]
    fn what_flaps_for_ever_does_not_grow_for_ever() {
        let mut origins = Origins::default();
        for number in 1..100 {
            let transaction = format!("{number:06}");
            origins.note_step(&transaction, &id(), &step(1, write("one"), previous(Some(&transaction))));
        }
        assert_eq!(origins.resources[&id()].len(), KEPT + 1);
        assert_eq!(origins.restores(&id())[0].undo, previous(Some("000001")), "the first is what was there before us");
        assert_eq!(origins.last_change(&id()), Some(("000099", 1)));
    }

    #[test]
    fn enabling_and_disabling_are_one_thing_and_starting_is_another() {
        let undo = |op| Undo::Unit { unit: "x.service".into(), op };
        let mut origins = Origins::default();
        for (number, op) in [UnitOp::Disable, UnitOp::Stop, UnitOp::Enable].into_iter().enumerate() {
            origins.note_step("000001", &id(), &step(number + 1, Action::DaemonReload, undo(op)));
        }
        let undos: Vec<Undo> = origins.restores(&id()).into_iter().map(|restore| restore.undo).collect();
        assert_eq!(undos, [undo(UnitOp::Stop), undo(UnitOp::Disable)], "last first");
    }
}
