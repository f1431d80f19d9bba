//! Each kind of drift, made by hand: found by `agent plan`, repaired by `agent reconcile`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::vm::Machine;

use crate::Body;
use crate::fixture::{Fixture, expect};

/// dnf, emulated.
const LIMIT: Duration = Duration::from_secs(400);

pub const TRIALS: &[(&str, Body)] = &[
    ("each kind of drift is found by plan and repaired by reconcile, all at once", every_kind),
    ("drift: a package removed", package),
    ("drift: a unit that somebody masked is a conflict, left alone until it is unmasked", masked),
    ("a changed file is repaired without anybody asking", watched),
];

/// What somebody did by hand.
#[derive(Clone)]
pub struct Drift {
    /// For people.
    what: &'static str,
    /// The resource that has drifted, or how its name begins.
    id: &'static str,
    /// How it is done.
    make: &'static str,
    /// A command that succeeds before and after, and not in between.
    right: &'static str,
}

/// In what the kernel and systemd have in their hands.
pub const LIVE: &[Drift] = &[
    Drift {
        what: "a sysctl changed by hand",
        id: "sysctl/net.ipv4.ip_forward",
        make: "sysctl -qw net.ipv4.ip_forward=0",
        right: "[ $(sysctl -n net.ipv4.ip_forward) = 1 ]",
    },
    Drift {
        what: "selinux enforcing again",
        id: "selinux/mode",
        make: "setenforce 1",
        right: "[ $(getenforce) = Permissive ]",
    },
    Drift { what: "swap on again", id: "swap", make: "swapon /swapfile", right: "[ $(wc -l < /proc/swaps) = 1 ]" },
    Drift {
        what: "zram turned on by a drop-in",
        id: "swap",
        make: "mkdir -p /etc/systemd/zram-generator.conf.d
               printf '[zram0]\\nzram-size = 16\\n' > /etc/systemd/zram-generator.conf.d/90-site.conf
               systemctl unmask --quiet swap.target && systemctl daemon-reload && systemctl start dev-zram0.swap",
        right: "! grep -q zram /proc/swaps && ! test -e /run/systemd/generator/dev-zram0.swap",
    },
    Drift {
        what: "the kubelet stopped",
        id: "unit/kubelet.service",
        make: "systemctl stop kubelet",
        right: "systemctl is-active kubelet",
    },
    Drift {
        what: "the kubelet disabled",
        id: "unit/kubelet.service",
        make: "systemctl disable kubelet",
        right: "systemctl is-enabled kubelet",
    },
    Drift {
        what: "the kubelet's drop-in removed",
        id: "kubelet/config",
        make: "rm /etc/systemd/system/kubelet.service.d/50-nodeagent.conf",
        right: "test -s /etc/systemd/system/kubelet.service.d/50-nodeagent.conf && \
                ! systemctl show -P NeedDaemonReload kubelet | grep yes",
    },
];

/// In files that nobody has to be told of.
const FILES: &[Drift] = &[
    Drift {
        what: "a module list without a module",
        id: "modules-load",
        make: "sed -i /overlay/d /etc/modules-load.d/90-nodeagent.conf",
        right: "grep -qx overlay /etc/modules-load.d/90-nodeagent.conf",
    },
    Drift {
        what: "the sysctl file removed",
        id: "sysctl-file",
        make: "rm /etc/sysctl.d/99-zz-nodeagent.conf",
        right: "grep -q ip_forward /etc/sysctl.d/99-zz-nodeagent.conf",
    },
    Drift {
        what: "selinux enforcing at the next boot",
        id: "selinux/mode",
        make: "sed -i s/^SELINUX=.*/SELINUX=enforcing/ /etc/selinux/config",
        right: "grep -qx SELINUX=permissive /etc/selinux/config",
    },
    Drift {
        what: "a repository pointed elsewhere",
        id: "repo/kubernetes",
        make: "sed -i s,^baseurl=.*,baseurl=http://192.0.2.1/, /etc/yum.repos.d/kubernetes.repo",
        right: "grep -q ^baseurl=http://10.0.2.100/kubernetes/1.31/ /etc/yum.repos.d/kubernetes.repo",
    },
    Drift {
        what: "a file edited",
        id: "file//etc/cni/net.d/10-pods.conflist",
        make: "echo '{}' > /etc/cni/net.d/10-pods.conflist",
        right: "grep -q host-local /etc/cni/net.d/10-pods.conflist",
    },
    Drift {
        what: "a file with another mode",
        id: "file//etc/kubernetes/manifests/web.yaml",
        make: "chmod 666 /etc/kubernetes/manifests/web.yaml",
        right: "[ $(stat -c %a /etc/kubernetes/manifests/web.yaml) = 644 ]",
    },
];

fn every_kind(fixture: &Fixture) -> Result<()> {
    drift(&mut fixture.unwatched_node()?, &[LIVE, FILES].concat())
}

/// Alone: kubelet's package goes with it.
fn package(fixture: &Fixture) -> Result<()> {
    let removed = Drift {
        what: "a package removed",
        id: "package",
        make: "dnf -q -y remove iproute-tc",
        right: "rpm -q iproute-tc kubelet && systemctl is-active kubelet",
    };
    drift(&mut fixture.unwatched_node()?, &[removed])
}

/// Makes them all; `agent plan` finds each, and `agent reconcile` repairs each.
pub fn drift(node: &mut Machine, kinds: &[Drift]) -> Result<()> {
    expect(&node.run("agent plan")?, 0, &[]).context("before the drift")?;
    right(node, kinds, "before the drift", true)?;
    let make = kinds.iter().map(|kind| format!("(\n{}\n) || {{ echo \"{}\"; exit 1; }}\n", kind.make, kind.what));
    node.run_within(&make.collect::<String>(), LIMIT)?.ok().context("make it drift")?;
    right(node, kinds, "after the drift", false)?;
    let ids: Vec<&str> = kinds.iter().map(|kind| kind.id).collect();
    expect(&node.run("agent plan")?, 2, &ids).context("agent plan after the drift")?;
    expect(&node.run_within("agent reconcile", LIMIT)?, 0, &ids).context("agent reconcile")?;
    right(node, kinds, "after agent reconcile", true)?;
    expect(&node.run("agent plan")?, 0, &[]).context("agent plan after agent reconcile")
}

/// Asks for all kinds at once: a command of its own for each would take longer than what it asks.
fn right(node: &mut Machine, kinds: &[Drift], when: &str, wanted: bool) -> Result<()> {
    let ask = kinds.iter().map(|kind| format!("(\n{}\n) > /dev/null 2>&1; echo $?\n", kind.right));
    let text = node.run_within(&ask.collect::<String>(), LIMIT)?.ok()?;
    let statuses: Vec<&str> = text.lines().collect();
    ensure!(statuses.len() == kinds.len(), "{when}: {text}");
    for (kind, status) in kinds.iter().zip(statuses) {
        ensure!((status == "0") == wanted, "{when}: {}: {}", kind.what, node.run(kind.right)?.text);
    }
    Ok(())
}

fn masked(fixture: &Fixture) -> Result<()> {
    let mut node = fixture.unwatched_node()?;
    node.ok("systemctl mask --now nodeagent-runtime")?;
    expect(&node.run("agent reconcile")?, 2, &["unit/nodeagent-runtime.service", "systemctl unmask"])?;
    ensure!(node.run("systemctl is-enabled nodeagent-runtime")?.text.trim() == "masked", "it was unmasked");
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
