//! Pairs of categories, one for each pod.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Categories of the usual policies: c0 to c1023.
const CATEGORIES: u32 = 1024;
/// Pairs of two different ones.
const PAIRS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// The levels that pods have. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Levels {
    taken: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Levels {
    /// A level that no other pod has, beginning the search at the pair with that number; none when all are taken.
    pub fn take(&self, seed: u32) -> Option<String> {
        let mut taken = self.lock();
        let free = (0..PAIRS)
            .map(|offset| level(seed.wrapping_add(offset) % PAIRS))
            .find(|level| !taken.contains_key(level))?;
        taken.insert(free.clone(), 1);
        Some(free)
    }

    /// Notes the level of a pod that is there already. Several may have asked for the same one.
    pub fn note(&self, level: &str) {
        *self.lock().entry(level.to_owned()).or_default() += 1;
    }

    /// Gives a level back, once for each time that it was taken or noted.
    pub fn free(&self, level: &str) {
        let mut taken = self.lock();
        if let Some(pods) = taken.get_mut(level) {
            *pods -= 1;
            if *pods == 0 {
                taken.remove(level);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The level of a number: pairs in the order of their larger category.
fn level(number: u32) -> String {
    // the largest `second` with second * (second - 1) / 2 <= number
    let mut second = 1;
    let mut before = 0;
    while before + second <= number {
        before += second;
        second += 1;
    }
    format!("s0:c{},c{second}", number - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_another_pair_of_different_categories() {
        assert_eq!(level(0), "s0:c0,c1");
        assert_eq!(level(1), "s0:c0,c2");
        assert_eq!(level(2), "s0:c1,c2");
        assert_eq!(level(PAIRS - 1), "s0:c1022,c1023");
        let some: std::collections::HashSet<String> = (0..5000).map(level).collect();
        assert_eq!(some.len(), 5000);
    }

    #[test]
    fn no_two_pods_have_one_level_until_it_is_free_again() {
        let levels = Levels::default();
        let one = levels.take(7).unwrap();
        let other = levels.take(7).unwrap();
        assert_ne!(one, other);
        levels.note(&level(9));
        assert_eq!(levels.take(9).unwrap(), level(10));
        levels.free(&one);
        assert_eq!(levels.take(7).unwrap(), one);
        assert_eq!(levels.take(PAIRS + 7).unwrap(), level(11), "numbers go round, and 7 to 10 are taken");
    }
}
