//! Kernel parameters after the next boot: one file for all of them. Those that come with a module which
//! is loaded later are applied again by the udev rule of our package, which reads the same file.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::super::owned_file::{FileNow, HEADER, OwnedFile};
use super::super::{ObserveError, PlanContext, Resource, ResourceError, digest};
use super::{Desired, boot_files, conf, parameter};
use crate::config::settings::{SysctlRule, SysctlWant};
use crate::config::value::SysctlKey;
use crate::host::Host;
use crate::plan::{Outcome, ResourceId, Stage};

/// Sorts after the `99-sysctl.conf` that leads to /etc/sysctl.conf on EL, so that ours wins.
pub const SYSCTL_FILE: &str = "/etc/sysctl.d/99-zz-nodeagent.conf";

/// What decides whether a minimum has to be in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Value now.
    pub live: Option<String>,
    /// What the other files set.
    pub others: Option<String>,
    /// Our file has it.
    pub listed: bool,
}

/// The value that the file sets; none when the parameter is left to the kernel or to other files. A minimum must not lower at
/// boot what the kernel would choose by itself on a large machine, or what another file raises.
pub fn persisted(desired: &Desired, observed: &Observed) -> Option<String> {
    let min = match &desired.rule.want {
        SysctlWant::Value(value) => return Some(value.clone()),
        SysctlWant::Min(min) => *min,
    };
    let number = |text: &Option<String>| text.as_ref().and_then(|text| text.trim().parse::<i64>().ok());
    match (number(&observed.others), number(&observed.live)) {
        (Some(other), _) if other >= min => observed.listed.then(|| other.to_string()),
        (Some(_), _) => Some(min.to_string()),
        (None, Some(live)) if live >= min && !observed.listed => None,
        // offline nothing is known about the kernel that will boot: its first boot decides
        (None, None) if observed.live.is_none() && !observed.listed => None,
        _ => Some(min.to_string()),
    }
}

/// The text of the file.
pub fn render<'a>(settings: impl Iterator<Item = (&'a Desired, Option<String>)>) -> String {
    let mut lines: Vec<(bool, String)> = settings
        .filter_map(|(desired, value)| {
            let path = desired.parameter.path();
            // a name with a dot inside is only unambiguous with slashes
            let name = if path.contains('.') { path.to_owned() } else { desired.parameter.to_string() };
            Some((path != "net/ipv4/ip_forward", format!("{name} = {}\n", value?)))
        })
        .collect();
    // ip_forward first: setting it resets others
    lines.sort();
    lines.into_iter().fold(HEADER.to_owned(), |text, (_, line)| text + &line)
}

/// The file that sets parameters at boot.
pub struct SysctlFile {
    id: ResourceId,
    desired: Vec<Desired>,
}

impl SysctlFile {
    /// For all parameters of the config.
    pub fn new<'a>(rules: impl Iterator<Item = (&'a SysctlKey, &'a SysctlRule)>) -> Result<SysctlFile, ResourceError> {
        let desired = rules
            .map(|(key, rule)| Ok(Desired { parameter: parameter(key.as_str())?, rule: rule.clone() }))
            .collect::<Result<_, ResourceError>>()?;
        Ok(SysctlFile { id: ResourceId::single("sysctl-file"), desired })
    }

    fn wanted_text(&self, host: &Host) -> Result<String, ObserveError> {
        let (ours, others): (Vec<_>, Vec<_>) =
            boot_files(&host.root)?.into_iter().partition(|(path, _)| path == SYSCTL_FILE);
        let mut values = Vec::new();
        for desired in &self.desired {
            let observed = Observed {
                live: host.kernel.sysctl(&desired.parameter)?,
                others: conf::winner(&others, &desired.parameter).map(|winner| winner.value),
                listed: conf::winner(&ours, &desired.parameter).is_some(),
            };
            values.push(persisted(desired, &observed));
        }
        Ok(render(self.desired.iter().zip(values)))
    }
}

#[async_trait]
impl Resource for SysctlFile {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn stage(&self) -> Stage {
        Stage::Early
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let content = self.wanted_text(host)?;
        let observed = FileNow::observe(&host.root, SYSCTL_FILE)?;
        let desired = super::super::file::Desired { file: OwnedFile::public(SYSCTL_FILE, content), notify: Vec::new() };
        Ok(super::super::file::plan(&self.id, &desired, &observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        format!(
            "{SYSCTL_FILE} sets our parameters at each boot; its name sorts after 99-sysctl.conf, so that it wins. A minimum is \
             only in it when the kernel and the other files stay below. By hand: cat {SYSCTL_FILE}; \
             systemd-analyze cat-config sysctl.d"
        )
    }

    fn applied(&self) -> Value {
        let wants: serde_json::Map<String, Value> =
            self.desired.iter().map(|each| (each.parameter.to_string(), json!(each.rule.want))).collect();
        json!({"digest": digest(&Value::from(wants).to_string())})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(key: &str, want: SysctlWant) -> Desired {
        let parameter = crate::host::kernel::Parameter::parse(key).unwrap();
        Desired { parameter, rule: SysctlRule { want, optional: false } }
    }

    #[test]
    fn a_minimum_is_only_written_down_when_something_would_be_lower_without_it() {
        let min = desired("fs.inotify.max_user_instances", SysctlWant::Min(8192));
        let text = |number: i64| Some(number.to_string());
        for (live, others, listed, want) in [
            (text(128), None, false, text(8192)),
            (text(8192), None, true, text(8192)),
            (text(65536), None, false, None),
            (text(65536), None, true, text(8192)),
            (text(65536), text(65536), false, None),
            (text(65536), text(65536), true, text(65536)),
            (text(8192), text(512), false, text(8192)),
            (None, None, false, None),
        ] {
            let observed = Observed { live: live.clone(), others: others.clone(), listed };
            assert_eq!(persisted(&min, &observed), want, "live {live:?} others {others:?} listed {listed}");
        }
    }

    #[test]
    fn ip_forward_comes_first_and_dotted_interfaces_keep_their_dots() {
        let settings = [
            desired("net/ipv4/conf/eth0.100/forwarding", SysctlWant::Value("1".into())),
            desired("net.ipv4.ip_forward", SysctlWant::Value("1".into())),
            desired("fs.file-max", SysctlWant::Value("10".into())),
        ];
        let text = render(settings.iter().map(|each| (each, persisted(each, &Observed::default()))));
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines, ["net.ipv4.ip_forward = 1", "fs.file-max = 10", "net/ipv4/conf/eth0.100/forwarding = 1"]);
    }
}
