//! A resource that is no longer in the config, while what was applied for it is still on the host.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::origin::{Origins, Restore, link_digest, sha256};
use crate::config::settings::RemovedPolicy;
use crate::host::firewall::FirewallEntry;
use crate::host::kernel::Parameter;
use crate::host::root::Kind;
use crate::host::systemd::UnitStatus;
use crate::host::{Host, RootError};
use crate::plan::{Action, Change, Diff, Notify, Outcome, Reason, ResourceId, SavedFile, Stage, Undo, UnitOp};
use crate::resource::{ObserveError, PlanContext, Resource, ResourceError};

/// How a thing stands that is to be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As we left it, or nothing that could be compared.
    Ours,
    /// As it was before us already.
    Restored,
    /// Somebody else has changed it since.
    Foreign,
    /// There is no way back.
    Lost,
}

/// Decides.
pub fn plan(id: &ResourceId, policy: RemovedPolicy, observed: &[(Restore, Standing)]) -> Outcome {
    let open: Vec<&(Restore, Standing)> =
        observed.iter().filter(|(_, standing)| *standing != Standing::Restored).collect();
    if open.is_empty() || policy == RemovedPolicy::Keep {
        let note = "no longer in the config; what is there is not the agent's any more".to_owned();
        return Outcome::Converged { note: Some(note) };
    }
    let lost = open.iter().all(|(_, standing)| *standing == Standing::Lost);
    let words: Vec<String> = open.iter().map(|(restore, _)| restore.undo.to_string()).collect();
    if lost && policy == RemovedPolicy::Undo {
        return Outcome::Converged { note: Some(format!("no longer in the config: {}", words.join(", "))) };
    }
    if policy == RemovedPolicy::Report {
        return Outcome::Conflict {
            reason: format!(
                "no longer in the config, but still applied; `agent apply --removed undo` would {}, `--removed keep` leaves it",
                words.join(", ")
            ),
        };
    }
    if let Some((restore, _)) = open.iter().find(|(_, standing)| *standing == Standing::Foreign) {
        return Outcome::Conflict {
            reason: format!(
                "no longer in the config, and changed by somebody else since it was applied: it is not clear whether to {}; \
                 `agent apply --removed keep` leaves it",
                restore.undo
            ),
        };
    }
    let ways = open.iter().filter(|(_, standing)| *standing != Standing::Lost);
    let undos: Vec<Undo> = ways.map(|(restore, _)| restore.undo.clone()).collect();
    Outcome::Change(Change {
        id: id.clone(),
        reason: Reason::Unwanted,
        summary: format!("take back what was applied: {}", words.join(", ")),
        diffs: undos.iter().map(diff).collect(),
        notify: follow_up(&undos),
        actions: undos.into_iter().map(|undo| Action::TakeBack { undo }).collect(),
        reboot: None,
    })
}

fn diff(undo: &Undo) -> Diff {
    let (what, new) = match undo {
        Undo::RestoreFile { path, previous } => {
            (path.clone(), previous.as_ref().map(|_| "as it was before the agent".to_owned()))
        }
        Undo::RemoveDirectory { path } => (path.clone(), None),
        other => (other.to_string(), Some("done".to_owned())),
    };
    Diff::Value { what, old: Some("as applied".to_owned()), new }
}

/// What has to read again what is put back.
fn follow_up(undos: &[Undo]) -> Vec<Notify> {
    let below =
        |top: &str| undos.iter().any(|undo| matches!(undo, Undo::RestoreFile { path, .. } if path.starts_with(top)));
    let masks = undos.iter().any(|undo| matches!(undo, Undo::Unit { .. }));
    let all = [
        (below("/etc/systemd/system/") || masks, Notify::DaemonReload),
        (below("/etc/udev/"), Notify::ReloadUdev),
        (below("/etc/yum.repos.d/"), Notify::ReloadDnfCache),
    ];
    all.into_iter().filter(|(due, _)| *due).map(|(_, notify)| notify).collect()
}

/// One such resource.
pub struct Leftover {
    id: ResourceId,
    policy: RemovedPolicy,
    restores: Vec<Restore>,
    needs: Vec<ResourceId>,
}

impl Leftover {
    /// All that are known to have been applied and are not wanted any more. What was changed last is put back first.
    pub fn all(origins: &Origins, wanted: impl Fn(&ResourceId) -> bool, policy: RemovedPolicy) -> Vec<Leftover> {
        let mut ids: Vec<&ResourceId> = origins.ids().filter(|id| !wanted(id)).collect();
        ids.sort_by_key(|id| std::cmp::Reverse(origins.last_change(id)));
        let mut all: Vec<Leftover> = Vec::new();
        for id in ids {
            // nothing is taken from under a cluster that is still there
            let needs = vec![all.last().map_or_else(super::reset::id, |before| before.id.clone())];
            all.push(Leftover { id: id.clone(), policy, restores: origins.restores(id), needs });
        }
        all
    }

    async fn observe(&self, host: &Host) -> Result<Vec<(Restore, Standing)>, ObserveError> {
        let mut observed = Vec::new();
        for restore in &self.restores {
            observed.push((restore.clone(), standing(host, restore, &self.restores).await?));
        }
        Ok(observed)
    }
}

/// Compares with what was there before, and for files with what we left.
async fn standing(host: &Host, restore: &Restore, all: &[Restore]) -> Result<Standing, ObserveError> {
    let unless = |restored: bool| Ok(if restored { Standing::Restored } else { Standing::Ours });
    match &restore.undo {
        Undo::RemoveDirectory { path } => {
            // one in which somebody else has put something stays; what is ours in it goes before it
            let goes = |name: &String| {
                let inside = format!("{path}/{name}");
                all.iter().any(|other| match &other.undo {
                    Undo::RestoreFile { path, previous: None } | Undo::RemoveDirectory { path } => *path == inside,
                    _ => false,
                })
            };
            unless(host.root.list(path)?.is_none_or(|names| !names.iter().all(goes)))
        }
        Undo::RestoreFile { path, previous } => {
            let now = now(host, path)?;
            if now == before(previous.as_ref()) {
                return Ok(Standing::Restored);
            }
            Ok(if now == restore.left { Standing::Ours } else { Standing::Foreign })
        }
        Undo::WriteSysctl { key, value } => {
            let now = host.kernel.sysctl(&Parameter::parse(key)?)?;
            unless(now.is_none_or(|now| now.split_whitespace().eq(value.split_whitespace())))
        }
        Undo::SetEnforce { enforcing } => unless(host.kernel.enforcing()?.is_none_or(|now| now == *enforcing)),
        Undo::SetBoolean { name, on } => unless(host.kernel.selinux_boolean(name)?.is_none_or(|now| now == *on)),
        Undo::SetLabels { labels } => {
            let now =
                labels.iter().map(|(path, label)| Ok(host.root.selinux_label(path)?.is_none_or(|now| now == *label)));
            unless(now.collect::<Result<Vec<bool>, ObserveError>>()?.into_iter().all(|same| same))
        }
        Undo::Unit { unit, op } => unless(is_already(&host.systemd.unit(unit).await?, *op)),
        Undo::Swapon { device } => unless(swaps_on(host, device)?),
        Undo::Swapoff { device } => unless(!swaps_on(host, device)?),
        Undo::CloseFirewall { entry } => unless(!is_open(host, entry).await?),
        Undo::OpenFirewall { entry } => unless(is_open(host, entry).await?),
        Undo::DefaultZone { zone } => {
            unless(!firewall_runs(host).await? || host.firewall.default_zone().await? == *zone)
        }
        Undo::Impossible { .. } => Ok(Standing::Lost),
        Undo::Nothing => Ok(Standing::Restored),
        // only dnf itself could tell
        Undo::DnfUndo { .. } => Ok(Standing::Ours),
    }
}

/// One that does not run has nothing open that could be closed over D-Bus.
async fn is_open(host: &Host, entry: &FirewallEntry) -> Result<bool, ObserveError> {
    let (FirewallEntry::Source { zone, .. } | FirewallEntry::Port { zone, .. }) = entry;
    Ok(firewall_runs(host).await? && host.firewall.zone(zone).await?.entries.contains(entry))
}

async fn firewall_runs(host: &Host) -> Result<bool, ObserveError> {
    Ok(host.systemd.unit(crate::resource::host::firewall::UNIT).await?.is_active())
}

fn swaps_on(host: &Host, device: &str) -> Result<bool, ObserveError> {
    Ok(host.kernel.swaps()?.iter().any(|swap| swap.device == device))
}

fn is_already(unit: &UnitStatus, op: UnitOp) -> bool {
    // a unit that is gone took its state with it
    !unit.exists()
        || match op {
            UnitOp::Enable => unit.is_enabled(),
            UnitOp::Disable => !unit.is_enabled(),
            UnitOp::Mask => unit.is_masked(),
            UnitOp::Unmask => !unit.is_masked(),
            UnitOp::Start | UnitOp::Restart | UnitOp::TryRestart | UnitOp::TryReload => unit.is_active(),
            UnitOp::Stop => !unit.is_active(),
        }
}

fn now(host: &Host, path: &str) -> Result<Option<String>, RootError> {
    match host.root.link_metadata(path)?.map(|found| found.kind) {
        None => Ok(None),
        Some(Kind::Link) => Ok(host.root.link_target(path)?.as_deref().map(link_digest)),
        Some(_) => Ok(host.root.read(path)?.as_deref().map(sha256)),
    }
}

fn before(previous: Option<&SavedFile>) -> Option<String> {
    previous.map(|saved| match saved {
        SavedFile::Link { target } => link_digest(target),
        SavedFile::Regular { .. } => saved.bytes().map_or_else(|_| "damaged".to_owned(), |bytes| sha256(&bytes)),
    })
}

#[async_trait]
impl Resource for Leftover {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        self.needs.clone()
    }

    fn stage(&self) -> Stage {
        Stage::Activate
    }

    async fn plan(&self, host: &Host, _context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        Ok(plan(&self.id, self.policy, &self.observe(host).await?))
    }

    fn explain(&self) -> String {
        let words: Vec<String> = self.restores.iter().map(|restore| restore.undo.to_string()).collect();
        format!(
            "No longer in the config. reconcile.removed, or `agent apply --removed`, decides what becomes of what was applied: \
             report, undo or keep. To undo it would be to {}",
            words.join(", ")
        )
    }

    fn live_only(&self) -> bool {
        !self.restores.iter().all(|restore| {
            matches!(restore.undo, Undo::RestoreFile { .. } | Undo::RemoveDirectory { .. } | Undo::Nothing)
        })
    }

    fn is_leftover(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"removed": self.policy})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restore(path: &str) -> Restore {
        Restore { undo: Undo::RestoreFile { path: path.into(), previous: None }, left: Some("x".into()) }
    }

    fn decide(policy: RemovedPolicy, standing: Standing) -> Outcome {
        plan(&ResourceId::new("file", "/etc/x"), policy, &[(restore("/etc/systemd/system/x"), standing)])
    }

    #[test]
    fn a_removed_resource_is_reported_undone_or_kept_as_the_policy_says() {
        let Outcome::Conflict { reason } = decide(RemovedPolicy::Report, Standing::Ours) else { panic!() };
        assert!(reason.contains("--removed undo` would remove /etc/systemd/system/x"), "{reason}");
        assert!(matches!(decide(RemovedPolicy::Keep, Standing::Ours), Outcome::Converged { .. }));
        let outcome = decide(RemovedPolicy::Undo, Standing::Ours);
        let change = outcome.change().unwrap();
        assert_eq!((change.reason.clone(), change.actions.len()), (Reason::Unwanted, 1));
        assert_eq!(change.notify, [Notify::DaemonReload]);
    }

    #[test]
    fn what_somebody_else_has_changed_since_is_not_thrown_away() {
        let Outcome::Conflict { reason } = decide(RemovedPolicy::Undo, Standing::Foreign) else { panic!() };
        assert!(reason.contains("changed by somebody else"), "{reason}");
        assert!(matches!(decide(RemovedPolicy::Undo, Standing::Restored), Outcome::Converged { .. }));
    }
}
