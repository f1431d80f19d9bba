//! Somebody keeps the clock in step: certificates, leases and tokens do not work when it is off.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::host::Host;
use crate::host::systemd::UnitStatus;
use crate::plan::{Action, Change, Diff, Outcome, ResourceId, Stage, UnitOp};

/// Services that do it, in the order in which they are taken: EL's own first.
const SERVICES: [&str; 4] = ["chronyd.service", "ntpd.service", "systemd-timesyncd.service", "ptp4l.service"];

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Services that are installed.
    pub services: Vec<UnitStatus>,
    /// The kernel's clock is in step.
    pub synchronized: bool,
    /// The tree is not running.
    pub offline: bool,
}

/// Decides.
pub fn plan(id: &ResourceId, observed: &Observed, past: &Past) -> Outcome {
    // one that runs is the admin's choice
    let chosen = observed.services.iter().find(|unit| unit.is_active()).or(observed.services.first());
    let Some(unit) = chosen else {
        return Outcome::Blocked {
            reason: format!("there is no time service: none of {}", SERVICES.join(", ")),
            fix: Some("add \"chrony\" to packages.install".to_owned()),
        };
    };
    let (mut actions, mut diffs) = (Vec::new(), Vec::new());
    let mut add = |op, what: &str, old: String, new: &str| {
        diffs.push(Diff::Value { what: format!("{}: {what}", unit.id), old: Some(old), new: Some(new.to_owned()) });
        actions.push(Action::Unit { unit: unit.id.clone(), op, wait: true });
    };
    if !unit.is_enabled() {
        add(UnitOp::Enable, "at boot", unit.unit_file_state.to_string(), "enabled");
    }
    if !observed.offline && !unit.is_active() {
        add(UnitOp::Start, "state", unit.in_words(), "active");
    }
    if actions.is_empty() {
        return match observed.synchronized || observed.offline {
            true => Outcome::converged(),
            false => Outcome::Waiting { reason: format!("{} runs, and has not set the clock yet", unit.id) },
        };
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(false),
        summary: format!("have {} keep the clock in step", unit.id),
        diffs,
        actions,
        notify: Vec::new(),
        reboot: None,
    })
}

/// The clock.
pub struct TimeSync {
    id: ResourceId,
    needs: Vec<ResourceId>,
}

impl TimeSync {
    /// After what may bring the service.
    pub fn new(needs: Vec<ResourceId>) -> TimeSync {
        TimeSync { id: ResourceId::single("time"), needs }
    }

    async fn observe(host: &Host) -> Result<Observed, ObserveError> {
        let mut services = Vec::new();
        for name in SERVICES {
            let unit = host.systemd.unit(name).await?;
            if unit.exists() && !unit.is_masked() {
                services.push(unit);
            }
        }
        Ok(Observed { services, synchronized: host.clock.is_synchronized(), offline: host.is_offline() })
    }
}

#[async_trait]
impl Resource for TimeSync {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        self.needs.clone()
    }

    fn stage(&self) -> Stage {
        Stage::Activate
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        Ok(plan(&self.id, &TimeSync::observe(host).await?, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        format!(
            "One of {} starts at boot and runs, and the kernel says that its clock is in step. By hand: timedatectl; chronyc \
             tracking",
            SERVICES.join(", ")
        )
    }

    fn applied(&self) -> Value {
        json!({"sync": true})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::systemd::UnitFileState;

    fn unit(name: &str, enabled: bool, active: bool) -> UnitStatus {
        UnitStatus {
            load_state: "loaded".into(),
            active_state: if active { "active" } else { "inactive" }.into(),
            unit_file_state: if enabled { UnitFileState::Enabled } else { UnitFileState::Disabled },
            ..UnitStatus::absent(name)
        }
    }

    fn decide(services: Vec<UnitStatus>, synchronized: bool) -> Outcome {
        plan(&ResourceId::single("time"), &Observed { services, synchronized, offline: false }, &Past::Unknown)
    }

    #[test]
    fn a_service_that_runs_is_taken_and_one_that_does_not_is_started() {
        let (chrony, other) = ("chronyd.service", "systemd-timesyncd.service");
        assert_eq!(decide(vec![unit(chrony, true, true)], true), Outcome::converged());
        assert_eq!(decide(vec![unit(chrony, false, false), unit(other, true, true)], true), Outcome::converged());
        assert!(matches!(decide(vec![unit(chrony, true, true)], false), Outcome::Waiting { .. }));
        let outcome = decide(vec![unit(chrony, false, false)], false);
        let ops: Vec<_> = outcome.change().unwrap().actions.iter().collect();
        assert_eq!(ops.len(), 2, "{ops:?}");
        assert!(matches!(decide(vec![], false), Outcome::Blocked { fix: Some(_), .. }));
    }
}
