//! The RPM as it arrives, and the units in it as systemd reads them.

use anyhow::{Result, ensure};
use nodeagent_tests::vm::Machine;

use crate::Body;
use crate::fixture::{Fixture, expect};

pub const TRIALS: &[(&str, Body)] = &[
    ("systemd has nothing to say about the installed units", verify),
    ("the package alone changes nothing", inert),
    ("a removed package leaves no unit behind", removed),
    ("a run on this machine shows the plan, asks, and makes it a node", here),
];

fn verify(fixture: &Fixture) -> Result<()> {
    units_verified(&mut fixture.node()?)
}

pub fn units_verified(node: &mut Machine) -> Result<()> {
    // it exits with 0 whatever it finds: any word is a finding
    let text = node.ok(
        "systemd-analyze verify --man=no $(rpm -ql nodeagent | grep '^/usr/lib/systemd/system/') kubelet.service 2>&1",
    )?;
    ensure!(text.is_empty(), "{text}");
    let text =
        node.ok("journalctl -b -o cat _PID=1 | grep -iE 'ordering cycle|nodeagent.*(unknown|ignoring)' || true")?;
    ensure!(text.is_empty(), "{text}");
    Ok(())
}

fn inert(fixture: &Fixture) -> Result<()> {
    let mut host = fixture.installed("schema = 1\n")?;
    host.ok("rm -r /etc/nodeagent/config.toml; systemctl start nodeagent-early nodeagent-prepare nodeagent-activate")?;
    let text = host.ok("getenforce; systemctl is-active nodeagent-runtime || true; systemctl is-enabled nodeagent-prepare nodeagent-activate nodeagent-early nodeagent-reconcile.timer")?;
    ensure!(text == "Enforcing\ninactive\nenabled\nenabled\nenabled\nenabled\n", "{text}");
    Ok(())
}

fn removed(fixture: &Fixture) -> Result<()> {
    let mut host = fixture.installed("schema = 1\n")?;
    let text = host.ok("dnf -q -y remove nodeagent >/dev/null; find /etc/systemd /usr/lib/systemd -name '*nodeagent*'; ls /usr/bin/agent /usr/libexec/nodeagent 2>/dev/null || true")?;
    ensure!(text.is_empty(), "{text}");
    Ok(())
}

fn here(fixture: &Fixture) -> Result<()> {
    let base = fixture.base()?;
    let saved =
        nodeagent_tests::vm::Saved::booted(&base.image, &nodeagent_tests::vm::Hardware::default(), &mut |_| {})?;
    let mut host = saved.resume(&base.image, &base.hardware)?;
    let limit = std::time::Duration::from_secs(400);
    let command = "cp /share/target/depot/*/nodeagent/*.rpm /root/
        answer() { echo \"$1\" | /share/tests/run/here --rpm /root/nodeagent-*.rpm --config /share/tests/run/config.toml; }";
    let no = host.run_within(&format!("{command}\nanswer n"), limit)?;
    expect(&no, 0, &["selinux/mode", "nothing was changed"])?;
    ensure!(
        host.ok("getenforce; rpm -q nodeagent || true")?.starts_with("Enforcing\npackage nodeagent is not"),
        "it did not wait for yes"
    );
    let yes = host.run_within(&format!("{command}\nanswer y"), limit)?;
    expect(&yes, 0, &["first boot done"])
}
