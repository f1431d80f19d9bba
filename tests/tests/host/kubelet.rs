//! The kubelet in its modes and versions. The stand-in refuses flags and fields that the version does not know.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::Body;
use crate::fixture::{Fixture, demo_config, expect, pod_answers};

pub const TRIALS: &[(&str, Body)] = &[
    ("the oldest kubelet takes its flags and configuration", oldest),
    ("the newest kubelet takes its flags and configuration", newest),
    ("in kubeadm mode the kubelet waits for join, and runs after it", kubeadm),
    ("a killed runtime comes back and knows its pods", killed_runtime),
];

const LIMIT: Duration = Duration::from_secs(400);

fn oldest(fixture: &Fixture) -> Result<()> {
    runs(fixture, "1.18")
}

fn newest(fixture: &Fixture) -> Result<()> {
    runs(fixture, "1.37")
}

fn runs(fixture: &Fixture, minor: &str) -> Result<()> {
    let mut host = fixture.installed(&demo_config()?.replace("1.31", minor))?;
    expect(&host.run_within("agent apply --yes", LIMIT)?, 0, &[])?;
    expect(&host.run("kubelet --version")?, 0, &[minor])?;
    pod_answers(&mut host)?;
    ensure!(
        host.ok("systemctl show -P NRestarts kubelet")?.trim() == "0",
        "the kubelet did not like what it was given at first"
    );
    Ok(())
}

fn kubeadm(fixture: &Fixture) -> Result<()> {
    let config =
        demo_config()?.replace("role = \"standalone\"", "role = \"worker\"").replace("\"agent\"", "\"kubeadm\"");
    let mut host = fixture.installed(&config)?;
    host.run_within("agent apply --yes", LIMIT)?;
    expect(&host.run("agent status")?, 0, &["waiting", "join"])?;
    let hash = "0".repeat(64);
    host.ok(&format!(
        "kubeadm join 10.0.2.100:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:{hash} \
         --cri-socket unix:///run/nodeagent/cri.sock"
    ))?;
    host.ok("agent reconcile; systemctl is-active kubelet")?;
    let text = host.ok("journalctl -b -o cat -u kubelet | grep 'kubelet v' | tail -n 1")?;
    ensure!(text.contains("unix:///run/nodeagent/cri.sock"), "{text}");
    Ok(())
}

fn killed_runtime(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.node()?;
    let container = "pgrep -f 'httpd -f -p 8080' | sort | tr '\\n' ' '";
    let before = node.ok(container)?;
    ensure!(!before.trim().is_empty(), "no container runs");
    node.ok(
        "pid=$(systemctl show -P MainPID nodeagent-runtime); kill -9 $pid
         for _ in $(seq 100); do
           new=$(systemctl show -P MainPID nodeagent-runtime)
           [ \"$new\" != 0 ] && [ \"$new\" != $pid ] && [ \"$(systemctl is-active nodeagent-runtime)\" = active ] && exit 0
           sleep 0.2
         done; exit 1",
    )?;
    pod_answers(&mut node)?;
    let after = node.ok(container)?;
    ensure!(before == after, "the container was started anew: {before} → {after}");
    Ok(())
}
