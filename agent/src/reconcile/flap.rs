//! Against repairing the same thing for ever: somebody else wants it otherwise, and a person has to decide.

use jiff::{SignedDuration, Timestamp};

use super::state::State;
use crate::plan::ResourceId;

/// Repairs are counted over this time.
const WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// How often it was repaired within the window.
pub fn recent_repairs(state: &State, id: &ResourceId, now: Timestamp) -> usize {
    state.repairs.get(id).map_or(0, |times| times.iter().filter(|time| is_recent(**time, now)).count())
}

/// Notes a repair, and forgets those that are out of the window.
pub fn note_repair(state: &mut State, id: &ResourceId, now: Timestamp) {
    state.repairs.entry(id.clone()).or_default().push(now);
    for times in state.repairs.values_mut() {
        times.retain(|time| is_recent(*time, now));
    }
    state.repairs.retain(|_, times| !times.is_empty());
}

/// A clock that was set back leaves times in the future; they count for nothing.
fn is_recent(time: Timestamp, now: Timestamp) -> bool {
    time <= now && now.duration_since(time) < WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::state::Identity;

    #[test]
    fn only_the_last_hour_counts() {
        let mut state = State::new(Identity::default());
        let id = ResourceId::single("swap");
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        note_repair(&mut state, &id, at("2026-01-01T00:00:00Z"));
        note_repair(&mut state, &id, at("2026-01-01T00:30:00Z"));
        assert_eq!(recent_repairs(&state, &id, at("2026-01-01T00:59:59Z")), 2);
        assert_eq!(recent_repairs(&state, &id, at("2026-01-01T01:00:00Z")), 1);
        assert_eq!(recent_repairs(&state, &id, at("2025-01-01T00:00:00Z")), 0, "the future does not count");
        note_repair(&mut state, &id, at("2026-01-01T03:00:00Z"));
        assert_eq!(state.repairs[&id].len(), 1);
    }
}
