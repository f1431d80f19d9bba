//! A finished job is not a healthy unit: systemd calls the start of a program done that dies a moment later.

use std::time::Duration;

use super::{JobKind, Systemd, SystemdError, UnitStatus};

/// How long a unit has to stay up before it counts. Longer than RestartSec of most units, so that one restart is seen.
pub const STABILITY: Duration = Duration::from_secs(2);

/// What a unit is after a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// As the job should leave it.
    Good,
    /// As it should be for now; whether it stays so shows only after a while.
    Unproven,
    /// Not.
    Bad,
}

impl Health {
    /// Judges a unit right after a job of this kind was done.
    pub fn after(kind: JobKind, unit: &UnitStatus) -> Health {
        match kind {
            JobKind::Stop if unit.is_active() => Health::Bad,
            JobKind::Stop => Health::Good,
            // an inactive unit stays as it is
            JobKind::TryRestart | JobKind::TryReload if unit.active_state == "inactive" => Health::Good,
            // the same process goes on: there is nothing to prove
            JobKind::TryReload if unit.is_active() => Health::Good,
            _ if unit.active_state == "failed" => Health::Bad,
            _ if unit.service_type == "oneshot" => Health::of_oneshot(unit),
            _ if unit.is_active() && unit.service_type.is_empty() => Health::Good,
            _ if unit.is_active() => Health::Unproven,
            _ => Health::Bad,
        }
    }

    fn of_oneshot(unit: &UnitStatus) -> Health {
        let ran = unit.is_active() || (!unit.remain_after_exit && unit.active_state == "inactive" && unit.condition);
        if ran && matches!(unit.result.as_str(), "" | "success") { Health::Good } else { Health::Bad }
    }

    /// Judges a unit that was up `before` and is looked at again after the window.
    fn later(before: &UnitStatus, after: &UnitStatus) -> Health {
        let same_run = before.invocation == after.invocation && after.restarts <= before.restarts;
        if after.is_active() && same_run { Health::Good } else { Health::Bad }
    }
}

/// Makes sure that a unit is, and stays, what a job was to make it.
pub async fn settle(systemd: &(impl Systemd + ?Sized), kind: JobKind, name: &str) -> Result<(), SystemdError> {
    let before = systemd.unit(name).await?;
    let unhealthy = |unit: &UnitStatus| SystemdError::Unhealthy { unit: name.to_owned(), state: unit.in_words() };
    match Health::after(kind, &before) {
        Health::Good => Ok(()),
        Health::Bad => Err(unhealthy(&before)),
        Health::Unproven => {
            tokio::time::sleep(STABILITY).await;
            let after = systemd.unit(name).await?;
            if Health::later(&before, &after) == Health::Good { Ok(()) } else { Err(unhealthy(&after)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(active: &str, sub: &str, kind: &str) -> UnitStatus {
        UnitStatus {
            load_state: "loaded".into(),
            active_state: active.into(),
            sub_state: sub.into(),
            service_type: kind.into(),
            result: "success".into(),
            invocation: "a".into(),
            ..UnitStatus::absent("x.service")
        }
    }

    #[test]
    fn what_a_done_job_left_is_judged_by_the_unit() {
        let oneshot_remains = UnitStatus { remain_after_exit: true, ..service("inactive", "dead", "oneshot") };
        let condition_failed = UnitStatus { condition: false, ..service("inactive", "dead", "oneshot") };
        for (kind, unit, health) in [
            (JobKind::Start, service("active", "running", "notify"), Health::Unproven),
            (JobKind::Start, service("activating", "auto-restart", "simple"), Health::Bad),
            (JobKind::Start, service("failed", "failed", "simple"), Health::Bad),
            (JobKind::Start, service("inactive", "dead", "oneshot"), Health::Good),
            (JobKind::Start, oneshot_remains, Health::Bad),
            (JobKind::Start, condition_failed, Health::Bad),
            (JobKind::Start, service("active", "exited", "oneshot"), Health::Good),
            (JobKind::Start, service("active", "listening", ""), Health::Good),
            (JobKind::Stop, service("inactive", "dead", "simple"), Health::Good),
            (JobKind::Stop, service("failed", "failed", "simple"), Health::Good),
            (JobKind::Stop, service("active", "running", "simple"), Health::Bad),
            (JobKind::TryRestart, service("inactive", "dead", "simple"), Health::Good),
        ] {
            assert_eq!(Health::after(kind, &unit), health, "{kind:?} {unit:?}");
        }
    }

    #[test]
    fn a_unit_that_was_started_again_in_the_window_did_not_stay_up() {
        let before = service("active", "running", "simple");
        assert_eq!(Health::later(&before, &before), Health::Good);
        let again = UnitStatus { invocation: "b".into(), ..before.clone() };
        assert_eq!(Health::later(&before, &again), Health::Bad);
        let restarted = UnitStatus { restarts: 1, ..before.clone() };
        assert_eq!(Health::later(&before, &restarted), Health::Bad);
        assert_eq!(Health::later(&before, &service("activating", "auto-restart", "simple")), Health::Bad);
    }
}
