//! Every resource on the fake host: converge, a second run that writes nothing, drift and repair, undo.

// a test may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nodeagent::config;
use nodeagent::host::dnf::PackageQuery;
use nodeagent::host::fake::{FakeHost, FakeUnit, Repository};
use nodeagent::host::systemd::{Systemd, UnitFileState};
use nodeagent::plan::{Change, Notify, Outcome, Reason, ResourceId, Undo};
use nodeagent::resource::{PlanContext, Resource, registry};
use proptest::prelude::*;
use tempfile::TempDir;

const CONFIG: &str = r##"
schema = 1
[node]
role = "standalone"
[kernel]
modules = ["overlay", "br_netfilter"]
[kernel.sysctl]
"net.ipv4.ip_forward" = 1
"net.bridge.bridge-nf-call-iptables" = 1
"fs.inotify.max_user_instances" = { min = 8192 }
"net.ipv4.no_such_thing" = { value = 1, optional = true }
[packages]
install = ["socat"]
[kubernetes]
version = "1.36"
kubelet_mode = "agent"
[[file]]
path = "/etc/example/one.conf"
content = "one\n"
mode = "0640"
[[file]]
path = "/etc/hosts"
block = "#"
content = "10.0.0.9 api\n"
[[unit]]
name = "chronyd.service"
enabled = true
state = "running"
[[unit]]
name = "old.service"
masked = true
"##;

/// A fake host with the resources of a config.
struct Node {
    dir: TempDir,
    fake: FakeHost,
    resources: Vec<Box<dyn Resource>>,
    applied: BTreeMap<ResourceId, serde_json::Value>,
    undo: Vec<Undo>,
    _socket: UnixListener,
}

impl Node {
    fn new(config: &str) -> Node {
        let dir = TempDir::new().unwrap();
        let fake = FakeHost::new(dir.path()).unwrap();
        for unit in ["chronyd.service", "kubelet.service", "nodeagent-runtime.service"] {
            fake.systemd.set(unit, FakeUnit::disabled());
        }
        fake.systemd.set("old.service", FakeUnit::running());
        let packages = [
            ("socat", "1.7-1"),
            ("container-selinux", "2-1"),
            ("iproute-tc", "6-1"),
            ("kubelet", "1.36.2-1"),
            ("kubeadm", "1.36.2-1"),
            ("kubectl", "1.36.2-1"),
        ];
        let packages = packages.map(|(name, evr)| (name.to_owned(), evr.to_owned())).into();
        fake.programs.repository("base", Repository { dead: false, packages });
        std::fs::create_dir_all(dir.path().join("run/nodeagent")).unwrap();
        let socket = UnixListener::bind(dir.path().join("run/nodeagent/cri.sock")).unwrap();
        fake.edit("/etc/hosts", "127.0.0.1 localhost\n").unwrap();
        fake.edit("/proc/swaps", "Filename Type Size Used Priority\n/dev/vda2 partition 1000 0 -2\n").unwrap();
        let settings = config::from_text(config).unwrap();
        let resources = registry(&settings, &fake.platform()).unwrap();
        Node { dir, fake, resources, applied: BTreeMap::new(), undo: Vec::new(), _socket: socket }
    }

    /// Every resource's outcome, in an order in which needs come first.
    async fn plan(&self) -> Vec<(ResourceId, Outcome)> {
        let mut outcomes: Vec<(ResourceId, Outcome)> = Vec::new();
        let mut pending = BTreeSet::new();
        for resource in self.in_order() {
            let platform = self.fake.platform();
            let packages = PackageQuery::about(resource.packages());
            let context = PlanContext {
                last_applied: self.applied.get(resource.id()),
                pending: &pending,
                platform: &platform,
                packages: &packages,
            };
            let outcome = resource.plan(&self.fake.host, &context).await.unwrap();
            if outcome.change().is_some() {
                pending.insert(resource.id().clone());
            }
            outcomes.push((resource.id().clone(), outcome));
        }
        assert_eq!(self.fake.writes(), [""; 0], "planning wrote");
        outcomes
    }

    fn in_order(&self) -> Vec<&dyn Resource> {
        let ids: BTreeSet<&ResourceId> = self.resources.iter().map(|resource| resource.id()).collect();
        let mut done: BTreeSet<ResourceId> = BTreeSet::new();
        let mut order: Vec<&dyn Resource> = Vec::new();
        while order.len() < self.resources.len() {
            let before = order.len();
            for resource in &self.resources {
                let ready = resource.needs().iter().all(|need| done.contains(need) || !ids.contains(need));
                if ready && done.insert(resource.id().clone()) {
                    order.push(resource.as_ref());
                }
            }
            assert!(order.len() > before, "needs go round in a circle");
        }
        order
    }

    async fn changes(&self) -> Vec<Change> {
        self.plan().await.into_iter().filter_map(|(_, outcome)| outcome.change().cloned()).collect()
    }

    /// Applies what is planned, as the engine does; the names of what changed.
    async fn apply(&mut self) -> Vec<String> {
        let changes = self.changes().await;
        let mut restarts = BTreeSet::new();
        for change in &changes {
            for action in &change.actions {
                let undo = self.fake.host.capture(action).await.unwrap();
                let executed = self.fake.host.execute(action).await.unwrap_or_else(|e| panic!("{action:?}: {e:?}"));
                self.undo.push(executed.undo.unwrap_or(undo));
            }
            for notify in &change.notify {
                match notify {
                    Notify::DaemonReload => self.fake.systemd.daemon_reload().await.unwrap(),
                    Notify::RestartUnit(unit) => drop(restarts.insert(unit.clone())),
                    _ => {}
                }
            }
        }
        for resource in &self.resources {
            self.applied.insert(resource.id().clone(), resource.applied());
        }
        self.fake.writes();
        changes.into_iter().map(|change| change.id.to_string()).collect()
    }

    async fn outcome(&self, id: &str) -> Outcome {
        let plan = self.plan().await;
        plan.into_iter().find(|(found, _)| found.as_str() == id).unwrap_or_else(|| panic!("no {id}")).1
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(path)).unwrap()
    }

    /// Files, links and directories, without what the kernel and the test itself keep.
    fn snapshot(&self) -> BTreeMap<PathBuf, (String, u32)> {
        let mut all = BTreeMap::new();
        collect(self.dir.path(), &mut all);
        // modules stay loaded: that is no undo's business
        all.retain(|path, _| {
            let path = path.strip_prefix(self.dir.path()).unwrap();
            !path.starts_with("sys/module")
                && !path.starts_with("proc/sys/net/bridge")
                && path != Path::new("proc/filesystems")
        });
        all
    }
}

fn collect(dir: &Path, all: &mut BTreeMap<PathBuf, (String, u32)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_symlink() {
            all.insert(path.clone(), (format!("-> {}", path.read_link().unwrap().display()), mode));
        } else if metadata.is_dir() {
            all.insert(path.clone(), ("directory".into(), mode));
            collect(&path, all);
        } else if metadata.is_file() {
            all.insert(path.clone(), (std::fs::read_to_string(&path).unwrap(), mode));
        }
    }
}

#[tokio::test]
async fn a_fresh_host_converges_and_a_second_run_writes_nothing() {
    let mut node = Node::new(CONFIG);
    let changed = node.apply().await;
    for id in [
        "modules-load",
        "kernel-module/overlay",
        "sysctl-file",
        "sysctl/net.bridge.bridge-nf-call-iptables",
        "selinux/mode",
        "swap",
        "repo/kubernetes",
        "package/host",
        "package/kubernetes",
        "kubelet/config",
        "file//etc/example/one.conf",
        "file//etc/crictl.yaml",
        "file//etc/hosts",
        "unit/chronyd.service",
        "unit/kubelet.service",
        "unit/nodeagent-runtime.service",
        "unit/old.service",
    ] {
        // the parameter is right as soon as its module is loaded, and is still planned for
        assert!(changed.iter().any(|found| found == id), "{id} not in {changed:?}");
    }
    assert_eq!(node.read("proc/sys/net/ipv4/ip_forward"), "1");
    assert_eq!(node.read("proc/sys/fs/inotify/max_user_instances"), "8192");
    assert_eq!(node.read("sys/fs/selinux/enforce"), "0");
    assert!(
        node.read("etc/selinux/config").contains("SELINUX=permissive\nSELINUXTYPE")
            || node.read("etc/selinux/config").contains("SELINUX=permissive\n#")
    );
    assert!(node.read("etc/hosts").starts_with("127.0.0.1 localhost\n# begin of nodeagent's block"), "the rest stays");
    assert!(node.fake.systemd.get("kubelet.service").unwrap().active);
    assert_eq!(node.fake.systemd.get("old.service").unwrap().state, UnitFileState::Masked);
    assert_eq!(node.changes().await, []);
    // no package manager in a run that finds nothing to do: one query for each set of packages, and nothing else
    let before = node.fake.programs.runs().len();
    node.changes().await;
    let programs: Vec<String> = node.fake.programs.runs()[before..].iter().map(|run| run.program.clone()).collect();
    assert_eq!(programs, ["/usr/bin/rpm", "/usr/bin/rpm"]);
}

#[tokio::test]
async fn each_kind_of_drift_is_found_and_repaired_and_then_quiet() {
    type Drift = fn(&Node);
    let drifts: [(&str, Drift); 13] = [
        ("sysctl/net.ipv4.ip_forward", |n| n.fake.edit("/proc/sys/net/ipv4/ip_forward", "0\n").unwrap()),
        ("sysctl/fs.inotify.max_user_instances", |n| {
            n.fake.edit("/proc/sys/fs/inotify/max_user_instances", "128\n").unwrap()
        }),
        ("sysctl-file", |n| n.fake.edit("/etc/sysctl.d/99-zz-nodeagent.conf", "net.ipv4.ip_forward = 0\n").unwrap()),
        ("modules-load", |n| std::fs::remove_file(n.dir.path().join("etc/modules-load.d/90-nodeagent.conf")).unwrap()),
        ("selinux/mode", |n| n.fake.edit("/sys/fs/selinux/enforce", "1").unwrap()),
        ("swap", |n| {
            n.fake.edit("/proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 9 0 100\n").unwrap()
        }),
        ("repo/kubernetes", |n| n.fake.edit("/etc/yum.repos.d/kubernetes.repo", "[kubernetes]\nenabled=0\n").unwrap()),
        ("package/host", |n| n.fake.programs.remove("socat")),
        ("file//etc/example/one.conf", |n| {
            let path = n.dir.path().join("etc/example/one.conf");
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
        }),
        ("file//etc/hosts", |n| n.fake.edit("/etc/hosts", "127.0.0.1 localhost\n").unwrap()),
        ("unit/chronyd.service", |n| n.fake.systemd.set("chronyd.service", FakeUnit::disabled())),
        ("unit/old.service", |n| n.fake.systemd.set("old.service", FakeUnit::running())),
        ("kubelet/config", |n| n.fake.edit("/var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\n").unwrap()),
    ];
    let mut node = Node::new(CONFIG);
    node.apply().await;
    for (id, drift) in drifts {
        drift(&node);
        let changes = node.changes().await;
        let found: Vec<&str> = changes.iter().map(|change| change.id.as_str()).collect();
        assert_eq!(found, [id]);
        assert!(matches!(changes[0].reason, Reason::Drifted { .. }), "{id}: {:?}", changes[0].reason);
        assert_eq!(node.apply().await, [id]);
        assert_eq!(node.changes().await, [], "after {id}");
    }
}

#[tokio::test]
async fn what_was_applied_is_taken_back_to_the_byte() {
    let mut node = Node::new(CONFIG);
    let before = node.snapshot();
    let units = |node: &Node| {
        ["chronyd.service", "kubelet.service", "nodeagent-runtime.service", "old.service"].map(|name| {
            let unit = node.fake.systemd.get(name).unwrap();
            (unit.state, unit.active)
        })
    };
    let before_units = units(&node);
    node.apply().await;
    for undo in node.undo.drain(..).rev().collect::<Vec<_>>() {
        node.fake.host.undo(&undo).await.unwrap_or_else(|e| panic!("{undo:?}: {e:?}"));
    }
    let mut after = node.snapshot();
    // what the kernel shows of swap is no file that we write: only the device counts
    let mut before = before;
    for snapshot in [&mut before, &mut after] {
        let swaps = snapshot.get_mut(&node.dir.path().join("proc/swaps")).unwrap();
        swaps.0 = swaps.0.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    }
    assert_eq!(
        after.iter().map(|(path, what)| (path, &what.1)).collect::<Vec<_>>(),
        before.iter().map(|(path, what)| (path, &what.1)).collect::<Vec<_>>()
    );
    for (path, (text, _)) in &before {
        assert_eq!(after[path].0.trim_end(), text.trim_end(), "{}", path.display());
    }
    assert_eq!(units(&node), before_units);
    assert_eq!(node.fake.programs.installed("socat"), None);
}

#[tokio::test]
async fn a_kubelet_under_kubeadm_waits_for_its_join() {
    let config = CONFIG
        .replace("kubelet_mode = \"agent\"", "kubelet_mode = \"kubeadm\"")
        .replace("\"standalone\"", "\"worker\"");
    let mut node = Node::new(&config);
    node.apply().await;
    let unit = node.fake.systemd.get("kubelet.service").unwrap();
    assert_eq!((unit.state, unit.active), (UnitFileState::Enabled, false));
    let outcome = node.outcome("unit/kubelet.service").await;
    assert!(matches!(&outcome, Outcome::Waiting { reason } if reason.starts_with("waiting for join")), "{outcome:?}");
    node.fake.edit("/etc/kubernetes/kubelet.conf", "kind: Config\n").unwrap();
    assert_eq!(node.apply().await, ["unit/kubelet.service"]);
    assert!(node.fake.systemd.get("kubelet.service").unwrap().active);
}

#[tokio::test]
async fn what_stands_in_the_way_is_said_on_that_resource_and_the_rest_goes_on() {
    let mut node = Node::new(&CONFIG.replace("\"br_netfilter\"", "\"br_netfilter\", \"nosuch\""));
    node.fake.edit("/etc/modprobe.d/cis.conf", "install overlay /bin/true\n").unwrap();
    node.fake.edit("/etc/yum.repos.d/old.repo", "[k]\nbaseurl=https://packages.cloud.google.com/yum/x\n").unwrap();
    node.fake.edit("/etc/sysctl.d/99-zzz.conf", "net.ipv4.ip_forward = 0\n").unwrap();
    let blocked = |outcome: Outcome, word: &str| match outcome {
        Outcome::Blocked { reason, fix: Some(_) } => assert!(reason.contains(word), "{reason}"),
        other => panic!("{word}: {other:?}"),
    };
    blocked(node.outcome("kernel-module/overlay").await, "/etc/modprobe.d/cis.conf");
    blocked(node.outcome("kernel-module/nosuch").await, "5.14.0-503.el9.x86_64");
    blocked(node.outcome("repositories").await, "/etc/yum.repos.d/old.repo");
    let changed = node.apply().await;
    assert!(changed.iter().any(|id| id == "kernel-module/br_netfilter"), "{changed:?}");
    let Outcome::Conflict { reason } = node.outcome("sysctl/net.ipv4.ip_forward").await else { panic!() };
    assert!(reason.contains("/etc/sysctl.d/99-zzz.conf"), "{reason}");
}

#[tokio::test]
async fn a_repository_that_does_not_answer_is_named_in_the_error() {
    let node = Node::new(CONFIG);
    node.fake.programs.repository("kubernetes", Repository { dead: true, ..Repository::default() });
    let changes = node.changes().await;
    let change = changes.iter().find(|change| change.id.as_str() == "package/kubernetes").unwrap();
    let error = node.fake.host.execute(&change.actions[0]).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("repository kubernetes cannot be used"), "{source}");
}

#[tokio::test]
async fn a_runtime_that_is_active_and_deaf_is_restarted() {
    let mut node = Node::new(CONFIG);
    node.apply().await;
    std::fs::remove_file(node.dir.path().join("run/nodeagent/cri.sock")).unwrap();
    assert_eq!(node.apply().await, ["unit/nodeagent-runtime.service"]);
    assert_eq!(node.fake.systemd.get("nodeagent-runtime.service").unwrap().starts, 2);
}

#[tokio::test]
async fn systemd_that_does_not_answer_fails_its_own_resources_only() {
    let node = Node::new(CONFIG);
    node.fake.systemd.die(true);
    let platform = node.fake.platform();
    let pending = BTreeSet::new();
    let mut failed = Vec::new();
    for resource in &node.resources {
        let packages = PackageQuery::about(resource.packages());
        let context = PlanContext { last_applied: None, pending: &pending, platform: &platform, packages: &packages };
        if resource.plan(&node.fake.host, &context).await.is_err() {
            failed.push(resource.id().kind().to_owned());
        }
    }
    failed.dedup();
    assert_eq!(failed, ["swap", "unit"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever was there, and whatever is wanted: apply makes it so, again writes nothing, undo brings back what was.
    #[test]
    fn files_are_applied_and_undone_exactly(
        was in proptest::option::of(("[a-z\\n]{0,20}", proptest::sample::select(vec![0o600u32, 0o644, 0o755]))),
        linked in any::<bool>(),
        content in "[ -~\\n]{0,40}",
        mode in proptest::sample::select(vec!["0600", "0644", "0755"]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // a variable it is not
            let literal = content.replace("${", "$${");
            let table = format!("schema = 1\n[swap]\npolicy = \"keep\"\n[[file]]\npath = \"/etc/deep/er/file\"\ncontent = {}\nmode = \"{mode}\"\n", toml::Value::from(literal.as_str()));
            let mut node = Node::new(&table);
            let file = ResourceId::new("file", "/etc/deep/er/file");
            node.resources.retain(|resource| *resource.id() == file);
            if let Some((text, mode)) = &was {
                let path = if linked { "etc/elsewhere" } else { "etc/deep/er/file" };
                node.fake.edit(&format!("/{path}"), text).unwrap();
                std::fs::set_permissions(node.dir.path().join(path), std::fs::Permissions::from_mode(*mode)).unwrap();
            }
            if linked {
                std::fs::create_dir_all(node.dir.path().join("etc/deep/er")).unwrap();
                std::os::unix::fs::symlink("../../elsewhere", node.dir.path().join("etc/deep/er/file")).unwrap();
            }
            let before = node.snapshot();
            node.apply().await;
            prop_assert_eq!(node.read("etc/deep/er/file"), content);
            prop_assert_eq!(node.changes().await, vec![]);
            for undo in node.undo.drain(..).rev().collect::<Vec<_>>() {
                node.fake.host.undo(&undo).await.unwrap();
                // twice is once: a crash in the middle of an undo repeats it
                node.fake.host.undo(&undo).await.unwrap();
            }
            prop_assert_eq!(node.snapshot(), before);
            Ok(())
        })?;
    }
}
