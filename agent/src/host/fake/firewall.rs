//! firewalld in small: what is in its zones, and a default zone.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::host::firewall::{Firewall, FirewallEntry, FirewallError, Zone};
use crate::host::ledger::Ledger;

#[derive(Default)]
struct State {
    default_zone: Option<String>,
    entries: BTreeSet<FirewallEntry>,
}

/// The firewall of a fake host.
pub struct FakeFirewall {
    ledger: Ledger,
    state: Mutex<State>,
}

impl FakeFirewall {
    pub(super) fn new(ledger: Ledger) -> FakeFirewall {
        FakeFirewall { ledger, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is let through, as text.
    pub fn open(&self) -> Vec<String> {
        self.state().entries.iter().map(ToString::to_string).collect()
    }

    /// Somebody else flushes it.
    pub fn flush(&self) {
        self.state().entries.clear();
    }
}

#[async_trait]
impl Firewall for FakeFirewall {
    async fn default_zone(&self) -> Result<String, FirewallError> {
        Ok(self.state().default_zone.clone().unwrap_or_else(|| "public".to_owned()))
    }

    async fn set_default_zone(&self, zone: &str) -> Result<(), FirewallError> {
        self.ledger.note(format!("firewall: default zone {zone}"));
        self.state().default_zone = Some(zone.to_owned());
        Ok(())
    }

    async fn zone(&self, name: &str) -> Result<Zone, FirewallError> {
        let within = |entry: &&FirewallEntry| {
            let (FirewallEntry::Source { zone, .. } | FirewallEntry::Port { zone, .. }) = entry;
            zone == name
        };
        Ok(Zone { entries: self.state().entries.iter().filter(within).cloned().collect() })
    }

    async fn add(&self, entry: &FirewallEntry) -> Result<(), FirewallError> {
        if self.state().entries.insert(entry.clone()) {
            self.ledger.note(format!("firewall: add {entry}"));
        }
        Ok(())
    }

    async fn remove(&self, entry: &FirewallEntry) -> Result<(), FirewallError> {
        if self.state().entries.remove(entry) {
            self.ledger.note(format!("firewall: remove {entry}"));
        }
        Ok(())
    }
}
