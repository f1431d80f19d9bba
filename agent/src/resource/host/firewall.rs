//! firewalld lets pods and the node's own ports through.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::owned_file::{FileNow, OwnedFile};
use super::super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::config::host::{FirewallMode, FirewallSettings};
use crate::config::settings::Role;
use crate::host::Host;
use crate::host::firewall::{FirewallEntry, zone};
use crate::plan::{Action, Change, Diff, Outcome, ResourceId, Stage, Undo};

/// firewalld's unit.
pub const UNIT: &str = "firewalld.service";

/// The zone in which everything passes.
const TRUSTED: &str = "trusted";

/// firewalld's own default zone.
const PUBLIC: &str = "public";

/// What every node answers on: the kubelet, and services that are open on every node.
const NODE_PORTS: [(&str, &str); 3] = [("10250", "tcp"), ("30000-32767", "tcp"), ("30000-32767", "udp")];

/// What a control plane answers on beside that.
const CONTROL_PLANE_PORTS: [(&str, &str); 4] =
    [("6443", "tcp"), ("2379-2380", "tcp"), ("10257", "tcp"), ("10259", "tcp")];

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Everything passes.
    pub trust_all: bool,
    /// Networks whose packets are trusted.
    pub sources: Vec<String>,
    /// Ports that are open in the default zone.
    pub ports: Vec<(String, String)>,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// firewalld is not installed.
    Absent,
    /// It runs, and was asked.
    Running {
        /// Its default zone.
        default_zone: String,
        /// What is in it and in the trusted zone.
        entries: BTreeSet<FirewallEntry>,
    },
    /// It does not run, or not here: what its files say.
    Files {
        /// Its default zone.
        default_zone: String,
        /// firewalld.conf, and the zones' files.
        files: Vec<ZoneFile>,
    },
}

/// A file of firewalld.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneFile {
    /// The zone; empty is firewalld.conf.
    pub zone: String,
    /// Where it is written.
    pub path: String,
    /// What is there.
    pub now: FileNow,
    /// Its text, or the vendor's where there is none.
    pub text: String,
}

impl Desired {
    fn entries(&self, default_zone: &str) -> Vec<FirewallEntry> {
        let source = |source: &String| FirewallEntry::Source { zone: TRUSTED.to_owned(), source: source.clone() };
        let port = |(port, protocol): &(String, String)| FirewallEntry::Port {
            zone: default_zone.to_owned(),
            port: port.clone(),
            protocol: protocol.clone(),
        };
        self.sources.iter().map(source).chain(self.ports.iter().map(port)).collect()
    }

    /// What was let through for an earlier config, and this one no longer asks for.
    fn stale(&self, last: Option<&Desired>, default_zone: &str) -> Vec<FirewallEntry> {
        let wanted = self.entries(default_zone);
        let before = last.map(|last| last.entries(default_zone)).unwrap_or_default();
        before.into_iter().filter(|entry| !wanted.contains(entry)).collect()
    }
}

/// Decides. `last` is what was applied before.
pub fn plan(id: &ResourceId, desired: &Desired, last: Option<&Desired>, observed: &Observed, past: &Past) -> Outcome {
    let trusts_all = |zone: &str| !desired.trust_all && zone == TRUSTED;
    // we had made it so for an earlier config
    let was_ours = last.is_some_and(|last| last.trust_all);
    let (mut actions, mut diffs) = (Vec::new(), Vec::new());
    match observed {
        Observed::Absent => return Outcome::Converged { note: Some("firewalld is not installed".to_owned()) },
        Observed::Running { default_zone, .. } if desired.trust_all => {
            if default_zone != TRUSTED {
                diffs.push(value("default zone", Some(default_zone), TRUSTED));
                actions.push(Action::DefaultZone { zone: TRUSTED.to_owned() });
            }
        }
        Observed::Running { default_zone, .. } if trusts_all(default_zone) && was_ours => {
            diffs.push(value("default zone", Some(default_zone), PUBLIC));
            actions.push(Action::DefaultZone { zone: PUBLIC.to_owned() });
            for entry in desired.entries(PUBLIC) {
                diffs.push(value(&entry.to_string(), None, "let through"));
                actions.push(Action::OpenFirewall { entry });
            }
        }
        Observed::Running { default_zone, entries } => {
            for entry in desired.stale(last, default_zone).into_iter().filter(|entry| entries.contains(entry)) {
                let (what, old) = (format!("firewall: {entry}"), Some("let through".to_owned()));
                diffs.push(Diff::Value { what, old, new: None });
                actions.push(Action::TakeBack { undo: Undo::CloseFirewall { entry } });
            }
            for entry in desired.entries(default_zone).into_iter().filter(|entry| !entries.contains(entry)) {
                diffs.push(value(&entry.to_string(), None, "let through"));
                actions.push(Action::OpenFirewall { entry });
            }
        }
        Observed::Files { default_zone, files } => {
            let then = match (desired.trust_all, trusts_all(default_zone) && was_ours) {
                (true, _) => TRUSTED,
                (false, true) => PUBLIC,
                (false, false) => default_zone,
            };
            for file in files {
                let Some(text) = wanted_text(desired, last, (default_zone, then), file) else {
                    let reason = format!("{} is no file of firewalld", file.path);
                    return Outcome::Blocked { reason, fix: Some(format!("move {} away", file.path)) };
                };
                // what is as the vendor has it needs no file of its own
                if text == file.text {
                    continue;
                }
                if let Some(step) = OwnedFile::public(&file.path, text).step(&file.now) {
                    actions.extend(step.actions);
                    diffs.extend(step.diffs);
                }
            }
        }
    }
    if actions.is_empty() {
        let (Observed::Running { default_zone, .. } | Observed::Files { default_zone, .. }) = observed else {
            return Outcome::converged();
        };
        return match trusts_all(default_zone) {
            true => Outcome::Conflict {
                reason: format!(
                    "the default zone is {TRUSTED}, so everything passes: firewall-cmd --set-default-zone={PUBLIC}, or say \
                     firewall.mode = \"trusted\""
                ),
            },
            false => Outcome::converged(),
        };
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(false),
        summary: match desired.trust_all {
            true => "have the firewall let everything through".to_owned(),
            false => "have the firewall let pods and this node's ports through".to_owned(),
        },
        diffs,
        actions,
        // never a reload: it flushes the rules of kube-proxy and of network plugins
        notify: Vec::new(),
        reboot: None,
    })
}

fn value(what: &str, old: Option<&str>, new: &str) -> Diff {
    Diff::Value { what: format!("firewall: {what}"), old: old.map(str::to_owned), new: Some(new.to_owned()) }
}

/// None when the file is not what it should be. `zone` is the default zone, now and then.
fn wanted_text(desired: &Desired, last: Option<&Desired>, zone: (&str, &str), file: &ZoneFile) -> Option<String> {
    let (now, default_zone) = zone;
    if file.zone.is_empty() {
        return Some(if now == default_zone { file.text.clone() } else { with_default_zone(&file.text, default_zone) });
    }
    let mut text = file.text.clone();
    let of_this_file = |entry: &FirewallEntry| {
        let (FirewallEntry::Source { zone, .. } | FirewallEntry::Port { zone, .. }) = entry;
        *zone == file.zone
    };
    for entry in desired.stale(last, default_zone).iter().filter(|entry| of_this_file(entry)) {
        text = zone::without(&text, entry);
    }
    if !desired.trust_all {
        for entry in desired.entries(default_zone).iter().filter(|entry| of_this_file(entry)) {
            if !zone::has(&text, entry) {
                text = zone::with(&text, entry)?;
            }
        }
    }
    Some(text)
}

fn with_default_zone(text: &str, zone: &str) -> String {
    let is_setting = |line: &&str| line.split_once('=').is_some_and(|(key, _)| key.trim() == "DefaultZone");
    let mut lines: Vec<&str> = text.lines().filter(|line| !is_setting(line)).collect();
    let line = format!("DefaultZone={zone}");
    lines.push(&line);
    lines.join("\n") + "\n"
}

/// The firewall of the host.
pub struct FirewallRules {
    id: ResourceId,
    desired: Desired,
}

impl FirewallRules {
    /// None where the firewall is left as it is, or is switched off as a unit.
    pub fn new(settings: &FirewallSettings, role: Role) -> Option<FirewallRules> {
        let desired = match settings.mode {
            FirewallMode::Keep | FirewallMode::Off => return None,
            FirewallMode::Trusted => Desired { trust_all: true, sources: Vec::new(), ports: Vec::new() },
            FirewallMode::Manage => {
                let of_role: &[(&str, &str)] = if role == Role::ControlPlane { &CONTROL_PLANE_PORTS } else { &[] };
                let own = NODE_PORTS.iter().chain(of_role).copied();
                let mut ports: Vec<(String, String)> = own
                    .chain(settings.ports.iter().map(|port| port.parts()))
                    .map(|(port, protocol)| (port.to_owned(), protocol.to_owned()))
                    .collect();
                ports.sort();
                ports.dedup();
                let sources = settings.sources.iter().map(|source| source.as_str().to_owned()).collect();
                Desired { trust_all: false, sources, ports }
            }
        };
        Some(FirewallRules { id: ResourceId::single("firewall"), desired })
    }

    async fn observe(&self, host: &Host) -> Result<Observed, ObserveError> {
        let unit = host.systemd.unit(UNIT).await?;
        if !unit.exists() {
            return Ok(Observed::Absent);
        }
        if unit.is_active() && !host.is_offline() {
            let default_zone = host.firewall.default_zone().await?;
            let mut entries = host.firewall.zone(TRUSTED).await?.entries;
            entries.extend(host.firewall.zone(&default_zone).await?.entries);
            return Ok(Observed::Running { default_zone, entries });
        }
        let config = host.root.read_text(zone::CONFIG)?.unwrap_or_default();
        let default_zone = zone::default_zone(&config).unwrap_or("public").to_owned();
        let mut files = vec![ZoneFile {
            zone: String::new(),
            path: zone::CONFIG.to_owned(),
            now: FileNow::observe(&host.root, zone::CONFIG)?,
            text: config,
        }];
        for name in [TRUSTED, PUBLIC, default_zone.as_str()] {
            // the default zone may be one of the others
            if files.iter().any(|file| file.zone == name) {
                continue;
            }
            let path = format!("{}/{name}.xml", zone::ETC);
            let text = match host.root.read_text(&path)? {
                Some(text) => text,
                None => host.root.read_text(&format!("{}/{name}.xml", zone::VENDOR))?.unwrap_or_default(),
            };
            files.push(ZoneFile { zone: name.to_owned(), now: FileNow::observe(&host.root, &path)?, path, text });
        }
        Ok(Observed::Files { default_zone, files })
    }
}

#[async_trait]
impl Resource for FirewallRules {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    // firewalld may be a package of the config, and is ordered after the boot's first half
    fn needs(&self) -> Vec<ResourceId> {
        vec![ResourceId::new("package", "host")]
    }

    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        // state that an older agent wrote in another form is no reason to stop
        let last = context.last_applied.and_then(|last| Desired::deserialize(last).ok());
        let past = context.past(&self.applied());
        Ok(plan(&self.id, &self.desired, last.as_ref(), &self.observe(host).await?, &past))
    }

    fn rivals(&self) -> &'static [&'static str] {
        &["docker.service", "libvirtd.service"]
    }

    fn explain(&self) -> String {
        "firewalld lets packets of pods and services and the ports of this node through, now and after a restart: over D-Bus where \
         it runs, in its zone files where it does not. It is never told to reload, which would flush the rules of kube-proxy. By \
         hand: firewall-cmd --zone=trusted --list-all; firewall-cmd --list-all"
            .to_owned()
    }

    fn applied(&self) -> Value {
        json!({"trust_all": self.desired.trust_all, "sources": self.desired.sources, "ports": self.desired.ports})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(trust_all: bool) -> Desired {
        let ports = if trust_all { vec![] } else { vec![("10250".to_owned(), "tcp".to_owned())] };
        let sources = if trust_all { vec![] } else { vec!["10.244.0.0/16".to_owned()] };
        Desired { trust_all, sources, ports }
    }

    fn decide(trust_all: bool, observed: &Observed) -> Outcome {
        plan(&ResourceId::single("firewall"), &desired(trust_all), None, observed, &Past::Unknown)
    }

    fn after(last: &Desired, observed: &Observed) -> Outcome {
        plan(&ResourceId::single("firewall"), &desired(false), Some(last), observed, &Past::Unknown)
    }

    #[test]
    fn what_left_the_config_is_closed_again_and_what_others_opened_stays() {
        let last = Desired {
            trust_all: false,
            sources: vec!["10.244.0.0/16".to_owned(), "10.9.0.0/16".to_owned()],
            ports: desired(false).ports,
        };
        let mut entries: BTreeSet<FirewallEntry> = last.entries("public").into_iter().collect();
        entries.insert(FirewallEntry::Port { zone: "public".into(), port: "22".into(), protocol: "tcp".into() });
        let outcome = after(&last, &Observed::Running { default_zone: "public".into(), entries });
        let entry = FirewallEntry::Source { zone: "trusted".into(), source: "10.9.0.0/16".into() };
        assert_eq!(
            outcome.change().unwrap().actions,
            [Action::TakeBack { undo: Undo::CloseFirewall { entry: entry.clone() } }]
        );
        let trusted = "<zone>\n  <source address=\"10.244.0.0/16\"/>\n  <source address=\"10.9.0.0/16\"/>\n</zone>\n";
        let files = Observed::Files { default_zone: "public".into(), files: vec![zone_file("trusted", trusted)] };
        let outcome = after(&last, &files);
        let [Action::WriteFile { content, .. }] = &outcome.change().unwrap().actions[..] else { panic!("{outcome:?}") };
        assert!(!content.contains("10.9.0.0") && content.contains("10.244.0.0"), "{content}");
    }

    #[test]
    fn a_default_zone_that_trusts_everything_is_put_back_when_it_was_ours_and_said_when_it_was_not() {
        let entries: BTreeSet<FirewallEntry> = desired(false).entries(TRUSTED).into_iter().collect();
        let open = Observed::Running { default_zone: TRUSTED.into(), entries };
        let outcome = after(&desired(true), &open);
        assert_eq!(outcome.change().unwrap().actions[0], Action::DefaultZone { zone: "public".into() });
        assert!(matches!(decide(false, &open), Outcome::Conflict { reason } if reason.contains("set-default-zone")));
    }

    fn zone_file(zone: &str, text: &str) -> ZoneFile {
        let now = FileNow { missing_directories: vec![], found: None };
        ZoneFile { zone: zone.into(), path: format!("/etc/firewalld/zones/{zone}.xml"), now, text: text.into() }
    }

    #[test]
    fn only_what_is_missing_is_let_through() {
        let all: BTreeSet<FirewallEntry> = desired(false).entries("public").into_iter().collect();
        let running = |entries: BTreeSet<FirewallEntry>| Observed::Running { default_zone: "public".into(), entries };
        assert_eq!(decide(false, &running(all.clone())), Outcome::converged());
        let one: BTreeSet<FirewallEntry> = all.iter().take(1).cloned().collect();
        assert_eq!(decide(false, &running(one)).change().unwrap().actions.len(), 1);
        assert!(matches!(
            &decide(true, &running(all)).change().unwrap().actions[..],
            [Action::DefaultZone { zone }] if zone == "trusted"
        ));
        assert!(matches!(decide(false, &Observed::Absent), Outcome::Converged { note: Some(_) }));
    }

    #[test]
    fn without_a_running_firewalld_the_zone_files_are_written() {
        let files = |trusted: &str, public: &str| Observed::Files {
            default_zone: "public".into(),
            files: vec![zone_file("trusted", trusted), zone_file("public", public)],
        };
        let outcome = decide(false, &files("<zone target=\"ACCEPT\">\n</zone>\n", "<zone>\n</zone>\n"));
        let change = outcome.change().unwrap();
        let written: Vec<&String> = change
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::WriteFile { content, .. } => Some(content),
                _ => None,
            })
            .collect();
        assert!(written[0].contains("<source address=\"10.244.0.0/16\"/>"), "{written:?}");
        assert!(written[1].contains("<port port=\"10250\" protocol=\"tcp\"/>"), "{written:?}");
        assert_eq!(decide(false, &files(written[0], written[1])), Outcome::converged());
        assert!(matches!(decide(false, &files("not xml", "<zone></zone>")), Outcome::Blocked { .. }));
    }
}
