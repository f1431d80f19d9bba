//! The kubelet's settings (`kubelet/config`): its config file or a fragment of it, and the drop-in that passes them.
//!
//! With `kubelet_mode = "agent"` all of it is ours. With `"kubeadm"` the main file belongs to kubeadm, which writes it anew at
//! each join and upgrade: ours is a fragment over it where the kubelet reads fragments, and flags where it does not.

pub mod config;
pub mod dropin;
pub mod environment;
pub mod version;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::owned_file::{FileNow, Found, HEADER, OwnedFile, missing_directories};
use super::{ObserveError, Past, PlanContext, Resource, ResourceError, digest};
use crate::config::settings::{KubeletMode, Settings};
use crate::host::{Host, Platform};
use crate::plan::{Action, Change, Diff, Notify, Outcome, ResourceId};
use config::Input;
use environment::Stripped;
use version::Minor;

/// The main config file: ours in agent mode, kubeadm's otherwise.
pub const CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// Fragments over the main file.
pub const FRAGMENTS: &str = "/etc/kubernetes/kubelet.conf.d";

/// Our fragment.
const FRAGMENT: &str = "/etc/kubernetes/kubelet.conf.d/50-nodeagent.conf";

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
    /// The packages' environment files, with flags of others.
    pub environment: Vec<(String, FileNow)>,
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
    if desired.foreign_flags {
        for (path, file) in &observed.environment {
            strip(minor, path, file, &mut actions, &mut diffs);
        }
    }
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

/// Takes flags out of a file of others that would end the kubelet; the rest of the file stays.
fn strip(minor: Minor, path: &str, file: &FileNow, actions: &mut Vec<Action>, diffs: &mut Vec<Diff>) {
    let Some(Found::File { text: Some(old), mode, uid, gid }) = &file.found else { return };
    let Stripped::Text(content, _) = environment::without_removed(old, minor) else { return };
    let (path, mode, uid, gid) = (path.to_owned(), *mode, *uid, *gid);
    let (old, new) = (Some(old.clone()), Some(content.clone()));
    diffs.push(Diff::File { path: path.clone(), old, new, secret: false });
    actions.push(Action::WriteFile { path, content, mode, uid, gid, secret: false });
}

/// Flags of others that would end the kubelet and cannot be taken out, or that quietly win over our file.
fn lint(minor: Minor, desired: &Desired, observed: &Observed) -> Option<Outcome> {
    if !desired.foreign_flags {
        return None;
    }
    let files = observed.environment.iter().filter_map(|(path, now)| Some((path, now.text()?)));
    for (path, text) in files {
        if let Stripped::ByHand(word) = environment::without_removed(text, minor) {
            let gone = minor.removed(word.trim_matches(['"', '\''])).unwrap_or_default();
            return Some(Outcome::Blocked {
                reason: format!("{path} passes {word}, which Kubernetes 1.{gone} removed: the kubelet would not start"),
                fix: Some(format!("remove {word} from {path}")),
            });
        }
        for word in environment::flags(text) {
            let Some(endpoint) = word.strip_prefix("--container-runtime-endpoint=") else { continue };
            if endpoint.trim_start_matches("unix://") != desired.endpoint.trim_start_matches("unix://") {
                return Some(Outcome::Conflict {
                    reason: format!("{path} passes {word}, which wins over our {}", desired.endpoint),
                });
            }
        }
    }
    None
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
        for file in environment::FILES {
            observed.environment.push((file.to_owned(), FileNow::observe(&host.root, file)?));
        }
        Ok(observed)
    }
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
             (kubeadm mode, from 1.29 on). Flags that this version does not know are taken out of {environment}. A change restarts the kubelet once. By hand: systemctl cat kubelet; cat {CONFIG} \
             {FRAGMENTS}/*",
            dropin = dropin::PATH,
            environment = environment::FILES.join(" and "),
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
