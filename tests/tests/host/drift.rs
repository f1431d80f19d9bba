//! Each kind of drift, made by hand: found by `agent plan`, repaired by `agent reconcile`.

use anyhow::{Context, Result};

use crate::Body;
use crate::fixture::{Fixture, expect};

pub const TRIALS: &[(&str, Body)] = &[
    ("drift: a module list without a module", |f| {
        drift(
            f,
            "module",
            "sed -i /overlay/d /etc/modules-load.d/90-nodeagent.conf",
            "grep -qx overlay /etc/modules-load.d/90-nodeagent.conf",
        )
    }),
    ("drift: a sysctl changed by hand", |f| {
        drift(
            f,
            "sysctl/net.ipv4.ip_forward",
            "sysctl -qw net.ipv4.ip_forward=0",
            "[ $(sysctl -n net.ipv4.ip_forward) = 1 ]",
        )
    }),
    ("drift: the sysctl file removed", |f| {
        drift(
            f,
            "sysctl",
            "rm /etc/sysctl.d/99-zz-nodeagent.conf",
            "grep -q ip_forward /etc/sysctl.d/99-zz-nodeagent.conf",
        )
    }),
    ("drift: selinux enforcing again", |f| drift(f, "selinux/mode", "setenforce 1", "[ $(getenforce) = Permissive ]")),
    ("drift: selinux enforcing at the next boot", |f| {
        drift(
            f,
            "selinux/mode",
            "sed -i s/^SELINUX=.*/SELINUX=enforcing/ /etc/selinux/config",
            "grep -qx SELINUX=permissive /etc/selinux/config",
        )
    }),
    ("drift: swap on again", |f| drift(f, "swap", "swapon /swapfile", "[ $(wc -l < /proc/swaps) = 1 ]")),
    ("drift: a repository pointed elsewhere", |f| {
        drift(
            f,
            "repo/kubernetes",
            "sed -i s,^baseurl=.*,baseurl=http://192.0.2.1/, /etc/yum.repos.d/kubernetes.repo",
            "grep -q ^baseurl=http://10.0.2.100/kubernetes/1.31/ /etc/yum.repos.d/kubernetes.repo",
        )
    }),
    ("drift: a package removed", |f| drift(f, "package", "dnf -q -y remove iproute-tc", "rpm -q iproute-tc")),
    ("drift: a file edited", |f| {
        drift(
            f,
            "file//etc/cni/net.d/10-pods.conflist",
            "echo '{}' > /etc/cni/net.d/10-pods.conflist",
            "grep -q host-local /etc/cni/net.d/10-pods.conflist",
        )
    }),
    ("drift: a file with another mode", |f| {
        drift(
            f,
            "file//etc/kubernetes/manifests/web.yaml",
            "chmod 666 /etc/kubernetes/manifests/web.yaml",
            "[ $(stat -c %a /etc/kubernetes/manifests/web.yaml) = 644 ]",
        )
    }),
    ("drift: the kubelet stopped", |f| {
        drift(f, "unit/kubelet.service", "systemctl stop kubelet", "systemctl is-active kubelet")
    }),
    ("drift: the kubelet disabled", |f| {
        drift(f, "unit/kubelet.service", "systemctl disable kubelet", "systemctl is-enabled kubelet")
    }),
    ("drift: a unit that somebody masked is a conflict, left alone until it is unmasked", masked),
    ("drift: the kubelet's drop-in removed", |f| {
        drift(
            f,
            "kubelet/",
            "rm /etc/systemd/system/kubelet.service.d/50-nodeagent.conf",
            "test -s /etc/systemd/system/kubelet.service.d/50-nodeagent.conf && ! systemctl show -P NeedDaemonReload kubelet | grep yes",
        )
    }),
    ("a changed file is repaired without anybody asking", watched),
];

/// `make` is found as `id` and repaired; `repaired` holds before and afterwards, and not in between.
fn drift(fixture: &Fixture, id: &str, make: &str, repaired: &str) -> Result<()> {
    let mut node = fixture.unwatched_node()?;
    expect(&node.run("agent plan")?, 0, &[]).context("before the drift")?;
    expect(&node.run(repaired)?, 0, &[]).context("before the drift")?;
    node.ok(make)?;
    let broken = node.run(repaired)?;
    anyhow::ensure!(broken.status != 0, "{make} has changed nothing");
    expect(&node.run("agent plan")?, 2, &[id]).context("agent plan after the drift")?;
    let reconciled = node.run("agent reconcile")?;
    expect(&reconciled, 0, &[id]).context("agent reconcile")?;
    expect(&node.run(repaired)?, 0, &[]).context("after agent reconcile")?;
    expect(&node.run("agent plan")?, 0, &[]).context("agent plan after agent reconcile")
}

fn masked(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.unwatched_node()?;
    node.ok("systemctl mask --now nodeagent-runtime")?;
    expect(&node.run("agent reconcile")?, 3, &["unit/nodeagent-runtime.service", "systemctl unmask"])?;
    anyhow::ensure!(node.run("systemctl is-enabled nodeagent-runtime")?.text.trim() == "masked", "it was unmasked");
    node.ok("systemctl unmask nodeagent-runtime")?;
    expect(&node.run("agent reconcile")?, 0, &["unit/nodeagent-runtime.service"])?;
    node.ok("systemctl is-active nodeagent-runtime && systemctl is-enabled nodeagent-runtime").map(drop)
}

fn watched(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.node()?;
    node.ok("systemctl is-active nodeagent-reconcile.path nodeagent-reconcile.timer")?;
    node.ok("rm /etc/sysctl.d/99-zz-nodeagent.conf; for _ in $(seq 100); do [ -s /etc/sysctl.d/99-zz-nodeagent.conf ] && exit; sleep 0.3; done; exit 1")
        .context("nobody has repaired it")
        .map(drop)
}
