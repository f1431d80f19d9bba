//! SELinux labels of the runtime: its programs, so that it runs in the domain that may start confined containers, and where it
//! keeps images and sockets, under the types that container-selinux has for any runtime.
//!
//! Rules for paths are lines of `file_contexts.local`, where `semanage fcontext` puts them too: in the policy's store, from which
//! each rebuild of the policy takes them, and in the copy that is in use. A rebuild is not needed for them.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{ObserveError, Past, PlanContext, Resource, ResourceError, selinux};
use crate::config::settings::{RuntimeKind, Settings};
use crate::host::Host;
use crate::host::labels::RESTORECON;
use crate::plan::{Action, Change, Diff, Outcome, Reason, ResourceId};

/// Directories that belong to kubelets and pod networks. Policies have rules for them, but what is made there before the package
/// that owns them, or by a program that asks no policy, has the label of the directory above.
const SHARED: [&str; 7] = [
    "/etc/kubernetes",
    "/var/lib/kubelet",
    "/var/lib/kubelet/pods",
    "/var/lib/cni",
    "/opt/cni",
    "/var/log/pods",
    "/var/log/containers",
];

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The directory and everything below it.
    Tree,
    /// One regular file.
    File,
}

/// One rule of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    path: String,
    scope: Scope,
    kind: &'static str,
}

impl Rule {
    /// Whether it is about this path.
    fn covers(&self, path: &str) -> bool {
        let below = path.strip_prefix(self.path.as_str());
        below.is_some_and(|rest| rest.is_empty() || (self.scope == Scope::Tree && rest.starts_with('/')))
    }

    /// As a line of `file_contexts`.
    fn line(&self, aliases: &[(String, String)]) -> String {
        let path = escape(&canonical(&self.path, aliases));
        match self.scope {
            Scope::Tree => format!("{path}(/.*)?\tsystem_u:object_r:{}:s0", self.kind),
            Scope::File => format!("{path}\t--\tsystem_u:object_r:{}:s0", self.kind),
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    rules: Vec<Rule>,
    /// Directories of the runtime with their modes: made before it makes them itself, so that what it puts in there gets the
    /// right label from the beginning.
    directories: Vec<(String, u32)>,
}

impl Desired {
    /// For a runtime with this root.
    fn new(root: &str) -> Desired {
        let rule = |path: &str, scope, kind| Rule { path: path.to_owned(), scope, kind };
        let (unpacking, layers) = (format!("{root}/images/tmp"), format!("{root}/images/snapshots"));
        Desired {
            // a later rule wins
            rules: vec![
                rule("/usr/libexec/nodeagent/nodeagent-runtime", Scope::File, "container_runtime_exec_t"),
                rule("/usr/libexec/nodeagent/nodeagent-shim", Scope::File, "container_runtime_exec_t"),
                rule("/run/nodeagent", Scope::Tree, "container_var_run_t"),
                rule(root, Scope::Tree, "container_var_lib_t"),
                // where layers are made: a renamed file keeps its label
                rule(&unpacking, Scope::Tree, "container_ro_file_t"),
                rule(&layers, Scope::Tree, "container_ro_file_t"),
            ],
            // nobody else looks into the first
            directories: vec![
                (root.to_owned(), 0o700),
                (format!("{root}/images"), 0o755),
                (unpacking, 0o755),
                (layers, 0o755),
            ],
        }
    }
}

/// One of the two files with local rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFile {
    /// Where.
    pub path: String,
    /// Its text; none when it is not there.
    pub text: Option<String>,
    /// Mode and owner, as they are or are to be.
    pub ownership: (u32, u32, u32),
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The policy's own rules; none where no policy is installed.
    pub policy: Option<String>,
    /// Paths that rules know by another name: as on disk, as in rules.
    pub aliases: Vec<(String, String)>,
    /// Where local rules are.
    pub local: Vec<RuleFile>,
    /// SELinux is on in the running kernel.
    pub on: bool,
    /// The labels of paths that exist, the label empty where there is none.
    pub labels: BTreeMap<String, String>,
}

impl Observed {
    /// A type that no rule of the policy names is not in the policy.
    fn knows(&self, kind: &str) -> bool {
        self.policy.as_ref().is_some_and(|text| text.contains(&format!(":{kind}:")))
    }

    /// The type that the policy has for exactly this directory and what is below it.
    fn policy_type(&self, path: &str) -> Option<&str> {
        let start = format!("{}(/.*)?", canonical(path, &self.aliases));
        let lines = self.policy.as_deref().unwrap_or_default().lines();
        let mut matching = lines.filter_map(|line| {
            let mut fields = line.split_whitespace();
            (fields.next()? == start).then(|| fields.next_back())?
        });
        kind_of(matching.next_back()?)
    }
}

/// Decides.
pub fn plan(id: &ResourceId, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    if observed.policy.is_none() {
        return Outcome::Converged { note: Some("no SELinux policy is installed".to_owned()) };
    }
    let (known, unknown): (Vec<&Rule>, Vec<&Rule>) = desired.rules.iter().partition(|rule| observed.knows(rule.kind));
    let mut work = Work::default();
    work.write_rules(&known, observed);
    if observed.on {
        work.label(desired, &known, observed);
    }
    let Some(summary) = work.summary() else {
        return Outcome::Converged { note: note(&unknown, observed.on) };
    };
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(work.reason == Reason::Missing),
        summary,
        diffs: work.diffs,
        actions: work.actions,
        notify: Vec::new(),
        reboot: None,
    })
}

fn note(unknown: &[&Rule], on: bool) -> Option<String> {
    let kinds: BTreeSet<&str> = unknown.iter().map(|rule| rule.kind).collect();
    match kinds.is_empty() {
        false => Some(format!(
            "the policy has no {}, which container-selinux brings: left unlabelled",
            kinds.into_iter().collect::<Vec<_>>().join(", ")
        )),
        true => (!on).then(|| "SELinux is off: the rules are there for when it is on".to_owned()),
    }
}

/// What is to be done, while it is put together.
struct Work {
    actions: Vec<Action>,
    diffs: Vec<Diff>,
    reason: Reason,
    labelled: usize,
}

impl Default for Work {
    fn default() -> Work {
        Work { actions: Vec::new(), diffs: Vec::new(), reason: Reason::Different, labelled: 0 }
    }
}

impl Work {
    fn summary(&self) -> Option<String> {
        match (self.actions.is_empty(), self.labelled) {
            (true, _) => None,
            (_, 0) => Some("write SELinux rules for the runtime's files".to_owned()),
            (_, count) => Some(format!("label {count} files and directories of the node")),
        }
    }

    /// Adds the lines that are not there, and leaves those of others alone.
    fn write_rules(&mut self, rules: &[&Rule], observed: &Observed) {
        let lines: Vec<String> = rules.iter().map(|rule| rule.line(&observed.aliases)).collect();
        for file in &observed.local {
            let old = file.text.clone().unwrap_or_default();
            let Some(new) = with_lines(&old, &lines) else { continue };
            if file.text.is_none() {
                self.reason = Reason::Missing;
            }
            let (mode, uid, gid) = file.ownership;
            let path = file.path.clone();
            self.diffs.push(Diff::File {
                path: path.clone(),
                old: file.text.clone(),
                new: Some(new.clone()),
                secret: false,
            });
            self.actions.push(Action::WriteFile { path, content: new, mode, uid, gid, secret: false });
        }
    }

    /// Labels what exists, and makes what has to have its label before others fill it.
    fn label(&mut self, desired: &Desired, rules: &[&Rule], observed: &Observed) {
        let kind = |path: &str| rules.iter().rev().find(|rule| rule.covers(path)).map(|rule| rule.kind);
        let own = rules.iter().map(|rule| rule.path.as_str());
        let made = desired.directories.iter().map(|(path, _)| path.as_str());
        let own = own.chain(made).filter_map(|path| Some((path, kind(path)?)));
        let shared = SHARED.iter().filter_map(|path| Some((*path, observed.policy_type(path)?)));
        let wanted: BTreeMap<&str, &str> = own.chain(shared).collect();
        let mut paths = Vec::new();
        for (path, mode) in &desired.directories {
            if wanted.contains_key(path.as_str()) && !observed.labels.contains_key(path) {
                self.actions.push(Action::MakeDirectory { path: path.clone(), mode: *mode, uid: 0, gid: 0 });
                paths.push(path.clone());
            }
        }
        for (path, kind) in wanted {
            let Some(label) = observed.labels.get(path) else { continue };
            let now = kind_of(label).unwrap_or("(none)");
            if now != kind {
                let (old, new) = (Some(now.to_owned()), Some(kind.to_owned()));
                self.diffs.push(Diff::Value { what: format!("type of {path}"), old, new });
                paths.push(path.to_owned());
            }
        }
        if !paths.is_empty() {
            self.labelled = paths.len();
            self.actions.push(Action::Relabel { paths });
        }
    }
}

/// The text with these lines in it, in this order, at its end; none when they are there. Blanks do not count, and the last rule
/// for a path wins, so that a line of ours behind which somebody has put another one for the same path is not there.
fn with_lines(text: &str, lines: &[String]) -> Option<String> {
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let pattern = |line: &str| fields(line).first().cloned();
    let stands = |line: &&String| {
        let last = text.lines().rev().find(|other| pattern(other) == pattern(line));
        last.is_some_and(|last| fields(last) == fields(line))
    };
    if lines.iter().all(|line| stands(&line)) {
        return None;
    }
    let ours: BTreeSet<Option<String>> = lines.iter().map(|line| pattern(line)).collect();
    let mut out: String = text.split_inclusive('\n').filter(|line| !ours.contains(&pattern(line))).collect();
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.extend(lines.iter().map(|line| format!("{line}\n")));
    Some(out)
}

/// The path as rules know it: of the aliases of the policy the first that fits counts.
fn canonical(path: &str, aliases: &[(String, String)]) -> String {
    let below = |alias: &str| path.strip_prefix(alias).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let found = aliases.iter().find_map(|(alias, target)| Some(format!("{target}{}", below(alias)?)));
    found.unwrap_or_else(|| path.to_owned())
}

/// A path as a regular expression that matches only itself.
fn escape(path: &str) -> String {
    let special = |c| matches!(c, '.' | '+' | '*' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' | '|' | '\\');
    path.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// The type in a label.
fn kind_of(label: &str) -> Option<&str> {
    label.split(':').nth(2)
}

/// Lines of `file_contexts.subs`: a path, and the one whose rules count for it.
fn parse_aliases(text: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let mut fields = line.split('#').next()?.split_whitespace();
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// Labels of the runtime and of what it shares with the kubelet.
pub struct SelinuxLabels {
    id: ResourceId,
    desired: Desired,
    needs: Vec<ResourceId>,
}

impl SelinuxLabels {
    /// None where another runtime is wanted: its package and the policy know each other.
    pub fn new(settings: &Settings) -> Option<SelinuxLabels> {
        if settings.kubernetes.is_none() || settings.runtime.kind != RuntimeKind::Embedded {
            return None;
        }
        // container-selinux is one of the host's packages; those of Kubernetes bring directories
        let needs = ["host", "kubernetes"].map(|name| ResourceId::new("package", name)).to_vec();
        let desired = Desired::new(settings.runtime.root.as_str());
        Some(SelinuxLabels { id: SelinuxLabels::resource_id(), desired, needs })
    }

    /// The name of the resource.
    pub fn resource_id() -> ResourceId {
        ResourceId::new("selinux", "labels")
    }

    fn observe(&self, host: &Host) -> Result<Observed, ObserveError> {
        let config = host.root.read_text(selinux::CONFIG)?.unwrap_or_default();
        let Some(name) = selinux::key(&config, "SELINUXTYPE").filter(|name| !name.contains('/')) else {
            return Ok(Observed::default());
        };
        let folder = format!("/etc/selinux/{name}/contexts/files");
        let Some(policy) = host.root.read_text(&format!("{folder}/file_contexts"))? else {
            return Ok(Observed::default());
        };
        let mut aliases = Vec::new();
        for file in ["subs", "subs_dist"] {
            let text = host.root.read_text(&format!("{folder}/file_contexts.{file}"))?;
            aliases.extend(parse_aliases(&text.unwrap_or_default()));
        }
        let store = format!("/var/lib/selinux/{name}/active");
        let mut local = Vec::new();
        for (folder, mode) in [(store, 0o600), (folder, 0o644)] {
            if host.root.exists(&folder)? {
                let path = format!("{folder}/file_contexts.local");
                let found = host.root.metadata(&path)?;
                let ownership = found.map_or((mode, 0, 0), |found| (found.mode, found.uid, found.gid));
                local.push(RuleFile { text: host.root.read_text(&path)?, path, ownership });
            }
        }
        let on = host.kernel.enforcing()?.is_some();
        let mut labels = BTreeMap::new();
        let own = self.desired.rules.iter().map(|rule| rule.path.as_str());
        let made = self.desired.directories.iter().map(|(path, _)| path.as_str());
        for path in own.chain(made).chain(SHARED).filter(|_| on) {
            if host.root.exists(path)? {
                labels.insert(path.to_owned(), host.root.selinux_label(path)?.unwrap_or_default());
            }
        }
        Ok(Observed { policy: Some(policy), aliases, local, on, labels })
    }
}

#[async_trait]
impl Resource for SelinuxLabels {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        self.needs.clone()
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = self.observe(host)?;
        Ok(plan(&self.id, &self.desired, &observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        let rules: Vec<String> =
            self.desired.rules.iter().map(|rule| format!("{} is {}", rule.path, rule.kind)).collect();
        format!(
            "SELinux labels: {}; {} as the policy says. The rules are lines of file_contexts.local, as semanage fcontext writes \
             them; {RESTORECON} sets the labels. By hand: ls -Z; matchpathcon PATH; restorecon -nv PATH",
            rules.join(", "),
            SHARED.join(", ")
        )
    }

    fn applied(&self) -> Value {
        json!({"rules": self.desired.rules.iter().map(|rule| rule.line(&[])).collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests;
