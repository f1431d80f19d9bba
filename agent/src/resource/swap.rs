//! Swap off: now, and after the next boot.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::owned_file::HEADER;
use super::{ObserveError, Past, PlanContext, Resource, ResourceError};
use crate::config::settings::SwapPolicy;
use crate::host::Host;
use crate::host::kernel::Swap;
use crate::plan::{Action, Change, Diff, Outcome, Reason, ResourceId, UnitOp};

const FSTAB: &str = "/etc/fstab";

/// Read instead of the vendor's; one without sections makes no devices.
const ZRAM: &str = "/etc/systemd/zram-generator.conf";

/// Where else zram may be turned on, the strongest first (zram-generator.conf(5)).
const ZRAM_VENDOR: [&str; 3] = [
    "/run/systemd/zram-generator.conf",
    "/usr/local/lib/systemd/zram-generator.conf",
    "/usr/lib/systemd/zram-generator.conf",
];

/// Files over that one, which count whatever it says. One of ours hides those of the same name.
const ZRAM_DROP_INS: &str = "/etc/systemd/zram-generator.conf.d";
const ZRAM_DROP_IN_DIRS: [&str; 4] = [
    ZRAM_DROP_INS,
    "/run/systemd/zram-generator.conf.d",
    "/usr/local/lib/systemd/zram-generator.conf.d",
    "/usr/lib/systemd/zram-generator.conf.d",
];

/// Every swap unit hangs on this, also those that a generator makes of a GPT partition that no file names.
const TARGET: &str = "swap.target";

/// Before a line of fstab that we have switched off; taken away again by undo, or by hand.
const TAG: &str = "# switched off by nodeagent (swap.policy): ";

/// Pages that come back from swap need a place, and something has to stay free for the rest of the system.
const HEADROOM_KIB: u64 = 64 * 1024;

/// What the system says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The tree is not running.
    pub offline: bool,
    /// In use now.
    pub swaps: Vec<Swap>,
    /// What the kernel could give without swapping.
    pub available_kib: u64,
    /// Text, mode and owner of fstab.
    pub fstab: Option<(String, u32, u32, u32)>,
    /// A vendor's file turns zram on, or ours would: text of the file that counts.
    pub zram: Option<String>,
    /// Names of drop-ins that turn zram on, whatever that file says, with the text of those that are in /etc.
    pub zram_drop_ins: Vec<(String, Option<String>)>,
    /// swap.target is masked.
    pub masked: bool,
}

/// Decides.
pub fn plan(id: &ResourceId, observed: &Observed, past: &Past) -> Outcome {
    let (mut actions, mut diffs) = (Vec::new(), Vec::new());
    let used: u64 = observed.swaps.iter().map(|swap| swap.used_kib).sum();
    if used > 0 && used + HEADROOM_KIB > observed.available_kib {
        return Outcome::Blocked {
            reason: format!(
                "{used} KiB are swapped out and only {} KiB of memory are available: switching swap off now would have \
                 processes killed",
                observed.available_kib
            ),
            fix: Some("stop something large, or reboot: the next boot comes up without swap".to_owned()),
        };
    }
    // fstab first: a power cut between must not bring swap back
    if let Some((text, mode, uid, gid)) = &observed.fstab {
        let new = without_swap(text);
        if new != *text {
            let path = FSTAB.to_owned();
            diffs.push(Diff::File {
                path: path.clone(),
                old: Some(text.clone()),
                new: Some(new.clone()),
                secret: false,
            });
            actions.push(Action::WriteFile { path, content: new, mode: *mode, uid: *uid, gid: *gid, secret: false });
        }
    }
    let main = observed.zram.as_deref().filter(|text| has_device(text)).map(|_| (ZRAM.to_owned(), None));
    let drop_ins = observed.zram_drop_ins.iter().map(|(name, old)| (format!("{ZRAM_DROP_INS}/{name}"), old.clone()));
    for (path, old) in main.into_iter().chain(drop_ins) {
        let content = format!("{HEADER}# no device: swap.policy is off\n");
        diffs.push(Diff::File { path: path.clone(), old, new: Some(content.clone()), secret: false });
        actions.push(Action::WriteFile { path, content, mode: 0o644, uid: 0, gid: 0, secret: false });
    }
    if !observed.masked {
        diffs.push(Diff::Value { what: TARGET.to_owned(), old: Some("not masked".into()), new: Some("masked".into()) });
        actions.push(Action::Unit { unit: TARGET.to_owned(), op: UnitOp::Mask, wait: true });
    }
    for swap in &observed.swaps {
        let what = format!("swap on {}", swap.device);
        diffs.push(Diff::Value { what, old: Some(format!("{} KiB", swap.size_kib)), new: Some("off".into()) });
        actions.push(Action::Swapoff { device: swap.device.clone() });
    }
    if actions.is_empty() {
        return Outcome::converged();
    }
    // Not left to the end of the run: as long as systemd has the old units, whatever is started next (dnf's own unit, for
    // one) wants sysinit.target, which wants swap.target, which has the swap set up again.
    let units_differ = actions.iter().any(|action| !matches!(action, Action::Swapoff { .. }));
    if units_differ && !observed.offline {
        actions.push(Action::DaemonReload);
    }
    Outcome::Change(Change {
        id: id.clone(),
        reason: match past.reason(false) {
            Reason::Drifted { .. } => Reason::Drifted { last: Some("off".to_owned()) },
            other => other,
        },
        summary: "switch swap off, now and at boot".to_owned(),
        diffs,
        actions,
        notify: Vec::new(),
        reboot: None,
    })
}

/// A section is a device, whatever it is called.
fn has_device(text: &str) -> bool {
    text.lines().any(|line| line.trim_start().starts_with('['))
}

/// fstab with its swap lines as comments; every other byte stays.
fn without_swap(text: &str) -> String {
    let line = |line: &str| {
        let is_swap = !line.trim_start().starts_with('#') && line.split_whitespace().nth(2) == Some("swap");
        if is_swap { format!("{TAG}{line}") } else { line.to_owned() }
    };
    text.split_inclusive('\n').map(line).collect()
}

/// Swap of the host.
pub struct SwapOff {
    id: ResourceId,
}

impl SwapOff {
    /// None where swap is left as the host has it.
    pub fn new(policy: SwapPolicy) -> Option<SwapOff> {
        (policy == SwapPolicy::Off).then(|| SwapOff { id: ResourceId::single("swap") })
    }

    async fn observe(host: &Host) -> Result<Observed, ObserveError> {
        let fstab = match (host.root.read_text(FSTAB)?, host.root.metadata(FSTAB)?) {
            (Some(text), Some(found)) => Some((text, found.mode, found.uid, found.gid)),
            _ => None,
        };
        let mut zram = host.root.read_text(ZRAM)?;
        for vendor in ZRAM_VENDOR {
            if zram.is_none() {
                zram = host.root.read_text(vendor)?;
            }
        }
        let drop_ins =
            host.root.drop_ins(&ZRAM_DROP_IN_DIRS, ".conf")?.into_iter().filter(|(_, text)| has_device(text));
        let zram_drop_ins = drop_ins.filter_map(|(path, text)| {
            let (dir, name) = path.rsplit_once('/')?;
            Some((name.to_owned(), (dir == ZRAM_DROP_INS).then_some(text)))
        });
        Ok(Observed {
            offline: host.is_offline(),
            zram_drop_ins: zram_drop_ins.collect(),
            swaps: host.kernel.swaps()?,
            available_kib: host.kernel.available_memory_kib()?.unwrap_or(u64::MAX),
            fstab,
            zram,
            masked: host.systemd.unit(TARGET).await?.is_masked(),
        })
    }
}

#[async_trait]
impl Resource for SwapOff {
    fn id(&self) -> &ResourceId {
        &self.id
    }

    async fn plan(&self, host: &Host, context: &PlanContext<'_>) -> Result<Outcome, ResourceError> {
        let observed = SwapOff::observe(host).await?;
        Ok(plan(&self.id, &observed, &context.past(&self.applied())))
    }

    fn rivals(&self) -> &'static [&'static str] {
        &["zram-config.service", "zramswap.service", "dphys-swapfile.service", "swapspace.service"]
    }

    fn explain(&self) -> String {
        format!(
            "No swap now (/proc/swaps) and none after a boot: swap lines of {FSTAB} become comments that say so, {ZRAM} has no \
             device where a vendor or a drop-in turned zram on, and {TARGET} is masked, which also keeps GPT swap partitions out. By hand: \
             swapon --show; systemctl list-units --type swap"
        )
    }

    fn applied(&self) -> Value {
        json!({"policy": "off"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(observed: &Observed) -> Outcome {
        plan(&ResourceId::single("swap"), observed, &Past::Unknown)
    }

    fn off() -> Observed {
        Observed { available_kib: 1 << 20, masked: true, ..Observed::default() }
    }

    #[test]
    fn swap_lines_become_comments_and_nothing_else_changes() {
        let text = "UUID=1 / xfs defaults 0 0\n/dev/vda2\tnone\tswap\tsw 0 0\n# /x none swap sw 0 0\n/swap.img swap swap sw 0 0";
        let want = format!(
            "UUID=1 / xfs defaults 0 0\n{TAG}/dev/vda2\tnone\tswap\tsw 0 0\n# /x none swap sw 0 0\n{TAG}/swap.img swap swap sw 0 0"
        );
        assert_eq!(without_swap(text), want);
        assert_eq!(without_swap(&want), want);
    }

    #[test]
    fn what_brings_swap_back_goes_before_what_swaps_now() {
        let swap = Swap { device: "/dev/vda2".into(), size_kib: 100, used_kib: 10 };
        let observed = Observed {
            swaps: vec![swap],
            fstab: Some(("/dev/vda2 none swap sw 0 0\n".into(), 0o644, 0, 0)),
            zram: Some("[zram0]\n".into()),
            masked: false,
            ..off()
        };
        let outcome = decide(&observed);
        let actions = &outcome.change().unwrap().actions;
        assert!(
            matches!(
                &actions[..],
                [
                    Action::WriteFile { .. },
                    Action::WriteFile { .. },
                    Action::Unit { .. },
                    Action::Swapoff { .. },
                    Action::DaemonReload
                ]
            ),
            "{actions:?}"
        );
        assert_eq!(decide(&off()), Outcome::converged());
        assert_eq!(decide(&Observed { zram: Some("# nothing\n".into()), ..off() }), Outcome::converged());
        let drop_in = Observed { zram_drop_ins: vec![("50-site.conf".into(), None)], ..off() };
        let outcome = decide(&drop_in);
        let hides = |action: &Action| {
            matches!(action, Action::WriteFile { path, content, .. }
                if path == "/etc/systemd/zram-generator.conf.d/50-site.conf" && !has_device(content))
        };
        assert!(outcome.change().unwrap().actions.iter().any(hides), "{outcome:?}");
    }

    #[test]
    fn a_full_swap_is_not_switched_off_into_an_out_of_memory() {
        let swap = Swap { device: "/dev/vda2".into(), size_kib: 1 << 21, used_kib: 1 << 20 };
        assert!(matches!(decide(&Observed { swaps: vec![swap], ..off() }), Outcome::Blocked { .. }));
    }
}
