//! Kernel modules: there now (`kernel-module/NAME`), and after the next boot (`modules-load`).

use async_trait::async_trait;
use serde_json::{Value, json};

use super::owned_file::{FileNow, HEADER, OwnedFile};
use super::{Past, PlanContext, Resource, ResourceError};
use crate::config::value::ModuleName;
use crate::host::Host;
use crate::host::kernel::{ModuleFacts, normal_module_name};
use crate::plan::{Action, Change, Diff, Outcome, ResourceId, Stage};

/// Read by systemd-modules-load at each boot.
pub const MODULES_LOAD: &str = "/etc/modules-load.d/90-nodeagent.conf";

/// Modules that EL 10 no longer has in its main kernel package.
pub(super) const IN_MODULES_EXTRA: [&str; 8] =
    ["br_netfilter", "ip_tables", "ip6_tables", "iptable_nat", "iptable_filter", "nft_compat", "xt_CT", "ip_set"];

/// A module that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Its name.
    pub name: String,
}

/// What is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// From the kernel and its lists.
    pub facts: ModuleFacts,
    /// The kernel that runs.
    pub release: String,
    /// EL's major, where it is EL.
    pub el_major: Option<u32>,
    /// The package that has it is installed in this run.
    pub arriving: bool,
}

/// Decides.
pub fn plan(id: &ResourceId, desired: &Desired, observed: &Observed, past: &Past) -> Outcome {
    let name = &desired.name;
    let facts = &observed.facts;
    if facts.present() {
        // a bar does nothing to a module that is built in, and a loaded one works until the next boot
        return match &facts.barred {
            Some(bar) if !facts.builtin => Outcome::Conflict {
                reason: format!("{name} is loaded, but {bar} keeps it from being loaded at the next boot"),
            },
            _ => Outcome::converged(),
        };
    }
    let blocked = |reason: String, fix: String| Outcome::Blocked { reason, fix: Some(fix) };
    if let Some(bar) = &facts.barred {
        return blocked(format!("{name} cannot be loaded: {bar}"), "remove that line".to_owned());
    }
    if facts.file.is_none() && !observed.arriving {
        return blocked(format!("the running kernel {} has no module {name}", observed.release), hint(name, observed));
    }
    if facts.loading_disabled {
        return blocked(
            format!("{name} cannot be loaded: kernel.modules_disabled is 1"),
            "reboot; the module is loaded before the lock".to_owned(),
        );
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: past.reason(true),
        summary: format!("load kernel module {name}"),
        diffs: vec![Diff::Value {
            what: format!("kernel module {name}"),
            old: Some("not loaded".to_owned()),
            new: Some("loaded".to_owned()),
        }],
        actions: vec![Action::LoadModule { name: name.clone() }],
        notify: Vec::new(),
        reboot: None,
    })
}

fn hint(name: &str, observed: &Observed) -> String {
    let extra = observed.el_major.is_some_and(|major| major >= 10)
        && IN_MODULES_EXTRA.contains(&normal_module_name(name).as_str());
    match extra {
        // without the release dnf takes the newest kernel's, which the running one cannot load
        true => format!(
            "dnf install kernel-modules-extra-{release}, or kernel-modules-extra and a reboot into its kernel",
            release = observed.release
        ),
        false => format!(
            "install the package that has it for {release} (dnf provides '*/{name}.ko*'), or reboot if a newer kernel is \
             installed",
            release = observed.release
        ),
    }
}

/// One module of the running kernel.
pub struct KernelModule {
    id: ResourceId,
    desired: Desired,
    needs: Vec<ResourceId>,
}

impl KernelModule {
    /// The module of this name.
    pub fn new(name: &ModuleName) -> KernelModule {
        KernelModule {
            id: ResourceId::new("kernel-module", name.as_str()),
            desired: Desired { name: name.as_str().to_owned() },
            needs: Vec::new(),
        }
    }

    /// After what brings its file.
    pub fn after(self, needs: Vec<ResourceId>) -> KernelModule {
        KernelModule { needs, ..self }
    }
}

#[async_trait]
impl Resource for KernelModule {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn needs(&self) -> Vec<ResourceId> {
        self.needs.clone()
    }

    fn stage(&self) -> Stage {
        Stage::Early
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let facts = host.kernel.module(&self.desired.name)?;
        let observed = Observed {
            facts,
            release: host.kernel.release().to_owned(),
            el_major: context.platform.el_major(),
            arriving: self.needs.iter().any(|need| context.pending.contains(need)),
        };
        Ok(plan(&self.id, &self.desired, &observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        let name = &self.desired.name;
        format!(
            "The running kernel offers what the module {name} is for. Proven by the effect (a file system in \
             /proc/filesystems, a parameter in /proc/sys), not by the list of modules: a kernel may have it built in. \
             Loaded by modprobe. It is never unloaded. By hand: modprobe -nv {name}; modinfo {name}"
        )
    }

    fn live_only(&self) -> bool {
        true
    }

    fn applied(&self) -> Value {
        json!({"module": self.desired.name})
    }
}

/// The list of modules that are loaded at each boot.
pub struct ModulesLoad {
    id: ResourceId,
    file: OwnedFile,
}

impl ModulesLoad {
    /// Of these modules, in their order.
    pub fn new(modules: &[ModuleName]) -> ModulesLoad {
        let mut content = HEADER.to_owned();
        for name in modules {
            content.push_str(name.as_str());
            content.push('\n');
        }
        ModulesLoad { id: ResourceId::single("modules-load"), file: OwnedFile::public(MODULES_LOAD, content) }
    }
}

#[async_trait]
impl Resource for ModulesLoad {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    fn stage(&self) -> Stage {
        Stage::Early
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = FileNow::observe(&host.root, MODULES_LOAD)?;
        let desired = super::file::Desired { file: self.file.clone(), notify: Vec::new() };
        Ok(super::file::plan(&self.id, &desired, &observed, &context.past(&self.applied())))
    }

    fn explain(&self) -> String {
        format!(
            "{MODULES_LOAD} names the modules that systemd-modules-load loads at each boot. By hand: cat {MODULES_LOAD}; \
             systemctl status systemd-modules-load"
        )
    }

    fn applied(&self) -> Value {
        json!({"digest": super::digest(&self.file.content)})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(facts: ModuleFacts, el_major: u32) -> Outcome {
        let desired = Desired { name: "br_netfilter".into() };
        let observed =
            Observed { facts, release: "6.12.0-55.el10.x86_64".into(), el_major: Some(el_major), arriving: false };
        plan(&ResourceId::new("kernel-module", "br_netfilter"), &desired, &observed, &Past::Unknown)
    }

    fn loadable() -> ModuleFacts {
        ModuleFacts { file: Some("kernel/net/bridge/br_netfilter.ko.xz".into()), ..ModuleFacts::default() }
    }

    #[test]
    fn a_module_counts_by_its_effect_and_not_by_the_list() {
        let effect = ModuleFacts { effect: Some("/proc/sys/net/bridge".into()), ..ModuleFacts::default() };
        assert_eq!(decide(effect, 9), Outcome::converged());
        assert_eq!(decide(ModuleFacts { builtin: true, ..ModuleFacts::default() }, 9), Outcome::converged());
        let outcome = decide(loadable(), 9);
        assert_eq!(outcome.change().unwrap().actions, [Action::LoadModule { name: "br_netfilter".into() }]);
    }

    #[test]
    fn what_keeps_a_module_out_is_named_with_its_fix() {
        for (facts, reason, fix) in [
            (
                ModuleFacts {
                    barred: Some("`install br_netfilter /bin/true` in /etc/modprobe.d/cis.conf".into()),
                    ..loadable()
                },
                "cis.conf",
                "remove",
            ),
            (ModuleFacts { loading_disabled: true, ..loadable() }, "modules_disabled", "reboot"),
            (
                ModuleFacts::default(),
                "running kernel 6.12.0-55.el10.x86_64 has no module",
                "kernel-modules-extra-6.12.0-55.el10.x86_64",
            ),
        ] {
            match decide(facts, 10) {
                Outcome::Blocked { reason: said, fix: Some(said_fix) } => {
                    assert!(said.contains(reason), "{said}");
                    assert!(said_fix.contains(fix), "{said_fix}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_module_whose_package_is_about_to_come_is_loaded_after_it() {
        let desired = Desired { name: "br_netfilter".into() };
        let release = "6.12.0-55.el10.x86_64".to_owned();
        let observed = Observed { facts: ModuleFacts::default(), release, el_major: Some(10), arriving: true };
        let outcome = plan(&ResourceId::new("kernel-module", "br_netfilter"), &desired, &observed, &Past::Unknown);
        assert!(outcome.change().is_some(), "{outcome:?}");
    }

    #[test]
    fn the_extra_package_is_only_proposed_where_it_helps() {
        let Outcome::Blocked { fix: Some(fix), .. } = decide(ModuleFacts::default(), 9) else { panic!() };
        assert!(!fix.contains("kernel-modules-extra"), "{fix}");
    }

    #[test]
    fn a_loaded_module_that_will_not_come_back_is_a_conflict() {
        let facts = ModuleFacts {
            effect: Some("x".into()),
            barred: Some("`blacklist br_netfilter` in f".into()),
            ..loadable()
        };
        assert!(matches!(decide(facts, 9), Outcome::Conflict { .. }));
    }
}
