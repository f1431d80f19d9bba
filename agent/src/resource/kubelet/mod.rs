//! The kubelet's settings (`kubelet/config`): its config file or a fragment of it, and the drop-in that passes them.
//!
//! With `kubelet_mode = "agent"` all of it is ours. With `"kubeadm"` the main file belongs to kubeadm, which writes it anew at
//! each join and upgrade: ours is a fragment over it where the kubelet reads fragments, and flags where it does not.

pub mod config;
pub mod dropin;
pub mod version;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::owned_file::{FileNow, HEADER, OwnedFile, missing_directories};
use super::{ObserveError, Past, PlanContext, Resource, ResourceError, digest};
use crate::config::settings::{KubeletMode, Settings};
use crate::host::{Host, Platform};
use crate::plan::{Action, Change, Diff, Notify, Outcome, ResourceId};
use config::Input;
use version::Minor;

/// The main config file: ours in agent mode, kubeadm's otherwise.
pub const CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// Fragments over the main file.
pub const FRAGMENTS: &str = "/etc/kubernetes/kubelet.conf.d";

/// Our fragment.
const FRAGMENT: &str = "/etc/kubernetes/kubelet.conf.d/50-nodeagent.conf";

/// Files from which the packages' drop-in takes flags; a flag there beats our file.
const ENVIRONMENT_FILES: [&str; 2] = ["/etc/sysconfig/kubelet", "/var/lib/kubelet/kubeadm-flags.env"];

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Written.
    pub files: Vec<OwnedFile>,
    /// Not there: what the other mode would have left.
    pub unwanted: Vec<String>,
    /// Exist.
    pub directories: Vec<String>,
    /// `unix:///run/nodeagent/cri.sock`
    pub endpoint: String,
    /// Flags of others reach the kubelet.
    pub foreign_flags: bool,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// In the order of the files wanted.
    pub files: Vec<FileNow>,
    /// Unwanted files that exist.
    pub leftovers: Vec<String>,
    /// Directories that do not exist, with those above them.
    pub missing_directories: Vec<String>,
    /// Flags from the packages' environment files: file and word.
    pub foreign_flags: Vec<(String, String)>,
}

/// Decides.
pub fn plan(id: &ResourceId, minor: Minor, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    if let Some(blocked) = lint(minor, desired, observed) {
        return blocked;
    }
    let (mut actions, mut diffs, mut missing) = (Vec::<Action>::new(), Vec::new(), true);
    for (file, now) in desired.files.iter().zip(&observed.files) {
        missing &= now.found.is_none();
        if let Some(obstacle) = now.obstacle() {
            let reason = format!("{} is {obstacle}", file.path);
            return Outcome::Blocked { reason, fix: Some(format!("move {} away", file.path)) };
        }
        if let Some(step) = file.step(now) {
            actions.extend(step.actions);
            diffs.extend(step.diffs);
        }
    }
    let make = |path: &String| Action::MakeDirectory { path: path.clone(), mode: 0o755, uid: 0, gid: 0 };
    let directories: Vec<Action> =
        observed.missing_directories.iter().map(make).filter(|action| !actions.contains(action)).collect();
    for path in &observed.missing_directories {
        diffs.push(Diff::Value { what: path.clone(), old: None, new: Some("directory".to_owned()) });
    }
    actions.extend(directories);
    for path in &observed.leftovers {
        diffs.push(Diff::Value { what: path.clone(), old: Some("there".to_owned()), new: None });
        actions.push(Action::RemoveFile { path: path.clone() });
    }
    if actions.is_empty() {
        return Outcome::converged();
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(missing),
        summary: format!("configure the kubelet of Kubernetes {}", minor.text()),
        diffs,
        actions,
        notify: vec![Notify::DaemonReload, Notify::RestartUnit(super::unit::KUBELET.to_owned())],
        reboot: None,
    })
}

/// Flags of others that would end the kubelet, or quietly win over our file.
fn lint(minor: Minor, desired: &Desired, observed: &Observed) -> Option<Outcome> {
    if !desired.foreign_flags {
        return None;
    }
    observed.foreign_flags.iter().find_map(|(file, word)| {
        if let Some(gone) = minor.removed(word) {
            return Some(Outcome::Blocked {
                reason: format!("{file} passes {word}, which Kubernetes 1.{gone} removed: the kubelet would not start"),
                fix: Some(format!("remove {word} from {file}")),
            });
        }
        let endpoint = word.strip_prefix("--container-runtime-endpoint=")?;
        let same = endpoint.trim_start_matches("unix://") == desired.endpoint.trim_start_matches("unix://");
        (!same).then(|| Outcome::Conflict {
            reason: format!("{file} passes {word}, which wins over our {}", desired.endpoint),
        })
    })
}

/// The kubelet's settings.
pub struct KubeletConfig {
    id: ResourceId,
    settings: Settings,
    platform: Platform,
}

impl KubeletConfig {
    /// None where there is no kubelet, or it is somebody else's. Wrong settings for this version are an error.
    pub fn new(settings: &Settings, platform: &Platform) -> Result<Option<KubeletConfig>, ResourceError> {
        let Some(kubernetes) = settings.kubernetes.as_ref().filter(|it| it.kubelet_mode != KubeletMode::External)
        else {
            return Ok(None);
        };
        config::check(&Input { settings, kubernetes, platform, resolved: false })?;
        let id = ResourceId::new("kubelet", "config");
        Ok(Some(KubeletConfig { id, settings: settings.clone(), platform: platform.clone() }))
    }

    fn desired(&self, resolved: bool) -> Result<(Minor, Desired), ResourceError> {
        let none = || ResourceError::Setting { key: "kubernetes".to_owned(), problem: "missing".to_owned() };
        let kubernetes = self.settings.kubernetes.as_ref().ok_or_else(none)?;
        let input = Input { settings: &self.settings, kubernetes, platform: &self.platform, resolved };
        let own = kubernetes.kubelet_mode == KubeletMode::Agent;
        let config_path = if own { CONFIG } else { FRAGMENT };
        let mut files = Vec::new();
        if let Some(config) = config::render(&input) {
            let yaml = serde_saphyr::to_string(&config).map_err(|error| ResourceError::Setting {
                key: "kubernetes.kubelet".to_owned(),
                problem: error.to_string(),
            })?;
            files.push(OwnedFile::public(config_path, format!("{HEADER}{yaml}")));
        }
        files.push(OwnedFile::public(dropin::PATH, dropin::render(&input, &config::flags(&input))));
        let unwanted = if own || input.flags_only() { vec![FRAGMENT.to_owned()] } else { Vec::new() };
        let desired = Desired {
            files,
            unwanted,
            directories: if own { vec![config::MANIFESTS.to_owned()] } else { Vec::new() },
            endpoint: format!("unix://{}", self.settings.runtime.socket),
            foreign_flags: !own,
        };
        Ok((kubernetes.version.into(), desired))
    }

    fn observe(host: &Host, desired: &Desired) -> Result<Observed, ObserveError> {
        let mut observed = Observed::default();
        for file in &desired.files {
            observed.files.push(FileNow::observe(&host.root, &file.path)?);
        }
        for path in &desired.unwanted {
            if host.root.link_metadata(path)?.is_some() {
                observed.leftovers.push(path.clone());
            }
        }
        for path in &desired.directories {
            if !host.root.exists(path)? {
                observed.missing_directories.extend(missing_directories(&host.root, path)?);
                observed.missing_directories.push(path.clone());
            }
        }
        for file in ENVIRONMENT_FILES {
            let text = host.root.read(file)?.unwrap_or_default();
            let words = flags_in(&String::from_utf8_lossy(&text));
            observed.foreign_flags.extend(words.into_iter().map(|word| (file.to_owned(), word)));
        }
        Ok(observed)
    }
}

/// Flags in the values of an environment file, systemd.exec(5): quotes around a value are no part of it.
fn flags_in(text: &str) -> Vec<String> {
    let values =
        text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])).filter_map(|line| line.split_once('='));
    values
        .flat_map(|(_, value)| value.split_whitespace())
        .map(|word| word.trim_matches(['"', '\'']).replace(['"', '\''], ""))
        .filter(|word| word.starts_with("--"))
        .collect()
}

#[async_trait]
impl Resource for KubeletConfig {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        // the package brings the unit and the directories, and would complain about ours on its first installation
        vec![ResourceId::new("package", "kubernetes")]
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let stub = host.root.end_of_links("/etc/resolv.conf")?;
        let (minor, desired) = self.desired(stub.ends_with("/stub-resolv.conf"))?;
        let observed = KubeletConfig::observe(host, &desired)?;
        Ok(plan(&self.id, minor, &desired, &observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        let version = self.settings.kubernetes.as_ref().map_or(String::new(), |it| it.version.to_string());
        format!(
            "The kubelet of Kubernetes {version} gets its settings from {dropin} and from {CONFIG} (agent mode) or {FRAGMENT} \
             (kubeadm mode, from 1.28 on). A change restarts the kubelet once. By hand: systemctl cat kubelet; cat {CONFIG} \
             {FRAGMENTS}/*",
            dropin = dropin::PATH,
        )
    }

    fn applied(&self) -> Value {
        let files = self.desired(false).map(|(_, desired)| desired.files).unwrap_or_default();
        let text: String = files.into_iter().map(|file| file.path + "\n" + &file.content).collect();
        json!({"digest": digest(&text)})
    }
}

#[cfg(test)]
mod tests;
