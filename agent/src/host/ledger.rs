//! What this process has changed on the host, in order.
//!
//! Every mutation passes through one of the few places that write here, so "a second run writes nothing" is a number that can
//! be reported and asserted, not a belief.

use std::sync::{Arc, Mutex, PoisonError};

/// Entries beyond this are counted and not kept: a run that writes for ever must not fill memory.
const KEEP: usize = 4096;

#[derive(Debug, Default)]
struct Entries {
    kept: Vec<String>,
    count: u64,
}

/// A list of mutations; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Entries>>);

impl Ledger {
    /// Notes a mutation that is about to happen. `what` names it, never its secret content.
    pub fn note(&self, what: impl Into<String>) {
        let what = what.into();
        log::debug!("{what}");
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.count += 1;
        if entries.kept.len() < KEEP {
            entries.kept.push(what);
        }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// Takes the list, leaving an empty one.
    pub fn take(&self) -> Vec<String> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.count = 0;
        std::mem::take(&mut entries.kept)
    }
}
