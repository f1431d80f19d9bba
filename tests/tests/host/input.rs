//! Bad input: a clear error on what it concerns, the rest goes on, and a second run completes.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::Body;
use crate::fixture::{Fixture, demo_config, expect};

pub const TRIALS: &[(&str, Body)] = &[
    ("an invalid config is refused by file, key and nearest match, and nothing is touched", invalid),
    (
        "an unreachable repository and a missing module are errors on these; the rest is done, and the next run completes",
        trouble,
    ),
];

const LIMIT: Duration = Duration::from_secs(400);

fn invalid(fixture: &Fixture) -> Result<()> {
    let mut host = fixture.installed(&demo_config()?.replace("kubelet_mode", "kubelet_mod"))?;
    let answer = host.run("touch /run/before; agent apply --yes")?;
    expect(&answer, 10, &["/etc/nodeagent/config.toml", "kubelet_mod", "kubelet_mode"])?;
    ensure!(host.ok("getenforce")? == "Enforcing\n", "it was touched");
    let units =
        host.ok("systemctl start nodeagent-prepare 2>/dev/null; systemctl show -P ExecMainStatus nodeagent-prepare")?;
    ensure!(units == "10\n", "{units}");
    Ok(())
}

fn trouble(fixture: &Fixture) -> Result<()> {
    let bad = demo_config()?.replace("10.0.2.100/kubernetes", "10.0.2.100:81/kubernetes");
    let modules = "\n[kernel]\nmodules = [\"overlay\", \"no_such_module\", \"br_netfilter\"]\n";
    let mut host = fixture.installed(&format!("{bad}{modules}"))?;
    let answer = host.run_within("agent apply --yes", LIMIT)?;
    expect(&answer, 3, &["repo/kubernetes", "10.0.2.100:81", "kernel-module/no_such_module"])?;
    let text = host.ok(
        "getenforce; sysctl -n net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables; rpm -q iproute-tc; rpm -q kubelet || true",
    )?;
    ensure!(text.starts_with("Permissive\n1\n1\niproute-tc-"), "the rest is not done: {text}");
    ensure!(text.contains("kubelet is not installed"), "{text}");
    host.ok("sed -i 's/:81//; s/\"no_such_module\", //' /etc/nodeagent/config.toml")?;
    expect(&host.run_within("agent apply --yes", LIMIT)?, 0, &[])
}
