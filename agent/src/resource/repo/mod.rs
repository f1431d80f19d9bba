//! A dnf repository: one file in /etc/yum.repos.d, written from a typed model and compared by meaning.

mod dead;
mod ini;

use async_trait::async_trait;
use serde_json::{Value, json};

pub use dead::DeadRepositories;

use super::owned_file::{FileNow, HEADER, OwnedFile};
use super::{ObserveError, Past, PlanContext, Resource, ResourceError, digest};
use crate::config::settings::{KubernetesSettings, RepoSettings};
use crate::host::Host;
use crate::plan::{Action, Change, Notify, Outcome, ResourceId};
use ini::Section;

/// Where dnf looks.
pub const DIR: &str = "/etc/yum.repos.d";

/// Our repository of Kubernetes itself; `[[repo]]` of this name takes its place.
pub const KUBERNETES: &str = "kubernetes";

/// Packages that come from that repository only when they are asked for: an ordinary `dnf update` must not replace a kubelet.
const EXCLUDED: [&str; 5] = ["kubelet", "kubeadm", "kubectl", "cri-tools", "kubernetes-cni"];

/// The repository as dnf will see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    section: Section,
    /// The agent installs from it: it has to answer before it counts as set up.
    has_to_answer: bool,
}

impl Desired {
    /// From a `[[repo]]` table.
    pub fn configured(repo: &RepoSettings) -> Desired {
        let bit = |on: bool| u8::from(on).to_string();
        let lines = |urls: &[crate::config::value::Url]| {
            urls.iter().map(crate::config::value::Url::as_str).collect::<Vec<_>>().join("\n")
        };
        let mut entries = vec![
            ("name", repo.title.clone()),
            ("baseurl", lines(&repo.baseurl)),
            ("enabled", bit(repo.enabled)),
            ("gpgcheck", bit(repo.gpgcheck)),
            ("repo_gpgcheck", bit(repo.repo_gpgcheck)),
        ];
        if !repo.gpgkey.is_empty() {
            entries.push(("gpgkey", lines(&repo.gpgkey)));
        }
        if !repo.exclude.is_empty() {
            entries.push(("exclude", repo.exclude.join(" ")));
        }
        if let Some(priority) = repo.priority {
            entries.push(("priority", priority.to_string()));
        }
        Desired::new(repo.name.as_str(), entries)
    }

    /// Kubernetes' own repository for a minor, or a mirror of it.
    pub fn kubernetes(kubernetes: &KubernetesSettings) -> Desired {
        let minor = kubernetes.version.minor();
        let base = match &kubernetes.repo_baseurl {
            Some(url) => format!("{}/", url.as_str().trim_end_matches('/')),
            None => format!("https://pkgs.k8s.io/core:/stable:/v1.{minor}/rpm/"),
        };
        let mut desired = Desired::signed(
            KUBERNETES,
            &format!("Kubernetes 1.{minor}"),
            &base,
            &format!("{base}repodata/repomd.xml.key"),
        );
        desired.section.entries.push(("exclude".to_owned(), EXCLUDED.join(" ")));
        desired
    }

    /// One of ours, whose packages are signed.
    pub fn signed(name: &str, title: &str, baseurl: &str, gpgkey: &str) -> Desired {
        let entries = [("name", title), ("baseurl", baseurl), ("enabled", "1"), ("gpgcheck", "1"), ("gpgkey", gpgkey)];
        Desired::new(name, entries.map(|(key, value)| (key, value.to_owned())).to_vec())
    }

    fn new(name: &str, entries: Vec<(&str, String)>) -> Desired {
        let entries = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let section = Section { name: name.to_owned(), entries };
        Desired { has_to_answer: section.flag("enabled", true), section }
    }

    /// For a node whose packages are in its image: nobody asks the repository now, and there may be no network.
    pub fn unused(self) -> Desired {
        Desired { has_to_answer: false, ..self }
    }

    /// The path of its file.
    pub fn path(&self) -> String {
        format!("{DIR}/{}.repo", self.section.name)
    }

    /// The text of its file.
    pub fn render(&self) -> String {
        let mut text = format!("{HEADER}[{}]\n", self.section.name);
        for (key, value) in &self.section.entries {
            // more lines than one are indented, or they would be keys
            text.push_str(&format!("{key}={}\n", value.replace('\n', "\n        ")));
        }
        text
    }

    /// True when the text means the same to dnf: order, blanks and comments do not count.
    fn same_meaning(&self, text: &str) -> bool {
        let (sections, junk) = ini::parse(text);
        let [section] = &sections[..] else { return false };
        let sorted = |section: &Section| {
            let mut keys: Vec<(String, Vec<String>)> = section
                .entries
                .iter()
                .map(|(key, _)| (key.clone(), section.list(key).into_iter().map(str::to_owned).collect()))
                .collect();
            keys.sort();
            keys.dedup();
            keys
        };
        !junk && section.name == self.section.name && sorted(section) == sorted(&self.section)
    }
}

/// The file, and who else defines the same repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What is at our path.
    pub file: FileNow,
    /// Another file with a section of this name.
    pub also_in: Option<String>,
    /// The tree is not running: nothing can be asked.
    pub offline: bool,
}

/// Decides.
pub fn plan(id: &ResourceId, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    if let Some(other) = &observed.also_in {
        return Outcome::Blocked {
            reason: format!("{other} defines the repository {} too; dnf would take either", desired.section.name),
            fix: Some(format!("remove that section from {other}, or give ours another name")),
        };
    }
    let path = desired.path();
    if let Some(obstacle) = observed.file.obstacle() {
        return Outcome::Blocked { reason: format!("{path} is {obstacle}"), fix: Some(format!("move {path} away")) };
    }
    let same = observed.file.text().is_some_and(|text| desired.same_meaning(text));
    let Some(step) = OwnedFile::public(&path, desired.render()).step_unless(&observed.file, same) else {
        return Outcome::converged();
    };
    let mut actions = step.actions;
    let probes = desired.has_to_answer && !observed.offline;
    if probes {
        // proven by its answer: one that is dead would make every later transaction of dnf fail, and its file goes again
        actions.push(Action::ProbeRepository { repo: desired.section.name.clone() });
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(step.missing),
        summary: format!("set up the dnf repository {}", desired.section.name),
        diffs: step.diffs,
        actions,
        // a probe asks for the metadata anew itself
        notify: if probes { Vec::new() } else { vec![Notify::ReloadDnfCache] },
        reboot: None,
    })
}

/// The sections of all .repo files, with the file of each.
fn all_sections(host: &Host) -> Result<Vec<(String, Section)>, ObserveError> {
    let mut all = Vec::new();
    for name in host.root.list(DIR)?.unwrap_or_default() {
        let path = format!("{DIR}/{name}");
        if !name.ends_with(".repo") {
            continue;
        }
        let text = host.root.read(&path)?.unwrap_or_default();
        let (sections, _) = ini::parse(&String::from_utf8_lossy(&text));
        all.extend(sections.into_iter().map(|section| (path.clone(), section)));
    }
    Ok(all)
}

/// One repository.
pub struct Repo {
    id: ResourceId,
    desired: Desired,
}

impl Repo {
    /// The repository of this name.
    pub fn new(desired: Desired) -> Repo {
        Repo { id: ResourceId::new("repo", &desired.section.name), desired }
    }

    fn observe(&self, host: &Host) -> Result<Observed, ObserveError> {
        let path = self.desired.path();
        let also_in = all_sections(host)?
            .into_iter()
            .find(|(file, section)| *file != path && section.name == self.desired.section.name)
            .map(|(file, _)| file);
        Ok(Observed { file: FileNow::observe(&host.root, &path)?, also_in, offline: host.is_offline() })
    }
}

#[async_trait]
impl Resource for Repo {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = self.observe(host)?;
        Ok(plan(&self.id, &self.desired, &observed, &context.past(&self.applied())))
    }

    fn rivals(&self) -> &'static [&'static str] {
        &["rhsmcertd.service", "cloud-config.service"]
    }

    fn explain(&self) -> String {
        let (name, path) = (&self.desired.section.name, self.desired.path());
        format!(
            "{path} sets up the dnf repository {name}. Compared by meaning: comments and order do not count. After a change \
             the repository has to answer, or the file goes again. By hand: cat {path}; \
             dnf --disablerepo='*' --enablerepo={name} --refresh makecache"
        )
    }

    fn applied(&self) -> Value {
        json!({"digest": digest(&self.desired.render())})
    }
}

#[cfg(test)]
mod tests;
