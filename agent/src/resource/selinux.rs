//! The SELinux mode: now (the kernel's enforce node) and at boot (one key of /etc/selinux/config).

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::config::settings::SelinuxMode;
use crate::host::Host;
use crate::plan::{Action, Change, Diff, Outcome, ResourceId};

/// What libselinux reads. /etc/sysconfig/selinux is a link to it on EL, and where somebody has replaced that link by a file,
/// this one still is what counts.
pub const CONFIG: &str = "/etc/selinux/config";

/// Makes the next boot label all files anew: a system that ran without SELinux has unlabelled ones.
const AUTORELABEL: &str = "/.autorelabel";

/// The mode that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desired {
    /// Enforcing or permissive.
    pub enforcing: bool,
}

/// What the system says in its four places.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The tree is not running: there is no mode now.
    pub offline: bool,
    /// In the running kernel; none when SELinux is off there.
    pub enforcing: Option<bool>,
    /// Text of the config file; none when SELinux is not installed.
    pub config: Option<String>,
    /// Mode and owner of that file.
    pub ownership: (u32, u32, u32),
    /// `selinux=`, `enforcing=` of the kernel's command line.
    pub command_line: Vec<String>,
    /// The next boot labels all files.
    pub relabels: bool,
}

impl Observed {
    fn option(&self, name: &str) -> Option<&str> {
        self.command_line.iter().rev().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Decides.
pub fn plan(id: &ResourceId, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    let word = word(desired.enforcing);
    let Some(config) = &observed.config else {
        return not_installed(desired);
    };
    let switched_off = !observed.offline && observed.option("selinux") == Some("0");
    if switched_off && desired.enforcing {
        return Outcome::Blocked {
            reason: "SELinux is switched off on the kernel's command line (selinux=0)".to_owned(),
            fix: Some(format!("grubby --update-kernel ALL --remove-args selinux; touch {AUTORELABEL}; reboot")),
        };
    }
    let at_boot = key(config, "SELINUX").unwrap_or_default();
    let off_now = !observed.offline && observed.enforcing.is_none();
    let config_differs = at_boot != word;
    let mode_differs = observed.enforcing.is_some_and(|now| now != desired.enforcing);
    if !config_differs && !mode_differs {
        return if switched_off { not_missed() } else { settled(desired, observed, off_now) };
    }
    let mut actions = Vec::new();
    let mut diffs = Vec::new();
    if mode_differs {
        actions.push(Action::SetEnforce { enforcing: desired.enforcing });
        let old = observed.enforcing.map(|now| self::word(now).to_owned());
        diffs.push(Diff::Value { what: "SELinux mode now".to_owned(), old, new: Some(word.to_owned()) });
    }
    if config_differs {
        let new = with_key(config, "SELINUX", word);
        let (mode, uid, gid) = observed.ownership;
        actions.push(Action::WriteFile {
            path: CONFIG.to_owned(),
            content: new.clone(),
            mode,
            uid,
            gid,
            secret: false,
        });
        diffs.push(Diff::File { path: CONFIG.to_owned(), old: Some(config.clone()), new: Some(new), secret: false });
    }
    // what was written while SELinux was off has no labels, and an enforcing boot over that does not come up
    let relabel = off_now || at_boot == "disabled";
    if relabel && !observed.relabels {
        let path = AUTORELABEL.to_owned();
        actions.push(Action::WriteFile { path, content: String::new(), mode: 0o644, uid: 0, gid: 0, secret: false });
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason_of_value(false, word),
        summary: format!("make SELinux {word}"),
        diffs,
        actions,
        notify: Vec::new(),
        // a reboot would not switch it on
        reboot: (off_now && !switched_off)
            .then(|| format!("SELinux is off in the running kernel; the next boot labels all files and is {word}")),
    })
}

/// Without a policy there is nothing that could refuse anything.
fn not_installed(desired: &Desired) -> Outcome {
    if desired.enforcing {
        return Outcome::Blocked {
            reason: format!("SELinux is not installed: there is no {CONFIG}"),
            fix: Some("dnf install selinux-policy-targeted; touch /.autorelabel; reboot".to_owned()),
        };
    }
    Outcome::Converged { note: Some(format!("SELinux is not installed: there is no {CONFIG}")) }
}

/// Switched off by the one who starts the kernel; who only wants nothing refused has what he wants.
fn not_missed() -> Outcome {
    let note = "SELinux is switched off on the kernel's command line (selinux=0): nothing is refused".to_owned();
    Outcome::Converged { note: Some(note) }
}

/// Both places are as they should be; is anything else against it?
fn settled(desired: &Desired, observed: &Observed, off_now: bool) -> Outcome {
    if off_now {
        return Outcome::Waiting { reason: "a reboot: SELinux is off in the running kernel".to_owned() };
    }
    let boots = observed.option("enforcing").map(|value| value != "0");
    match boots {
        Some(boots) if boots != desired.enforcing => Outcome::Conflict {
            reason: format!(
                "enforcing={} on the kernel's command line makes the next boot {}, whatever {CONFIG} says",
                u8::from(boots),
                word(boots)
            ),
        },
        _ => Outcome::converged(),
    }
}

fn word(enforcing: bool) -> &'static str {
    if enforcing { "enforcing" } else { "permissive" }
}

/// The last assignment of a key: `KEY=value`, as libselinux reads it (blanks around are cut, case does not count).
pub(super) fn key(text: &str, name: &str) -> Option<String> {
    let line = text.lines().rev().find_map(|line| assignment(line, name))?;
    Some(line.trim().to_ascii_lowercase())
}

fn assignment<'t>(line: &'t str, name: &str) -> Option<&'t str> {
    line.trim_start().strip_prefix(name)?.trim_start().strip_prefix('=')
}

/// The text with one key set: its assignments are changed in place, everything else stays byte by byte.
fn with_key(text: &str, name: &str, value: &str) -> String {
    let mut found = false;
    let mut out = String::with_capacity(text.len() + 32);
    for line in text.split_inclusive('\n') {
        if assignment(line, name).is_none() {
            out.push_str(line);
            continue;
        }
        found = true;
        let end = if line.ends_with('\n') { "\n" } else { "" };
        out.push_str(&format!("{name}={value}{end}"));
    }
    if !found {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&format!("{name}={value}\n"));
    }
    out
}

/// The SELinux mode of the host.
pub struct Selinux {
    id: ResourceId,
    desired: Desired,
}

impl Selinux {
    /// None where the mode is left as the host has it.
    pub fn new(mode: SelinuxMode) -> Option<Selinux> {
        let enforcing = match mode {
            SelinuxMode::Keep => return None,
            SelinuxMode::Enforcing => true,
            SelinuxMode::Permissive => false,
        };
        Some(Selinux { id: ResourceId::new("selinux", "mode"), desired: Desired { enforcing } })
    }

    fn observe(host: &Host) -> Result<Observed, ObserveError> {
        let metadata = host.root.metadata(CONFIG)?;
        Ok(Observed {
            offline: host.is_offline(),
            enforcing: host.kernel.enforcing()?,
            config: host.root.read_text(CONFIG)?,
            ownership: metadata.map_or((0o644, 0, 0), |found| (found.mode, found.uid, found.gid)),
            command_line: host.kernel.command_line()?,
            relabels: host.root.exists(AUTORELABEL)?,
        })
    }
}

#[async_trait]
impl Resource for Selinux {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = Selinux::observe(host)?;
        Ok(plan(&self.id, &self.desired, &observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        format!(
            "SELinux is {} now and after the next boot: the kernel's enforce node, and the key SELINUX in {CONFIG}, of which \
             nothing else is changed. The kernel's command line is looked at, not edited. By hand: getenforce; sestatus; \
             cat {CONFIG} /proc/cmdline",
            word(self.desired.enforcing)
        )
    }

    fn applied(&self) -> Value {
        json!({"mode": word(self.desired.enforcing)})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# SELINUX= can take one of these values:\nSELINUX=enforcing\nSELINUXTYPE=targeted\n";

    fn observed(enforcing: Option<bool>, config: &str, command_line: &[&str]) -> Observed {
        Observed {
            enforcing,
            config: Some(config.to_owned()),
            ownership: (0o644, 0, 0),
            command_line: command_line.iter().map(|word| (*word).to_owned()).collect(),
            ..Observed::default()
        }
    }

    fn decide(enforcing: bool, observed: &Observed) -> Outcome {
        plan(&ResourceId::new("selinux", "mode"), &Desired { enforcing }, observed, &Past::Unknown)
    }

    #[test]
    fn both_places_are_changed_and_nothing_else_of_the_file() {
        let outcome = decide(false, &observed(Some(true), TEXT, &[]));
        let change = outcome.change().unwrap();
        let Action::WriteFile { content, .. } = &change.actions[1] else { panic!("{change:?}") };
        assert_eq!(change.actions[0], Action::SetEnforce { enforcing: false });
        assert_eq!(*content, TEXT.replace("SELINUX=enforcing", "SELINUX=permissive"));
        assert_eq!(change.reboot, None);
    }

    #[test]
    fn each_place_is_changed_alone_when_the_other_is_right() {
        let permissive = TEXT.replace("=enforcing", "=permissive");
        let now_only = decide(false, &observed(Some(true), &permissive, &[]));
        assert_eq!(now_only.change().unwrap().actions, [Action::SetEnforce { enforcing: false }]);
        let boot_only = decide(false, &observed(Some(false), TEXT, &[]));
        assert!(matches!(&boot_only.change().unwrap().actions[..], [Action::WriteFile { path, .. }] if path == CONFIG));
        assert_eq!(decide(false, &observed(Some(false), &permissive, &[])), Outcome::converged());
    }

    #[test]
    fn a_system_without_selinux_is_permissive_enough_and_never_enforcing() {
        let none = Observed::default();
        assert!(matches!(decide(false, &none), Outcome::Converged { note: Some(_) }));
        assert!(matches!(decide(true, &none), Outcome::Blocked { .. }));
    }

    #[test]
    fn what_was_disabled_is_labelled_and_needs_a_reboot() {
        let disabled = TEXT.replace("=enforcing", "=disabled");
        let outcome = decide(true, &observed(None, &disabled, &[]));
        let change = outcome.change().unwrap();
        assert!(
            change.actions.iter().any(|action| matches!(action, Action::WriteFile { path, .. } if path == AUTORELABEL))
        );
        assert!(change.reboot.is_some());
        let after = observed(None, TEXT, &[]);
        assert!(matches!(decide(true, &after), Outcome::Waiting { .. }));
    }

    #[test]
    fn switched_off_is_permissive_enough_and_only_the_file_follows_the_config() {
        let off = |config: &str| observed(None, config, &["selinux=0"]);
        assert!(matches!(decide(true, &off(TEXT)), Outcome::Blocked { .. }));
        let permissive = TEXT.replace("=enforcing", "=permissive");
        let Outcome::Converged { note: Some(note) } = decide(false, &off(&permissive)) else { panic!() };
        assert!(note.contains("selinux=0"), "{note}");
        for config in [TEXT.to_owned(), TEXT.replace("=enforcing", "=disabled")] {
            let outcome = decide(false, &off(&config));
            let change = outcome.change().unwrap();
            assert!(matches!(&change.actions[0], Action::WriteFile { path, .. } if path == CONFIG), "{change:?}");
            assert_eq!(change.reboot, None, "a reboot changes nothing about it");
        }
    }

    #[test]
    fn the_command_line_is_stronger_than_the_file() {
        let permissive = TEXT.replace("=enforcing", "=permissive");
        let forced = observed(Some(false), &permissive, &["quiet", "enforcing=1"]);
        let Outcome::Conflict { reason } = decide(false, &forced) else { panic!() };
        assert!(reason.contains("enforcing=1"), "{reason}");
    }

    #[test]
    fn offline_only_the_file_counts() {
        let offline = Observed { offline: true, ..observed(None, TEXT, &[]) };
        let outcome = decide(false, &offline);
        let change = outcome.change().unwrap();
        assert_eq!((change.actions.len(), &change.reboot), (1, &None));
    }

    #[test]
    fn a_key_is_edited_wherever_and_however_it_stands() {
        for (text, want) in [
            ("", "SELINUX=permissive\n"),
            ("SELINUXTYPE=targeted", "SELINUXTYPE=targeted\nSELINUX=permissive\n"),
            ("  SELINUX = Enforcing \nX=1", "SELINUX=permissive\nX=1"),
            ("SELINUX=disabled", "SELINUX=permissive"),
        ] {
            assert_eq!(with_key(text, "SELINUX", "permissive"), want, "{text:?}");
        }
        assert_eq!(key("SELINUX=a\nSELINUX= Enforcing \n", "SELINUX").unwrap(), "enforcing");
        assert_eq!(key("# SELINUX=a\nSELINUXTYPE=b\n", "SELINUX"), None);
    }
}
