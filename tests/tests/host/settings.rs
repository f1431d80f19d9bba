//! A node whose config asks for more: a firewall that runs, SELinux enforcing.

use anyhow::{Context, Result, ensure};
use nodeagent_tests::vm::Machine;

use crate::Body;
use crate::fixture::{Fixture, expect, pod_answers};

pub const TRIALS: &[(&str, Body)] = &[
    ("a firewall that runs lets pods through, now and after its restart, and closes what left the config", firewall),
    ("selinux is enforcing when asked, and the pod answers still", selinux),
];

/// Beside the configuration of the first boot.
fn more(node: &mut Machine, config: &str) -> Result<()> {
    node.ok("mkdir -p /etc/nodeagent/config.d")?;
    node.write("/etc/nodeagent/config.d/50-more.toml", config.as_bytes())
}

/// What firewalld itself says, and what it has kept: a network is trusted in both, or in neither.
fn trusts(node: &mut Machine, network: &str, wanted: bool) -> Result<()> {
    let said = node.ok(&format!(
        "f=org.fedoraproject.FirewallD1; busctl call $f /org/fedoraproject/FirewallD1 $f.zone querySource ss trusted {network}
         grep -c 'address=\"{network}\"' /etc/firewalld/zones/trusted.xml || true"
    ))?;
    let expected = if wanted { "b true\n1\n" } else { "b false\n0\n" };
    ensure!(said == expected, "{network}: {said}");
    Ok(())
}

fn firewall(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.unwatched_node()?;
    node.ok("systemctl is-active firewalld").context("firewalld does not run")?;
    let config = |network: &str| format!("[firewall]\nmode = \"manage\"\npod_cidrs = [\"{network}\"]\n");
    more(&mut node, &config("10.244.0.0/24"))?;
    expect(&node.run("agent apply --yes")?, 0, &["firewall"])?;
    trusts(&mut node, "10.244.0.0/24", true)?;
    // somebody takes it out of what runs only
    node.ok("f=org.fedoraproject.FirewallD1
         busctl call $f /org/fedoraproject/FirewallD1 $f.zone removeSource ss trusted 10.244.0.0/24")?;
    expect(&node.run("agent reconcile")?, 0, &["firewall"])?;
    trusts(&mut node, "10.244.0.0/24", true)?;
    more(&mut node, &config("10.245.0.0/16"))?;
    expect(&node.run("agent apply --yes")?, 0, &["firewall"])?;
    trusts(&mut node, "10.244.0.0/24", false)?;
    node.ok("systemctl restart firewalld")?;
    trusts(&mut node, "10.245.0.0/16", true)?;
    expect(&node.run("agent plan")?, 0, &[])?;
    pod_answers(&mut node)
}

fn selinux(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.unwatched_node()?;
    more(&mut node, "[selinux]\nmode = \"enforcing\"\n")?;
    expect(&node.run("agent apply --yes")?, 0, &["selinux/mode"])?;
    let text = node.ok("getenforce; grep ^SELINUX= /etc/selinux/config; ls -Z /etc/selinux/config")?;
    ensure!(text.starts_with("Enforcing\nSELINUX=enforcing\n") && text.contains(":selinux_config_t:"), "{text}");
    expect(&node.run("agent plan")?, 0, &[])?;
    pod_answers(&mut node)
}
