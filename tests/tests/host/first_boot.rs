//! What the first boot has made of the host.

use anyhow::{Context, Result, ensure};
use nodeagent_tests::vm::Machine;
use serde_json::Value;

use crate::Body;
use crate::fixture::{Fixture, pod_answers};

pub const TRIALS: &[(&str, Body)] = &[
    ("first boot ends with every resource as it should be", every_resource),
    ("overlay and br_netfilter are effective", modules),
    ("the sysctls are in force", sysctls),
    ("selinux went from enforcing to permissive, now and in its file", selinux),
    ("swap is off", swap),
    ("the repository is valid for dnf and the packages are installed", packages),
    ("the kubelet and runtime units are enabled and active", units),
    ("the pod's web server answers on the pod's address", pod),
    ("a second apply writes nothing", second_apply),
    ("no unit has failed", nothing_failed),
];

fn every_resource(fixture: &Fixture) -> Result<()> {
    all_converged(&mut fixture.node()?)
}

/// By the agent's own word, which the other trials check.
pub fn all_converged(node: &mut Machine) -> Result<()> {
    let text = node.run("agent status --json")?.ok()?;
    let status: Value = serde_json::from_str(&text).context("agent status --json")?;
    ensure!(status["first_boot_done"] == true, "{text}");
    let resources = status["resources"].as_array().context("no resources")?;
    for kind in [
        "kernel-module/overlay",
        "sysctl/net.ipv4.ip_forward",
        "selinux/mode",
        "repo/kubernetes",
        "unit/kubelet.service",
        "kubelet/config",
    ] {
        ensure!(resources.iter().any(|resource| resource["id"] == kind), "{kind} is missing:\n{text}");
    }
    for resource in resources {
        ensure!(matches!(resource["state"].as_str(), Some("converged" | "changed")), "{resource}");
    }
    Ok(())
}

fn modules(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.node()?;
    node.ok("grep -qw overlay /proc/filesystems && test -e /proc/sys/net/bridge/bridge-nf-call-iptables")?;
    let text = node.ok("cat /etc/modules-load.d/90-nodeagent.conf")?;
    ensure!(text.lines().any(|l| l == "overlay") && text.lines().any(|l| l == "br_netfilter"), "{text}");
    Ok(())
}

fn sysctls(fixture: &Fixture) -> Result<()> {
    let keys = "net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables net.bridge.bridge-nf-call-ip6tables";
    let text = fixture.node()?.ok(&format!("sysctl -n {keys}"))?;
    ensure!(text == "1\n1\n1\n", "{text}");
    Ok(())
}

fn selinux(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.node()?;
    let text = node.ok("getenforce; grep ^SELINUX= /etc/selinux/config; ls -Z /etc/selinux/config")?;
    ensure!(text.starts_with("Permissive\nSELINUX=permissive\n"), "{text}");
    ensure!(text.contains(":selinux_config_t:"), "the file has lost its label: {text}");
    // the image boots enforcing: it was the agent who changed it
    ensure!(node.ok("journalctl -b -k -o cat")?.contains("enforcing=1"), "the host was not enforcing before");
    Ok(())
}

fn swap(fixture: &Fixture) -> Result<()> {
    let text = fixture.node()?.ok("tail -n +2 /proc/swaps; grep -v '^#' /etc/fstab | grep -w swap || true")?;
    ensure!(text.is_empty(), "{text}");
    Ok(())
}

fn packages(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.node()?;
    let text = node.ok("dnf -q --disablerepo='*' --enablerepo=kubernetes repoquery --disableexcludes=all kubelet")?;
    ensure!(text.contains("kubelet-0:1.31.1"), "{text}");
    let text = node.ok("rpm -q kubelet nodeagent container-selinux iproute-tc kubernetes-cni && rpm -V nodeagent")?;
    ensure!(text.contains("kubelet-1.31.1"), "not the newest patch: {text}");
    Ok(())
}

/// Asked over D-Bus, as systemd itself sees it.
fn units(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.node()?;
    for unit in ["kubelet.service", "nodeagent-runtime.service"] {
        let state = node.ok(&format!(
            "m='org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager'
             busctl call $m GetUnitFileState s {unit}
             path=$(busctl call $m GetUnit s {unit} | cut -d'\"' -f2)
             busctl get-property org.freedesktop.systemd1 $path org.freedesktop.systemd1.Unit ActiveState"
        ))?;
        ensure!(state == "s \"enabled\"\ns \"active\"\n", "{unit}: {state}");
    }
    let healthz = node.ok(
        "exec 3<>/dev/tcp/127.0.0.1/10248 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && timeout 20 cat <&3",
    )?;
    ensure!(healthz.contains(" 200 ") && healthz.ends_with("ok"), "{healthz}");
    Ok(())
}

fn pod(fixture: &Fixture) -> Result<()> {
    pod_answers(&mut fixture.node()?)
}

/// By the files' change times: nothing on the disk is written, apart from logs. Whoever reads rpm's database as root, `rpm -q`
/// too, touches two files of SQLite beside it.
fn second_apply(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.unwatched_node()?;
    let text = node.ok(
        "touch /run/before; sleep 0.1
         agent apply --yes || exit
         find / -xdev \\( -path /var/log -o -path /tmp -o -path /var/tmp \\) -prune -o -cnewer /run/before ! -type d -print",
    )?;
    let written: Vec<&str> =
        text.lines().filter(|line| line.starts_with('/') && !line.starts_with("/var/lib/rpm/rpmdb.sqlite-")).collect();
    ensure!(written.is_empty(), "written: {written:?}");
    Ok(())
}

fn nothing_failed(fixture: &Fixture) -> Result<()> {
    no_failed_unit(&mut fixture.node()?)
}

pub fn no_failed_unit(node: &mut Machine) -> Result<()> {
    let text = node.ok("systemctl --failed --no-legend --plain")?;
    ensure!(text.is_empty(), "{text}");
    Ok(())
}
