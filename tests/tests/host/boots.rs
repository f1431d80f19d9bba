//! What a reboot must not change, and what a power cut must not break.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::vm::Machine;

use crate::Body;
use crate::fixture::{Fixture, demo_config, expect, pod_answers};

pub const TRIALS: &[(&str, Body)] = &[
    ("a power cut in the middle of apply is made good by the next boot", cut_in_apply),
    ("a power cut while dnf installs is made good by the next boot", cut_in_dnf),
    ("a power cut between the two stages is made good by the next boot", cut_between),
    ("after a reboot the node is as it was, and its pod runs", reboot),
];

const LIMIT: Duration = Duration::from_secs(600);

fn reboot(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.node()?;
    node.reboot()?;
    ensure!(node.wait_booted()? == "running", "{}", node.ok("systemctl --failed; systemctl list-jobs")?);
    let text = node
        .ok("getenforce; sysctl -n net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables; tail -n +2 /proc/swaps")?;
    ensure!(text == "Permissive\n1\n1\n", "{text}");
    // early has done its part before anything else was started
    node.ok("systemctl is-active nodeagent-early nodeagent-prepare nodeagent-activate nodeagent-runtime kubelet")?;
    pod_answers(&mut node)?;
    expect(&node.run("agent plan")?, 0, &[])
}

fn cut_in_apply(fixture: &Fixture) -> Result<()> {
    // when the third intent is in the journal, something is being done
    cut(fixture, "apply", "cat /var/lib/nodeagent/txn/*.jsonl 2>/dev/null | wc -l | grep -qv '^[0-5]$'")
}

fn cut_in_dnf(fixture: &Fixture) -> Result<()> {
    cut(fixture, "dnf", "pgrep -x dnf && [ -e /var/lib/rpm/.rpm.lock ] && ls /var/cache/dnf/*/packages/*.rpm")
}

fn cut_between(fixture: &Fixture) -> Result<()> {
    cut(fixture, "between", "systemctl is-active nodeagent-prepare")
}

/// Starts the first boot's units on an installed host and cuts the power when `moment` holds; then boots the disk again.
fn cut(fixture: &Fixture, name: &str, moment: &str) -> Result<()> {
    let disk = fixture.disk(name)?;
    let mut host = fixture.installed_on(&disk, &demo_config()?)?;
    let wait = format!(
        "systemctl start --no-block nodeagent-prepare nodeagent-activate
         for _ in $(seq 2000); do {{ {moment}; }} >/dev/null 2>&1 && exit 0; sleep 0.05; done; exit 1"
    );
    host.run_within(&wait, LIMIT)?.ok().context("the moment for the power cut did not come")?;
    host.power_cut();
    let mut host = fixture.boot_again(&disk)?;
    completed(&mut host)
}

fn completed(host: &mut Machine) -> Result<()> {
    let state = host.run_within("systemctl is-system-running --wait", LIMIT)?.text;
    let status = host.run("agent status; journalctl -b --no-pager -o cat -u 'nodeagent-*' | tail -n 40")?.text;
    ensure!(state.trim() == "running", "{state}{status}");
    host.ok("systemctl is-active nodeagent-prepare nodeagent-activate")?;
    expect(&host.run("agent status")?, 0, &["first boot done"])?;
    expect(&host.run("agent plan")?, 0, &[])?;
    host.ok("rpm --verifydb; rpm -q kubelet; rpm -V nodeagent")?;
    pod_answers(host)
}
