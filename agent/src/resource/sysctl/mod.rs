//! Kernel parameters: their value now (`sysctl/NAME`), and after the next boot (`sysctl-file`, in [`mod@file`]).

pub mod conf;
pub mod file;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::config::settings::{SysctlRule, SysctlWant};
use crate::host::Host;
use crate::host::kernel::Parameter;
use crate::host::root::Root;
use crate::plan::{Action, Change, Diff, Outcome, Reason, ResourceId, Stage};
use conf::Winner;

/// Read last by sysctl(8) `--system`, and at boot only where a link in sysctl.d leads to it.
const SYSCTL_CONF: &str = "/etc/sysctl.conf";

/// Whose parameters exist only with which module.
const MODULE_OF: [(&str, &str); 3] =
    [("net/bridge/", "br_netfilter"), ("net/netfilter/nf_conntrack", "nf_conntrack"), ("net/ipv4/vs/", "ip_vs")];

/// A parameter and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Which.
    pub parameter: Parameter,
    /// The demand.
    pub rule: SysctlRule,
}

impl Desired {
    /// True when the value meets the demand. Blanks in lists of numbers do not count.
    fn accepts(&self, value: &str) -> bool {
        match &self.rule.want {
            SysctlWant::Value(want) => want.split_whitespace().eq(value.split_whitespace()),
            SysctlWant::Min(min) => value.trim().parse::<i64>().is_ok_and(|value| value >= *min),
        }
    }

    /// The value that meets the demand with the least change.
    fn value(&self) -> String {
        match &self.rule.want {
            SysctlWant::Value(want) => want.clone(),
            SysctlWant::Min(min) => min.to_string(),
        }
    }
}

/// What the kernel and the files say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// In the running kernel; none when it has no such parameter.
    pub live: Option<String>,
    /// The module that brings it is about to be loaded in this run.
    pub module_pending: bool,
    /// What sets it at boot.
    pub at_boot: Option<Winner>,
    /// What /etc/sysctl.conf says, where that is no link's target in sysctl.d.
    pub sysctl_conf: Option<String>,
}

/// Decides.
pub fn plan(id: &ResourceId, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    let key = desired.parameter.to_string();
    let override_by =
        observed.at_boot.as_ref().filter(|winner| winner.file != file::SYSCTL_FILE && !desired.accepts(&winner.value));
    match &observed.live {
        Some(live) if desired.accepts(live) => judge_boot(desired, observed, override_by),
        None if !observed.module_pending && desired.rule.optional => {
            Outcome::Converged { note: Some(format!("this kernel has no {key}; it is optional")) }
        }
        None if !observed.module_pending => missing(desired),
        live => Outcome::Change(Change {
            id: id.clone(),
            reason: match override_by {
                Some(winner) => Reason::Overridden { by: winner.file.clone() },
                None => past.reason_of_value(live.is_none(), &desired.value()),
            },
            summary: format!("set {key} to {}", desired.value()),
            diffs: vec![Diff::Value { what: key.clone(), old: live.clone(), new: Some(desired.value()) }],
            actions: vec![Action::WriteSysctl { key, value: desired.value() }],
            notify: Vec::new(),
            reboot: None,
        }),
    }
}

/// The value is right now: will it be after the next boot?
fn judge_boot(desired: &Desired, observed: &Observed, override_by: Option<&Winner>) -> Outcome {
    let key = &desired.parameter;
    if let Some(Winner { file, value }) = override_by {
        return Outcome::Conflict {
            reason: format!(
                "{key} is right now, but {file} is read after {} and sets it to {value} at the next boot",
                file::SYSCTL_FILE
            ),
        };
    }
    let note = observed.sysctl_conf.as_ref().filter(|value| !desired.accepts(value)).map(|value| {
        format!("{SYSCTL_CONF} says {key} = {value}: `sysctl --system` would set that until the next boot")
    });
    Outcome::Converged { note }
}

fn missing(desired: &Desired) -> Outcome {
    let fix = match module_of(&desired.parameter) {
        Some(module) => format!("add {module} to kernel.modules, or say optional = true"),
        None => "check its name; for kernels without it say optional = true".to_owned(),
    };
    Outcome::Blocked { reason: format!("the running kernel has no parameter {}", desired.parameter), fix: Some(fix) }
}

/// The module without which the kernel has no such parameter.
fn module_of(parameter: &Parameter) -> Option<&'static str> {
    MODULE_OF.iter().find(|(prefix, _)| parameter.path().starts_with(prefix)).map(|(_, module)| *module)
}

/// The files that count at boot, in their order, parsed.
pub(super) fn boot_files(root: &Root) -> Result<Vec<(String, Vec<conf::Setting>)>, ObserveError> {
    let files = root.drop_ins(&conf::DIRS, ".conf")?;
    Ok(files.into_iter().map(|(path, text)| (path, conf::parse(&text))).collect())
}

/// One parameter of the running kernel.
pub struct Sysctl {
    id: ResourceId,
    desired: Desired,
}

impl Sysctl {
    /// The parameter of this name.
    pub fn new(key: &str, rule: &SysctlRule) -> Result<Sysctl, ResourceError> {
        let parameter = parameter(key)?;
        Ok(Sysctl {
            id: ResourceId::new("sysctl", &parameter.to_string()),
            desired: Desired { parameter, rule: rule.clone() },
        })
    }

    fn observe(&self, host: &Host, context: &PlanContext<'_>) -> Result<Observed, ObserveError> {
        let parameter = &self.desired.parameter;
        let files = boot_files(&host.root)?;
        let linked = files.iter().any(
            |(path, _)| matches!(host.root.end_of_links(path), Ok(end) if end != *path && same_file(&end, SYSCTL_CONF)),
        );
        let own = match linked {
            true => None,
            false => host.root.read_text(SYSCTL_CONF)?.map(|text| vec![(SYSCTL_CONF.to_owned(), conf::parse(&text))]),
        };
        Ok(Observed {
            live: host.kernel.sysctl(parameter)?,
            module_pending: module_of(parameter)
                .is_some_and(|module| context.pending.contains(&ResourceId::new("kernel-module", module))),
            at_boot: conf::winner(&files, parameter),
            sysctl_conf: own.and_then(|own| conf::winner(&own, parameter)).map(|winner| winner.value),
        })
    }
}

/// Links in sysctl.d are relative on EL: `../sysctl.conf`.
fn same_file(a: &str, b: &str) -> bool {
    let tidy = |path: &str| {
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts.join("/")
    };
    tidy(a) == tidy(b)
}

fn parameter(key: &str) -> Result<Parameter, ResourceError> {
    Parameter::parse(key)
        .map_err(|error| ResourceError::Setting { key: format!("kernel.sysctl.{key:?}"), problem: error.to_string() })
}

#[async_trait]
impl Resource for Sysctl {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        let mut needs: Vec<ResourceId> = module_of(&self.desired.parameter)
            .map(|module| ResourceId::new("kernel-module", module))
            .into_iter()
            .collect();
        // changing it resets other parameters of IPv4, so it comes first
        let path = self.desired.parameter.path();
        if path.starts_with("net/ipv4/") && path != "net/ipv4/ip_forward" {
            needs.push(ResourceId::new("sysctl", "net.ipv4.ip_forward"));
        }
        needs
    }

    fn stage(&self) -> Stage {
        Stage::Early
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = self.observe(host, context)?;
        Ok(plan(&self.id, &self.desired, &observed, &context.past(&self.applied())))
    }

    fn rivals(&self) -> &'static [&'static str] {
        &["tuned.service"]
    }

    fn explain(&self) -> String {
        format!(
            "{key} in the running kernel, and that no file sets it to something else at boot ({ours} has our value). By hand: \
             sysctl {key}; grep -r {key} /etc/sysctl.d /run/sysctl.d /usr/lib/sysctl.d /etc/sysctl.conf",
            key = self.desired.parameter,
            ours = file::SYSCTL_FILE,
        )
    }

    fn live_only(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"want": self.desired.rule.want})
    }
}

#[cfg(test)]
mod tests;
