//! Looks for what would keep this host from being a node, before kubeadm or a pod finds out.
//!
//! A check is data: a name, and a function from what was looked at to a [`Verdict`]. The names of kubeadm's own preflight
//! checks are kept, so that what `kubeadm init` and `kubeadm join` will say can be looked up here first; what kubeadm does not
//! check, or no longer does, has names of our own in lower case. Every resource of the config is a check too.

pub mod beyond;
pub mod facts;
pub mod fix;
pub mod kubeadm;
mod system;

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::settings::Settings;
use crate::plan::{Action, Outcome, ResourceId};
use crate::reconcile::{Finding, Plan};
use facts::Facts;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Not looked at, and why.
    Skipped,
    /// A node works without, but somebody should know.
    Warning,
    /// kubeadm refuses, or pods will not work.
    Error,
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How bad.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What helps.
    pub fix: Option<Fix>,
}

/// What helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fix {
    /// A person has to do it.
    ByHand(String),
    /// These resources of the config do it, where the config has them.
    Resources(Vec<ResourceId>, String),
    /// These actions do it; journaled, and taken back by `agent rollback`.
    Actions(Vec<Action>, String),
}

impl Fix {
    /// For people.
    pub fn text(&self) -> &str {
        match self {
            Fix::ByHand(text) | Fix::Resources(_, text) | Fix::Actions(_, text) => text,
        }
    }
}

impl Verdict {
    /// As it should be.
    pub fn ok(message: impl Into<String>) -> Verdict {
        Verdict { severity: Severity::Ok, message: message.into(), fix: None }
    }

    /// Not looked at.
    pub fn skipped(message: impl Into<String>) -> Verdict {
        Verdict { severity: Severity::Skipped, message: message.into(), fix: None }
    }

    /// Somebody should know.
    pub fn warning(message: impl Into<String>, fix: Fix) -> Verdict {
        Verdict { severity: Severity::Warning, message: message.into(), fix: Some(fix) }
    }

    /// It will not work.
    pub fn error(message: impl Into<String>, fix: Fix) -> Verdict {
        Verdict { severity: Severity::Error, message: message.into(), fix: Some(fix) }
    }
}

/// What a check may look at.
pub struct Subject<'a> {
    /// What the config asks for.
    pub settings: &'a Settings,
    /// What the host says.
    pub facts: &'a Facts,
}

/// One check.
pub struct Check {
    /// kubeadm's name of it, or ours in lower case.
    pub name: String,
    /// What it looks for.
    pub verdict: Verdict,
}

/// A check that was made, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Examined {
    /// kubeadm's name of the check, our own in lower case, or the resource.
    pub id: String,
    /// kubeadm makes this check too.
    pub kubeadm: bool,
    /// How bad.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// `agent doctor --fix ID` does it.
    pub fixable: bool,
}

/// All checks of this host, kubeadm's first.
pub fn examine(subject: &Subject<'_>, plan: &Plan) -> Vec<(Examined, Option<Fix>)> {
    let has = |id: &ResourceId| plan.get(id).is_some();
    let entry = |check: Check, kubeadm: bool| {
        let fixable = match &check.verdict.fix {
            Some(Fix::Actions(..)) => true,
            Some(Fix::Resources(ids, _)) => ids.iter().any(has),
            _ => false,
        };
        let examined = Examined {
            id: check.name,
            kubeadm,
            severity: check.verdict.severity,
            message: check.verdict.message,
            fix: check.verdict.fix.as_ref().map(|fix| fix.text().to_owned()),
            fixable,
        };
        (examined, check.verdict.fix)
    };
    let theirs = kubeadm::checks(subject).into_iter().map(|check| entry(check, true));
    let ours = beyond::checks(subject).into_iter().map(|check| entry(check, false));
    theirs.chain(ours).chain(resources(plan).into_iter().map(|check| entry(check, false))).collect()
}

/// Each resource of the config.
fn resources(plan: &Plan) -> Vec<Check> {
    let verdict = |id: &ResourceId, finding: &Finding| match finding {
        Finding::Observed(Outcome::Converged { note }) => Verdict::ok(note.clone().unwrap_or_default()),
        Finding::Observed(Outcome::Change(change)) => Verdict::warning(
            format!("differs from the config: would {}", change.summary),
            Fix::Resources(vec![id.clone()], "agent apply".to_owned()),
        ),
        Finding::Observed(Outcome::Waiting { reason }) | Finding::Deferred { reason } => Verdict::skipped(reason),
        Finding::Observed(Outcome::Blocked { reason, fix }) => {
            let fix = fix.clone().unwrap_or_else(|| format!("see: agent explain {id}"));
            Verdict::error(reason, Fix::ByHand(fix))
        }
        Finding::Observed(Outcome::Conflict { reason }) => {
            Verdict::warning(reason, Fix::ByHand(format!("decide who is right; see: agent explain {id}")))
        }
        Finding::Failed { error } => Verdict::error(error, Fix::ByHand("see: journalctl -t nodeagent".to_owned())),
    };
    let check = |planned: &crate::reconcile::Planned| Check {
        name: planned.id.to_string(),
        verdict: verdict(&planned.id, &planned.finding),
    };
    plan.resources.iter().map(check).collect()
}

#[cfg(test)]
mod tests;
