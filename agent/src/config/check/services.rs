//! Checks of the firewall, the registries and SELinux's booleans.

use std::collections::BTreeMap;

use super::Checker;
use crate::config::host::{Cidr, FirewallFragment, FirewallMode, FirewallSettings, RegistryFragment, RegistrySettings};

impl Checker<'_> {
    pub(super) fn booleans(&mut self, booleans: BTreeMap<String, bool>) -> BTreeMap<String, bool> {
        for name in booleans.keys() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) {
                let problem = format!("{name:?} is no boolean of a policy (letters, digits and _)");
                self.wrong(&["selinux", "booleans", name], problem);
            }
        }
        booleans
    }

    pub(super) fn firewall(&mut self, fragment: FirewallFragment) -> FirewallSettings {
        let mode = fragment.mode.unwrap_or_default();
        if mode != FirewallMode::Manage {
            for key in ["pod_cidrs", "service_cidrs", "ports"] {
                if self.is_given(&["firewall", key]) {
                    let problem = "has no effect unless firewall.mode is \"manage\"".to_owned();
                    self.wrong(&["firewall", key], problem);
                }
            }
        }
        let mut sources: Vec<Cidr> = fragment.pod_cidrs.into_iter().chain(fragment.service_cidrs).flatten().collect();
        sources.sort();
        sources.dedup();
        FirewallSettings { mode, sources, ports: fragment.ports.unwrap_or_default() }
    }

    pub(super) fn registries(&mut self, fragments: Vec<RegistryFragment>) -> Vec<RegistrySettings> {
        let mut registries: Vec<RegistrySettings> = Vec::new();
        for fragment in fragments {
            let prefix = fragment.prefix.as_str().to_owned();
            let insecure = fragment.insecure.unwrap_or(false);
            if insecure && fragment.accept_insecure != Some(true) {
                let problem =
                    "what is pulled can then be changed on its way; say accept_insecure = true if that is meant";
                self.named("registries", &prefix, "insecure", problem.to_owned());
            }
            // as containers-registries.conf(5): a wildcard has no place of its own
            if prefix.contains('*') && (fragment.location.is_some() || !prefix.starts_with("*.")) {
                let problem = "a wildcard stands at the front (*.example.com) and needs no location".to_owned();
                self.named("registries", &prefix, "prefix", problem);
            }
            registries.push(RegistrySettings {
                prefix: fragment.prefix,
                location: fragment.location,
                insecure,
                blocked: fragment.blocked.unwrap_or(false),
                mirrors: fragment.mirrors.unwrap_or_default(),
            });
        }
        registries.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        registries
    }
}
