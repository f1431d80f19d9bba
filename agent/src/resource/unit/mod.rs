//! A systemd unit: masked or not, started at boot or not, running or not.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::config::settings::{UnitSettings, UnitState};
use crate::host::Host;
use crate::host::systemd::{UnitFileState, UnitStatus};
use crate::plan::{Action, Change, Diff, Notify, Outcome, Reason, ResourceId, Stage, UnitOp};

/// The runtime's unit.
pub const RUNTIME: &str = "nodeagent-runtime.service";

/// The kubelet's unit.
pub const KUBELET: &str = "kubelet.service";

/// What kubeadm leaves when a node has joined, or is about to.
const JOINED: [&str; 2] = ["/etc/kubernetes/kubelet.conf", "/etc/kubernetes/bootstrap-kubelet.conf"];

/// A listening socket answers a connection at once; the kernel does it.
const CONNECT: Duration = Duration::from_secs(2);

/// What is wanted of a unit; none is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Full name.
    pub name: String,
    /// Started at boot.
    pub enabled: Option<bool>,
    /// Cannot be started.
    pub masked: Option<bool>,
    /// Running now.
    pub state: Option<UnitState>,
    /// A socket that accepts connections when the unit really is up.
    pub answers_on: Option<String>,
    /// It may only be expected to run once the node has joined its cluster.
    pub after_join: bool,
    /// It is only stopped when there is nothing in this directory.
    pub while_empty: Option<String>,
    /// What it has to start, where that is known.
    pub starts: Option<Starts>,
}

/// Who may say what a unit starts. A drop-in of somebody else that says it anew switches our settings off without a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Starts {
    /// The unit's own file.
    Fragment,
    /// This file.
    File(String),
    /// Whoever passes this on.
    Passing(&'static str),
}

/// What is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// From systemd.
    pub unit: UnitStatus,
    /// The tree is not running: nothing can be started.
    pub offline: bool,
    /// What brings the unit changes in this run.
    pub arriving: bool,
    /// The socket accepts; none when there is none to ask or the unit is down.
    pub answers: Option<bool>,
    /// The node has joined.
    pub joined: bool,
    /// There is something in the directory that has to be empty.
    pub in_use: bool,
    /// The file whose ExecStart counts, and it is not one that may say it.
    pub started_by: Option<String>,
}

/// What is to be done, while it is put together.
#[derive(Default)]
struct Steps {
    ops: Vec<UnitOp>,
    diffs: Vec<Diff>,
    stale: bool,
    reload: bool,
}

impl Steps {
    fn add(&mut self, op: UnitOp, what: &str, old: impl Into<String>, new: &str) {
        self.ops.push(op);
        let (old, new) = (Some(old.into()), Some(new.to_owned()));
        self.diffs.push(Diff::Value { what: what.to_owned(), old, new });
    }
}

/// Decides.
pub fn plan(id: &ResourceId, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    if let Some(obstacle) = obstacle(desired, observed) {
        return obstacle;
    }
    let mut steps = Steps::default();
    plan_file_state(desired, observed, &mut steps);
    let waits = desired.after_join && !observed.joined;
    if !observed.offline && !waits {
        plan_run_state(desired, observed, &mut steps);
    }
    if !observed.offline && observed.unit.need_daemon_reload {
        steps.reload = true;
        steps.stale |= steps.ops.is_empty();
        let what = format!("{}: files read by systemd", desired.name);
        steps.diffs.push(Diff::Value { what, old: Some("outdated".into()), new: Some("as on disk".into()) });
    }
    if steps.ops.is_empty() && !steps.reload {
        // what is about to change may be the very file that is missing
        if let Some(path) = observed.started_by.as_ref().filter(|_| !observed.arriving) {
            let name = &desired.name;
            return Outcome::Conflict {
                reason: format!("{path} has an ExecStart of its own, so {name} does not start what the config says"),
            };
        }
        return match waits && desired.state == Some(UnitState::Running) {
            true => Outcome::Waiting { reason: "waiting for join: kubeadm has not set up this node yet".to_owned() },
            false => Outcome::converged(),
        };
    }
    let action = |op| Action::Unit { unit: desired.name.clone(), op, wait: true };
    Outcome::Change(Change {
        id: id.clone(),
        reason: if steps.stale { Reason::Stale } else { past.reason(!observed.unit.exists()) },
        summary: summary(&desired.name, &steps),
        diffs: steps.diffs,
        actions: steps.ops.into_iter().map(action).collect(),
        notify: if steps.reload { vec![Notify::DaemonReload] } else { Vec::new() },
        reboot: None,
    })
}

fn summary(name: &str, steps: &Steps) -> String {
    match steps.ops.is_empty() {
        true => format!("have systemd read {name} again"),
        false => format!("{} {name}", steps.ops.iter().map(|op| op.verb()).collect::<Vec<_>>().join(" and ")),
    }
}

/// What cannot be got out of the way by us.
fn obstacle(desired: &Desired, observed: &Observed) -> Option<Outcome> {
    let (name, unit) = (&desired.name, &observed.unit);
    let blocked = |reason: String, fix: String| Some(Outcome::Blocked { reason, fix: Some(fix) });
    if observed.in_use && desired.state == Some(UnitState::Stopped) && unit.is_active() {
        return blocked(
            format!("{name} has pods, which nobody would look after without it"),
            "drain the node, then `agent reset`, then `agent apply`".to_owned(),
        );
    }
    let wants_it_up = desired.enabled == Some(true) || desired.state == Some(UnitState::Running);
    if !unit.exists() {
        let matters = wants_it_up && !observed.arriving;
        return match matters {
            true => blocked(format!("there is no unit {name}"), "install the package that brings it".to_owned()),
            false => None,
        };
    }
    if unit.is_masked() && desired.masked.is_none() && wants_it_up {
        return Some(Outcome::Conflict {
            reason: format!(
                "{name} is masked, which somebody does on purpose; `systemctl unmask {name}` lets us go on"
            ),
        });
    }
    // systemd masks by a link at that very place, and would have stopped the unit for nothing
    if desired.masked == Some(true) && !unit.is_masked() && unit.fragment == format!("/etc/systemd/system/{name}") {
        return blocked(
            format!("{name} cannot be masked: {} is a file of its own", unit.fragment),
            format!("remove {}, or say enabled = false and state = \"stopped\"", unit.fragment),
        );
    }
    if desired.enabled == Some(true) && !unit.is_masked() {
        let why = match unit.unit_file_state {
            UnitFileState::Static => "it has no [Install] section and is started by other units",
            UnitFileState::Generated => "it is generated at boot",
            UnitFileState::Transient => "it was made at run time and has no file",
            UnitFileState::Indirect => "it only stands for others: name its instance, or the unit in its Also=",
            UnitFileState::Bad => "its file cannot be read by systemd",
            _ => return None,
        };
        return blocked(format!("{name} cannot be enabled: {why}"), format!("leave out `enabled` for {name}"));
    }
    None
}

fn plan_file_state(desired: &Desired, observed: &Observed, steps: &mut Steps) {
    let unit = &observed.unit;
    let name = &desired.name;
    let state = unit.unit_file_state.to_string();
    if desired.masked == Some(true) {
        if !unit.is_masked() {
            if unit.is_active() && !observed.offline {
                steps.add(UnitOp::Stop, &format!("{name}: state"), unit.active_state.clone(), "inactive");
            }
            steps.add(UnitOp::Mask, &format!("{name}: at boot"), state, "masked");
            steps.reload = !observed.offline;
        }
        return;
    }
    if desired.masked == Some(false) && unit.is_masked() {
        steps.add(UnitOp::Unmask, &format!("{name}: mask"), "masked", "not masked");
        steps.reload = !observed.offline;
    }
    match desired.enabled {
        Some(true) if !unit.is_enabled() => {
            steps.add(UnitOp::Enable, &format!("{name}: at boot"), state, "enabled");
            steps.reload = !observed.offline;
        }
        Some(false) if unit.is_enabled() => {
            steps.add(UnitOp::Disable, &format!("{name}: at boot"), state, "disabled");
            steps.reload = !observed.offline;
        }
        _ => {}
    }
}

fn plan_run_state(desired: &Desired, observed: &Observed, steps: &mut Steps) {
    let unit = &observed.unit;
    let what = format!("{}: state", desired.name);
    match desired.state {
        Some(UnitState::Running) if !unit.is_active() => {
            steps.add(UnitOp::Start, &what, unit.in_words(), "active");
        }
        Some(UnitState::Running) if observed.answers == Some(false) => {
            steps.stale = true;
            steps.add(UnitOp::Restart, &what, "active, but its socket refuses connections", "active and answering");
        }
        Some(UnitState::Stopped) if unit.is_active() && desired.masked != Some(true) => {
            steps.add(UnitOp::Stop, &what, unit.in_words(), "inactive");
        }
        _ => {}
    }
}

/// One unit.
pub struct Unit {
    id: ResourceId,
    desired: Desired,
    needs: Vec<ResourceId>,
}

impl Unit {
    /// The name of the resource of a unit.
    pub fn resource_id(name: &str) -> ResourceId {
        ResourceId::new("unit", name)
    }

    /// From a `[[unit]]` table. It comes after packages and files, which may bring it.
    pub fn configured(unit: &UnitSettings, needs: Vec<ResourceId>) -> Unit {
        let desired = Desired {
            name: unit.name.as_str().to_owned(),
            enabled: unit.enabled,
            masked: unit.masked,
            state: unit.state,
            answers_on: None,
            after_join: false,
            while_empty: None,
            starts: None,
        };
        Unit { id: Unit::resource_id(unit.name.as_str()), desired, needs }
    }

    /// The runtime: up when its socket accepts.
    pub fn runtime(name: &str, socket: &str, needs: Vec<ResourceId>) -> Unit {
        let unit = Unit::running(name, needs, Some(socket.to_owned()), false);
        // what packages of others bring beside their unit is theirs to say
        if name == RUNTIME { unit.starting(Starts::Fragment) } else { unit }
    }

    /// What it has to start.
    pub fn starting(mut self, starts: Starts) -> Unit {
        self.desired.starts = Some(starts);
        self
    }

    /// The kubelet. One that kubeadm sets up crashes until the node has joined, which is no failure.
    pub fn kubelet(after_join: bool, needs: Vec<ResourceId>) -> Unit {
        Unit::running(KUBELET, needs, None, after_join)
    }

    /// One that must not run, where it is installed at all.
    pub fn off(name: &str) -> Unit {
        let desired = Desired {
            name: name.to_owned(),
            enabled: Some(false),
            masked: None,
            state: Some(UnitState::Stopped),
            answers_on: None,
            after_join: false,
            while_empty: None,
            starts: None,
        };
        Unit { id: Unit::resource_id(name), desired, needs: Vec::new() }
    }

    /// Only touched while there is nothing in this directory.
    pub fn while_empty(mut self, directory: &str) -> Unit {
        self.desired.while_empty = Some(directory.to_owned());
        self
    }

    fn running(name: &str, needs: Vec<ResourceId>, answers_on: Option<String>, after_join: bool) -> Unit {
        let desired = Desired {
            name: name.to_owned(),
            enabled: Some(true),
            masked: None,
            state: Some(UnitState::Running),
            answers_on,
            after_join,
            while_empty: None,
            starts: None,
        };
        Unit { id: Unit::resource_id(name), desired, needs }
    }

    fn started_by(&self, host: &Host, unit: &UnitStatus) -> Result<Option<String>, ObserveError> {
        let Some(starts) = &self.desired.starts else { return Ok(None) };
        if unit.is_masked() {
            // it starts nothing, and its file is a link to /dev/null
            return Ok(None);
        }
        let mut last: Option<(&String, String)> = None;
        for path in std::iter::once(&unit.fragment).chain(&unit.drop_ins).filter(|path| !path.is_empty()) {
            let text = host.root.read(path)?.unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            // an empty one only takes away what came before
            let command =
                text.lines().rev().filter_map(|line| line.trim().strip_prefix("ExecStart=")).find(|c| !c.is_empty());
            last = command.map(|command| (path, command.to_owned())).or(last);
        }
        let Some((path, command)) = last else { return Ok(None) };
        let right = match starts {
            Starts::Fragment => *path == unit.fragment,
            Starts::File(file) => path == file,
            Starts::Passing(word) => command.contains(word),
        };
        Ok((!right).then(|| path.clone()))
    }

    async fn observe(&self, host: &Host, context: &PlanContext<'_>) -> Result<Observed, ObserveError> {
        let mut unit = host.systemd.unit(&self.desired.name).await?;
        if unit.unit_file_state == UnitFileState::Alias && unit.id != self.desired.name {
            unit = host.systemd.unit(&unit.id).await?;
        }
        let answers = match &self.desired.answers_on {
            Some(socket) if unit.is_active() => {
                let root = host.root.clone();
                let socket = socket.clone();
                let asked = tokio::task::spawn_blocking(move || root.accepts_connections(&socket));
                Some(matches!(tokio::time::timeout(CONNECT, asked).await, Ok(Ok(Ok(true)))))
            }
            _ => None,
        };
        let mut joined = false;
        for path in JOINED {
            joined |= host.root.exists(path)?;
        }
        let arriving = self.needs.iter().any(|need| context.pending.contains(need));
        let in_use = match &self.desired.while_empty {
            Some(directory) => host.root.list(directory)?.is_some_and(|names| !names.is_empty()),
            None => false,
        };
        let started_by = self.started_by(host, &unit)?;
        Ok(Observed { unit, offline: host.is_offline(), arriving, answers, joined, in_use, started_by })
    }
}

#[async_trait]
impl Resource for Unit {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        self.needs.clone()
    }

    fn stage(&self) -> Stage {
        // units may be ordered after the first boot's own prepare unit: only the last stage can wait for them
        Stage::Activate
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = self.observe(host, context).await?;
        Ok(plan(&self.id, &self.desired, &observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        let name = &self.desired.name;
        let mut wants = Vec::new();
        for (wanted, yes, no) in [
            (self.desired.masked, "masked", "not masked"),
            (self.desired.enabled, "started at boot", "not started at boot"),
        ] {
            wants.extend(wanted.map(|wanted| if wanted { yes } else { no }));
        }
        wants.extend(self.desired.state.map(|state| match state {
            UnitState::Running => "running, and staying so for two seconds",
            UnitState::Stopped => "not running",
        }));
        format!(
            "{name} is {}. Done over D-Bus. By hand: systemctl status {name}; journalctl -u {name}",
            wants.join(", ")
        )
    }

    fn live_only(&self) -> bool {
        self.desired.enabled.is_none() && self.desired.masked.is_none()
    }

    fn applied(&self) -> Value {
        json!({"enabled": self.desired.enabled, "masked": self.desired.masked, "state": self.desired.state})
    }
}

#[cfg(test)]
mod tests;
