//! A node whose config asks for more: SELinux enforcing.

use anyhow::{Result, ensure};
use nodeagent_tests::vm::Machine;

use crate::Body;
use crate::fixture::{Fixture, expect, pod_answers};

pub const TRIALS: &[(&str, Body)] = &[("selinux is enforcing when asked, and the pod answers still", selinux)];

/// Beside the configuration of the first boot.
pub fn more(node: &mut Machine, config: &str) -> Result<()> {
    node.ok("mkdir -p /etc/nodeagent/config.d")?;
    node.write("/etc/nodeagent/config.d/50-more.toml", config.as_bytes())
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
