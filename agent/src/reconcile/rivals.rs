//! Who else changes what the agent repairs again and again, as far as the host can tell.

use super::engine::Engine;
use crate::host::systemd::SystemdError;
use crate::plan::{Change, Reason};

/// Programs that keep hosts to a configuration of their own; each of them can be behind any drift.
const MANAGERS: [&str; 9] = [
    "puppet.service",
    "chef-client.service",
    "salt-minion.service",
    "cfengine3.service",
    "cf-execd.service",
    "ansible-pull.timer",
    "ansible-pull.service",
    "amazon-ssm-agent.service",
    "rhcd.service",
];

impl Engine<'_> {
    /// Whoever is known to be at it: the file that wins over ours, or the units that are active and do such things.
    pub(super) async fn rivals_of(&self, change: &Change) -> Result<Option<String>, SystemdError> {
        if let Reason::Overridden { by } = &change.reason {
            return Ok(Some(by.clone()));
        }
        let own = self.resource(&change.id).map(|resource| resource.rivals()).unwrap_or_default();
        let mut active = Vec::new();
        for name in own.iter().chain(&MANAGERS) {
            if self.host.systemd.unit(name).await?.is_active() {
                active.push(*name);
            }
        }
        Ok((!active.is_empty()).then(|| active.join(", ")))
    }
}
