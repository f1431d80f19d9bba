//! What has to follow changes, once per transaction however many changes ask for it.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{Action, Notify, ResourceId, UnitOp};

/// What is still to be done, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notifications {
    pending: BTreeMap<Notify, BTreeSet<ResourceId>>,
}

impl Notifications {
    /// A resource asks for something to follow its change.
    pub fn add(&mut self, notify: Notify, asked_by: Option<&ResourceId>) {
        self.pending.entry(notify).or_default().extend(asked_by.cloned());
    }

    /// What has to be done before `action`: units are read before they are acted on, repositories before packages.
    pub fn due_before(&self, action: &Action) -> Option<Notify> {
        let due = match action {
            Action::Unit { .. } => Notify::DaemonReload,
            Action::Dnf { .. } => Notify::ReloadDnfCache,
            // rules that follow a module's appearance have to be known before it appears
            Action::LoadModule { .. } => Notify::ReloadUdev,
            _ => return None,
        };
        self.pending.contains_key(&due).then_some(due)
    }

    /// A unit that was just started runs with what is on disk: it needs no restart.
    pub fn acted(&mut self, action: &Action) {
        if let Action::Unit { unit, op: UnitOp::Start | UnitOp::Restart | UnitOp::Stop, .. } = action {
            self.pending.remove(&Notify::RestartUnit(unit.clone()));
        }
    }

    /// The next one at the end of a run: reloads first, restarts last.
    pub fn next(&self) -> Option<Notify> {
        self.pending.keys().next().cloned()
    }

    /// It was done, or given up; for whom it was.
    pub fn take(&mut self, notify: &Notify) -> BTreeSet<ResourceId> {
        self.pending.remove(notify).unwrap_or_default()
    }

    /// True when the resource waits for something that follows its change.
    pub fn concerns(&self, id: &ResourceId) -> bool {
        self.pending.values().any(|ids| ids.contains(id))
    }
}

/// How a notification is carried out. `wait` is false in a stage of the boot that the unit is ordered after.
pub fn action_for(notify: &Notify, wait: bool) -> Action {
    match notify {
        Notify::DaemonReload => Action::DaemonReload,
        Notify::ReloadUdev => Action::ReloadUdev,
        Notify::ReloadDnfCache => Action::DnfCleanMetadata,
        Notify::ReloadUnit(unit) => Action::Unit { unit: unit.clone(), op: UnitOp::TryReload, wait },
        Notify::RestartUnit(unit) => Action::Unit { unit: unit.clone(), op: UnitOp::TryRestart, wait },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(unit: &str) -> Action {
        Action::Unit { unit: unit.to_owned(), op: UnitOp::Start, wait: true }
    }

    #[test]
    fn equal_ones_are_one_and_reloads_come_before_restarts() {
        let mut pending = Notifications::default();
        let (a, b) = (ResourceId::single("a"), ResourceId::single("b"));
        pending.add(Notify::RestartUnit("x.service".into()), Some(&a));
        pending.add(Notify::DaemonReload, Some(&a));
        pending.add(Notify::DaemonReload, Some(&b));
        assert_eq!(pending.next(), Some(Notify::DaemonReload));
        assert_eq!(pending.take(&Notify::DaemonReload).len(), 2);
        assert!(pending.concerns(&a) && !pending.concerns(&b));
        assert_eq!(pending.next(), Some(Notify::RestartUnit("x.service".into())));
    }

    #[test]
    fn units_are_reloaded_before_any_is_started_and_a_started_one_is_not_restarted() {
        let mut pending = Notifications::default();
        pending.add(Notify::DaemonReload, None);
        pending.add(Notify::RestartUnit("x.service".into()), None);
        assert_eq!(pending.due_before(&start("x.service")), Some(Notify::DaemonReload));
        assert_eq!(pending.due_before(&Action::ReloadUdev), None);
        pending.acted(&start("x.service"));
        pending.take(&Notify::DaemonReload);
        assert_eq!(pending.next(), None);
    }
}
