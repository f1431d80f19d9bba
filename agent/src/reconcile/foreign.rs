//! What somebody else has made of a resource: compared three ways, last applied, wanted now, and found.
//!
//! A difference is repaired or reported, as the policy says, unless it is to stay: every later one under the policy `keep`, or the
//! one that a person has adopted. Both end when the config wants something else of the resource: then the config is newer.

use super::planned::digest;
use super::state::Applied;
use crate::config::settings::DriftPolicy;
use crate::plan::{Outcome, Reason};

/// Names what differs; none where nothing does, or where nobody could want it to stay.
pub fn difference(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Change(change) if change.reason != Reason::Stale => Some(digest(&(&change.diffs, &change.actions))),
        Outcome::Conflict { reason } => Some(digest(reason)),
        _ => None,
    }
}

/// What there is to say of it, for people.
pub fn in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Change(change) => format!("the config would {}", change.summary),
        Outcome::Conflict { reason } | Outcome::Waiting { reason } | Outcome::Blocked { reason, .. } => reason.clone(),
        Outcome::Converged { note } => note.clone().unwrap_or_default(),
    }
}

/// The outcome, or that it is to stay. `applied` is what was done for the resource before, `wanted` what would be now.
pub fn unless_it_stays(
    outcome: Outcome,
    applied: Option<&Applied>,
    wanted: &serde_json::Value,
    policy: DriftPolicy,
) -> Outcome {
    let Some(applied) = applied.filter(|applied| applied.value == *wanted) else { return outcome };
    let Some(difference) = difference(&outcome) else { return outcome };
    let words = in_words(&outcome);
    let note = match &applied.adopted {
        Some(adopted) if adopted.difference == difference => {
            format!("left as it was adopted on {}: {words}", adopted.at)
        }
        _ if policy == DriftPolicy::Keep => {
            format!("left as somebody else has made it, which the config says to keep: {words}")
        }
        _ => return outcome,
    };
    Outcome::Converged { note: Some(note) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::state::Adopted;
    use super::*;
    use crate::plan::{Change, Diff, ResourceId};

    fn change(old: &str) -> Outcome {
        let diff = Diff::Value { what: "x".into(), old: Some(old.into()), new: Some("1".into()) };
        Outcome::Change(Change {
            id: ResourceId::new("sysctl", "x"),
            reason: Reason::Drifted { last: None },
            summary: "set x to 1".into(),
            diffs: vec![diff],
            actions: Vec::new(),
            notify: Vec::new(),
            reboot: None,
        })
    }

    fn applied(adopted: Option<&Outcome>) -> Applied {
        let adopted = adopted.and_then(difference);
        let adopted = adopted.map(|difference| Adopted { difference, at: "2026-01-01T00:00:00Z".parse().unwrap() });
        Applied { value: json!(1), transaction: None, adopted }
    }

    fn stays(outcome: &Outcome, applied: Option<&Applied>, wanted: i32, policy: DriftPolicy) -> bool {
        matches!(
            unless_it_stays(outcome.clone(), applied, &json!(wanted), policy),
            Outcome::Converged { note: Some(_) }
        )
    }

    #[test]
    fn keep_leaves_what_others_changed_and_not_what_the_config_changed() {
        let drifted = change("0");
        assert!(stays(&drifted, Some(&applied(None)), 1, DriftPolicy::Keep));
        assert!(!stays(&drifted, Some(&applied(None)), 2, DriftPolicy::Keep), "the config is newer");
        assert!(!stays(&drifted, None, 1, DriftPolicy::Keep), "it was never applied");
        for policy in [DriftPolicy::Repair, DriftPolicy::Report] {
            assert!(!stays(&drifted, Some(&applied(None)), 1, policy));
        }
    }

    #[test]
    fn an_adopted_difference_stays_and_another_one_is_drift_again() {
        let state = applied(Some(&change("0")));
        assert!(stays(&change("0"), Some(&state), 1, DriftPolicy::Repair));
        assert!(!stays(&change("5"), Some(&state), 1, DriftPolicy::Repair));
        assert!(!stays(&change("0"), Some(&state), 2, DriftPolicy::Repair), "the config is newer");
        let conflict = Outcome::Conflict { reason: "it is masked".into() };
        assert!(stays(&conflict, Some(&applied(Some(&conflict))), 1, DriftPolicy::Repair));
    }

    #[test]
    fn what_only_has_to_be_read_again_is_nobodys_change() {
        let Outcome::Change(stale) = change("0") else { panic!() };
        let stale = Outcome::Change(Change { reason: Reason::Stale, ..stale });
        assert!(!stays(&stale, Some(&applied(None)), 1, DriftPolicy::Keep));
    }
}
