//! systemd's own view of a boot with our units: no complaint, no ordering cycle, and what presets switch on.

use std::fs;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nodeagent_tests::outside::{repository, run};
use tempfile::tempdir;

use crate::trees::{CloudInit, Tree, name, unit_files};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("units: systemd has nothing to say about any of them", systemd_is_silent),
        trial("units: a boot with cloud-init of any kind has no ordering cycle", no_cycle),
        trial("units: the cycle check finds a unit that stands after cloud-final", the_check_finds_a_cycle),
        trial("units: the check finds a directive that systemd does not know", the_check_finds_a_bad_directive),
        trial("units: kubelet comes after prepare and runtime, activate after both and not before kubelet", order),
        trial("units: presets enable the first boot and the watch, and leave the runtime to the agent", presets),
        trial("tmpfiles: the directories are made with their modes", tmpfiles),
        trial("udev: bridge sysctls are set again when the module comes", udev),
    ]
}

fn systemd_is_silent() -> Result<()> {
    let tree = Tree::stage(CloudInit::KINDS[0])?;
    for file in unit_files()? {
        tree.verify(&name(&file))?.silent(&format!("systemd-analyze verify {}", name(&file)))?;
    }
    Ok(())
}

fn no_cycle() -> Result<()> {
    for kind in CloudInit::KINDS {
        let tree = Tree::stage(kind)?;
        // sysinit.target and timers.target are drawn in by it
        tree.verify("multi-user.target")?.silent(&format!("a boot with cloud-init as {kind:?}"))?;
    }
    Ok(())
}

fn the_check_finds_a_cycle() -> Result<()> {
    let tree = Tree::stage(CloudInit { network_stage_before_sysinit: false, final_stage_after_multi_user: true })?;
    tree.edit("nodeagent-activate.service", "After=time-sync.target", "After=cloud-final.service")?;
    let verdict = tree.verify("multi-user.target")?;
    ensure!(verdict.text.contains("ordering cycle"), "not found: {verdict:?}");
    Ok(())
}

fn the_check_finds_a_bad_directive() -> Result<()> {
    let tree = Tree::stage(CloudInit::KINDS[0])?;
    tree.edit("nodeagent-runtime.service", "Type=notify\n", "Type=notify\nRestartSteeps=3\n")?;
    let verdict = tree.verify("nodeagent-runtime.service")?;
    ensure!(verdict.text.contains("RestartSteeps"), "not found: {verdict:?}");
    Ok(())
}

/// The two-stage shape itself: who stands before whom.
fn order() -> Result<()> {
    let tree = Tree::stage(CloudInit::KINDS[0])?;
    let graph = run(
        "systemd-analyze",
        [
            "verify",
            &format!("--root={}", tree.root().display()),
            "--man=no",
            "kubelet.service",
            "nodeagent-activate.service",
        ],
    )?;
    graph.silent("kubelet.service and nodeagent-activate.service together")?;
    let lines = |unit: &str, key: &str| -> Result<Vec<String>> {
        let text = fs::read_to_string(tree.system(unit))?;
        let prefix = format!("{key}=");
        Ok(text
            .lines()
            .filter_map(|l| l.strip_prefix(&prefix))
            .flat_map(str::split_whitespace)
            .map(String::from)
            .collect())
    };
    for (unit, key, other) in [
        ("nodeagent-prepare.service", "Before", "nodeagent-runtime.service"),
        ("nodeagent-prepare.service", "Before", "kubelet.service"),
        ("nodeagent-prepare.service", "After", "cloud-config.target"),
        ("nodeagent-runtime.service", "Before", "kubelet.service"),
        ("nodeagent-activate.service", "After", "nodeagent-runtime.service"),
        ("nodeagent-activate.service", "Requires", "nodeagent-prepare.service"),
    ] {
        ensure!(lines(unit, key)?.iter().any(|u| u == other), "{unit} lacks {key}={other}");
    }
    for file in unit_files()? {
        for late in ["cloud-final.service", "cloud-init.target", "multi-user.target"] {
            ensure!(!lines(&name(&file), "After")?.iter().any(|u| u == late), "{} stands after {late}", name(&file));
        }
    }
    ensure!(
        !lines("nodeagent-activate.service", "Before")?.iter().any(|u| u == "kubelet.service"),
        "nodeagent-activate.service starts kubelet and waits for it: it may not stand before it"
    );
    Ok(())
}

fn presets() -> Result<()> {
    let tree = Tree::stage(CloudInit::KINDS[0])?;
    tree.systemctl(&["preset", "nodeagent-runtime.service"])?;
    for file in unit_files()? {
        let unit = name(&file);
        let expected = match unit.as_str() {
            "nodeagent-runtime.service" => "disabled",
            "nodeagent-reconcile.service" => "static",
            _ => "enabled",
        };
        let root = format!("--root={}", tree.root().display());
        // exits with 1 for a unit that is not enabled
        let state = run("systemctl", [root.as_str(), "is-enabled", &unit])?.text;
        ensure!(state.trim() == expected, "{unit} is {} after the presets, not {expected}", state.trim());
    }
    Ok(())
}

fn tmpfiles() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let root = tempdir()?;
    let folder = root.path().join("usr/lib/tmpfiles.d");
    fs::create_dir_all(&folder)?;
    fs::copy(repository().join("units/tmpfiles.d/nodeagent.conf"), folder.join("nodeagent.conf"))?;
    let argument = format!("--root={}", root.path().display());
    run("systemd-tmpfiles", [argument.as_str(), "--create", "nodeagent.conf"])?.silent("systemd-tmpfiles --create")?;
    for (path, mode) in [("run/nodeagent", 0o755), ("var/lib/nodeagent", 0o711)] {
        let found = fs::metadata(root.path().join(path))?.permissions().mode() & 0o7777;
        ensure!(found == mode, "{path} has mode {found:o}, not {mode:o}");
    }
    Ok(())
}

fn udev() -> Result<()> {
    let rules = fs::read_to_string(repository().join("units/udev/rules.d/80-nodeagent.rules"))?;
    let rule: Vec<&str> = rules.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()).collect();
    ensure!(rule.len() == 1, "one rule, in one line: {rule:?}");
    let parts: Vec<&str> = rule[0].split(", ").collect();
    for wanted in [r#"ACTION=="add""#, r#"SUBSYSTEM=="module""#, r#"KERNEL=="br_netfilter""#] {
        ensure!(parts.contains(&wanted), "the rule lacks {wanted}");
    }
    let program = parts.last().and_then(|p| p.strip_prefix(r#"RUN+=""#)).and_then(|p| p.split(' ').next());
    let program = program.ok_or_else(|| anyhow::anyhow!("the rule runs nothing: {}", rule[0]))?;
    ensure!(fs::metadata(program).is_ok(), "{program} is not where systemd has it");
    Ok(())
}
