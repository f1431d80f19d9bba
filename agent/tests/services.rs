//! Clock, name, networks, limits, registries and the join: converge, write nothing again, repair, take back.
// tests may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use bench::{Bench, state_of};
use nodeagent::exit::Exit;
use nodeagent::host::fake::{FakeUnit, Repository};
use nodeagent::host::systemd::UnitFileState;
use nodeagent::reconcile::{Report, ResourceState};

/// No kernel, so that taking back is exact: modules are never unloaded.
const QUIET: &str = "[kernel]\nmodules = []\n[packages]\nsource = \"preinstalled\"\n";

/// Whose kernel has the parameters of bridges without a module.
fn host(units: &[&str]) -> Bench {
    let bench = Bench::new(units);
    for key in ["iptables", "ip6tables"] {
        bench.fake.edit(&format!("/proc/sys/net/bridge/bridge-nf-call-{key}"), "1\n").unwrap();
    }
    bench
}

const SERVICES: &str = r#"
[time]
require_sync = true
[hostname]
name = "worker-1"
[limits]
nofile = 1048576
tasks = 100000
[[registries]]
prefix = "docker.io"
mirrors = ["mirror.example.com:5000"]
[[registries]]
prefix = "lab.example.com"
insecure = true
accept_insecure = true
"#;

#[tokio::test]
async fn each_service_of_the_host_converges_is_repaired_and_is_taken_back() {
    let bench = host(&["chronyd.service"]);
    bench.fake.edit("/proc/sys/kernel/hostname", "localhost\n").unwrap();
    bench.apply(QUIET).await;
    let before = bench.tree();
    let config = format!("{QUIET}{SERVICES}");
    let report = bench.apply(&config).await;
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    assert_eq!(bench.text("/etc/hostname").as_deref(), Some("worker-1\n"));
    assert_eq!(bench.text("/proc/sys/kernel/hostname").unwrap().trim(), "worker-1");
    let drop_in = "/etc/systemd/system/nodeagent-runtime.service.d/60-nodeagent-limits.conf";
    assert!(bench.text(drop_in).unwrap().contains("[Service]\nLimitNOFILE=1048576\nTasksMax=100000\n"));
    let registries = "/etc/containers/registries.conf.d/50-nodeagent.conf";
    assert!(bench.text(registries).unwrap().contains("prefix = \"lab.example.com\""));
    assert!(bench.fake.systemd.get("chronyd.service").unwrap().active);
    bench.writes();
    assert_eq!(bench.apply(&config).await.exit(), Exit::Converged);
    assert_eq!(bench.writes(), Vec::<String>::new());

    for (id, path) in [
        ("hostname", "/etc/hostname"),
        (&format!("file/{drop_in}"), drop_in),
        (&format!("file/{registries}"), registries),
    ] as [(&str, &str); 3]
    {
        bench.fake.edit(path, "drifted\n").unwrap();
        let repaired = bench.reconcile(&config).await;
        assert_eq!(state_of(&repaired, id), Some(ResourceState::Changed), "{id}: {repaired:#?}");
    }
    bench.fake.systemd.set("chronyd.service", FakeUnit::disabled());
    assert_eq!(state_of(&bench.reconcile(&config).await, "time"), Some(ResourceState::Changed));
    bench.fake.clock.synchronized(false);
    assert_eq!(state_of(&bench.reconcile(&config).await, "time"), Some(ResourceState::Waiting));
    bench.fake.clock.synchronized(true);

    let undone = bench.apply(&format!("{QUIET}[reconcile]\nremoved = \"undo\"\n")).await;
    assert_eq!(undone.exit(), Exit::Converged, "{undone:#?}");
    assert_eq!(bench.tree(), before);
}

const NODE: &str = "[node]\nname = \"n1\"\n[kernel]\nmodules = []\n[packages]\nsource = \"preinstalled\"\n\
    [kubernetes]\nversion = \"1.31.4\"\n";

/// A host with what a node of 1.31 has in its image.
fn with_kubernetes() -> Bench {
    let bench = host(&["kubelet.service"]);
    for (name, evr) in [
        ("container-selinux", "2.2-1"),
        ("iproute-tc", "6.1-1"),
        ("kubeadm", "1.31.4-1"),
        ("kubectl", "1.31.4-1"),
        ("kubelet", "1.31.4-1"),
    ] {
        bench.fake.programs.install(name, evr);
    }
    bench
}

#[tokio::test]
async fn networkmanager_is_told_to_leave_pods_alone_where_it_is_and_cloud_setup_is_switched_off() {
    let bench = with_kubernetes();
    let without = bench.apply(NODE).await;
    assert_eq!(state_of(&without, "network/unmanaged"), Some(ResourceState::Converged), "{without:#?}");
    bench.fake.edit("/etc/NetworkManager/NetworkManager.conf", "[main]\n").unwrap();
    bench.fake.systemd.set("NetworkManager.service", FakeUnit::running());
    bench.fake.systemd.set("nm-cloud-setup.timer", FakeUnit::running());
    bench.writes();
    let report = bench.apply(NODE).await;
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    let file = bench.text("/etc/NetworkManager/conf.d/90-nodeagent.conf").unwrap();
    assert!(file.contains("[keyfile]\nunmanaged-devices+=") && file.contains("interface-name:cali*;"), "{file}");
    assert!(bench.writes().contains(&"try-reload NetworkManager.service".to_owned()));
    let timer = bench.fake.systemd.get("nm-cloud-setup.timer").unwrap();
    assert!(!timer.active && timer.state == nodeagent::host::systemd::UnitFileState::Disabled, "{timer:?}");
    assert_eq!(bench.apply(NODE).await.exit(), Exit::Converged);
    assert_eq!(bench.writes(), Vec::<String>::new());
}

fn joining(token: &str) -> String {
    let pin = "0".repeat(64);
    format!(
        "{NODE}[join]\nmethod = \"kubeadm\"\nendpoint = \"10.0.0.1:6443\"\nca_hashes = [\"sha256:{pin}\"]\n\
         token = {{ file = \"{token}\" }}\n"
    )
}

#[tokio::test]
async fn a_node_joins_once_and_its_token_is_in_no_file_that_stays() {
    let bench = with_kubernetes();
    let secret = "abcdef.0123456789abcdef";
    bench.fake.edit("/etc/nodeagent/join.token", &format!("{secret}\n")).unwrap();
    let mode = |bits| {
        use std::os::unix::fs::PermissionsExt;
        let path = bench.dir.path().join("etc/nodeagent/join.token");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(bits)).unwrap();
    };
    let config = joining("/etc/nodeagent/join.token");
    mode(0o644);
    let refused = bench.apply(&config).await;
    let entry = refused.resources.iter().find(|entry| entry.id.as_str() == "join/kubeadm").unwrap();
    assert_eq!(entry.state, ResourceState::Failed);
    assert!(entry.detail.contains("chmod 600"), "{}", entry.detail);
    assert_eq!(state_of(&refused, "unit/kubelet.service"), Some(ResourceState::Skipped), "it waits for the join");

    mode(0o600);
    bench.fake.edit("/etc/nodeagent/join.token", "aaaaaa.bbbbbbbbbbbbbbbb\n").unwrap();
    let wrong = bench.apply(&config).await;
    let entry = wrong.resources.iter().find(|entry| entry.id.as_str() == "join/kubeadm").unwrap();
    assert!(entry.detail.contains("***") && !entry.detail.contains("bbbb"), "{}", entry.detail);

    bench.fake.edit("/etc/nodeagent/join.token", &format!("{secret}\n")).unwrap();
    let joined = bench.apply(&config).await;
    assert_eq!(state_of(&joined, "join/kubeadm"), Some(ResourceState::Changed), "{joined:#?}");
    assert!(bench.fake.systemd.get("kubelet.service").unwrap().active, "the kubelet follows the join");
    assert!(bench.text("/run/nodeagent/kubeadm.yaml").is_none());
    let everywhere = std::process::Command::new("grep").args(["-rl", secret]).arg(bench.dir.path()).output().unwrap();
    let found = String::from_utf8(everywhere.stdout).unwrap();
    assert_eq!(found.lines().count(), 1, "only where the admin put it: {found}");

    let runs = bench.fake.programs.runs().len();
    assert_eq!(bench.apply(&config).await.exit(), Exit::Converged);
    let again = bench.fake.programs.runs()[runs..].iter().filter(|run| run.program.ends_with("kubeadm")).count();
    assert_eq!(again, 0, "a node joins once");
}

fn beginning(rest: &str) -> String {
    NODE.replace("[node]\n", "[node]\nrole = \"control-plane\"\n")
        + &format!("[init]\nmethod = \"kubeadm\"\ncontrol_plane_endpoint = \"api:6443\"\n{rest}")
}

#[tokio::test]
async fn a_cluster_is_begun_once_by_the_kubeadm_that_is_there_and_half_a_one_is_said() {
    let bench = with_kubernetes();
    let key = "ab".repeat(32);
    bench.fake.edit("/etc/nodeagent/certs.key", &format!("{key}\n")).unwrap();
    std::fs::set_permissions(bench.dir.path().join("etc/nodeagent/certs.key"), {
        use std::os::unix::fs::PermissionsExt;
        std::fs::Permissions::from_mode(0o600)
    })
    .unwrap();
    let secret = "certificate_key = { file = \"/etc/nodeagent/certs.key\" }\n";
    let state = |report: &nodeagent::reconcile::Report| {
        let entry = report.resources.iter().find(|entry| entry.id.as_str() == "init/kubeadm").unwrap();
        (entry.state, entry.detail.clone())
    };
    let broken = bench.apply(&beginning(&format!("pod_cidr = \"0.0.0.0/0\"\n{secret}"))).await;
    let (what, detail) = state(&broken);
    assert!(what == ResourceState::Failed && detail.contains("***") && !detail.contains(&key), "{detail}");
    let (what, detail) = state(&bench.apply(&beginning(secret)).await);
    assert!(what == ResourceState::Blocked && detail.contains("did not end"), "{detail}");

    // what `kubeadm reset` does
    for dir in ["manifests", "pki"] {
        std::fs::remove_dir_all(bench.dir.path().join("etc/kubernetes").join(dir)).unwrap();
    }
    std::fs::remove_file(bench.dir.path().join("etc/kubernetes/admin.conf")).unwrap();
    let begun = bench.apply(&beginning(secret)).await;
    assert_eq!(state(&begun).0, ResourceState::Changed, "{begun:#?}");
    assert!(bench.fake.systemd.get("kubelet.service").unwrap().active);
    assert!(bench.text("/run/nodeagent/kubeadm.yaml").is_none());
    assert!(bench.text("/etc/kubernetes/pki/.nodeagent-init-began").is_none());
    let runs = bench.fake.programs.runs().len();
    assert_eq!(bench.apply(&beginning(secret)).await.exit(), Exit::Converged);
    let again = bench.fake.programs.runs()[runs..].iter().filter(|run| run.program.ends_with("kubeadm")).count();
    assert_eq!(again, 0, "a cluster begins once");
}

#[tokio::test]
async fn a_running_firewall_lets_pods_through_and_is_never_reloaded() {
    let bench = host(&[]);
    bench.fake.systemd.set("firewalld.service", FakeUnit::running());
    let config =
        format!("{QUIET}[firewall]\nmode = \"manage\"\npod_cidrs = [\"10.244.0.0/16\"]\nports = [\"4789/udp\"]\n");
    let report = bench.apply(&config).await;
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    let open = [
        "10.244.0.0/16 in zone trusted",
        "10250/tcp in zone public",
        "30000-32767/tcp in zone public",
        "30000-32767/udp in zone public",
        "4789/udp in zone public",
    ];
    assert_eq!(bench.fake.firewall.open(), open);
    assert!(!bench.writes().iter().any(|write| write.contains("firewalld.service")), "neither reloaded nor restarted");
    assert_eq!(bench.apply(&config).await.exit(), Exit::Converged);
    assert_eq!(bench.writes(), Vec::<String>::new());
    bench.fake.firewall.flush();
    assert_eq!(state_of(&bench.reconcile(&config).await, "firewall"), Some(ResourceState::Changed));
    assert_eq!(bench.fake.firewall.open(), open);
    bench.apply(&format!("{QUIET}[reconcile]\nremoved = \"undo\"\n")).await;
    assert_eq!(bench.fake.firewall.open(), Vec::<String>::new());
}

#[tokio::test]
async fn a_firewall_that_does_not_run_gets_zone_files_and_one_that_is_not_wanted_is_switched_off() {
    let bench = host(&["firewalld.service"]);
    bench.fake.edit("/usr/lib/firewalld/zones/trusted.xml", "<zone target=\"ACCEPT\">\n</zone>\n").unwrap();
    bench.fake.edit("/usr/lib/firewalld/zones/public.xml", "<zone>\n  <service name=\"ssh\"/>\n</zone>\n").unwrap();
    bench.apply(QUIET).await;
    let before = bench.tree();
    let config = format!("{QUIET}[firewall]\nmode = \"manage\"\npod_cidrs = [\"10.244.0.0/16\"]\n");
    let report = bench.apply(&config).await;
    assert_eq!(report.exit(), Exit::Converged, "{report:#?}");
    let public = bench.text("/etc/firewalld/zones/public.xml").unwrap();
    assert!(
        public.contains("<service name=\"ssh\"/>") && public.contains("<port port=\"10250\" protocol=\"tcp\"/>"),
        "{public}"
    );
    bench.writes();
    bench.apply(&config).await;
    assert_eq!(bench.writes(), Vec::<String>::new());
    bench.apply(&format!("{QUIET}[reconcile]\nremoved = \"undo\"\n")).await;
    assert_eq!(bench.tree(), before);

    bench.fake.systemd.set("firewalld.service", FakeUnit::running());
    bench.apply(&format!("{QUIET}[firewall]\nmode = \"off\"\n")).await;
    assert!(!bench.fake.systemd.get("firewalld.service").unwrap().active);
}

#[tokio::test]
async fn a_boolean_of_the_policy_is_switched_repaired_and_put_back() {
    let bench = host(&[]);
    bench.fake.edit("/sys/fs/selinux/booleans/container_manage_cgroup", "0 0").unwrap();
    bench.apply(QUIET).await;
    let before = bench.tree();
    let config = format!("{QUIET}[selinux.booleans]\ncontainer_manage_cgroup = true\n");
    assert_eq!(bench.apply(&config).await.exit(), Exit::Converged);
    assert_eq!(bench.text("/sys/fs/selinux/booleans/container_manage_cgroup").as_deref(), Some("1 1"));
    bench.writes();
    bench.apply(&config).await;
    assert_eq!(bench.writes(), Vec::<String>::new());
    bench.fake.edit("/sys/fs/selinux/booleans/container_manage_cgroup", "0 0").unwrap();
    let id = "selinux/boolean.container_manage_cgroup";
    assert_eq!(state_of(&bench.reconcile(&config).await, id), Some(ResourceState::Changed));
    bench.apply(&format!("{QUIET}[reconcile]\nremoved = \"undo\"\n")).await;
    assert_eq!(bench.tree(), before);
}

#[tokio::test]
async fn a_kernel_that_has_loaded_no_policy_is_one_without_selinux() {
    let bench = host(&[]);
    bench.fake.edit("/proc/self/attr/current", "system_u:system_r:unconfined_service_t:s0\0").unwrap();
    assert_eq!(bench.fake.host.kernel.enforcing().unwrap(), Some(true));
    bench.fake.edit("/proc/self/attr/current", "kernel\0").unwrap();
    assert_eq!(bench.fake.host.kernel.enforcing().unwrap(), None);
    bench.fake.edit("/etc/selinux/config", "SELINUX=disabled\nSELINUXTYPE=targeted\n").unwrap();
    let report = bench.apply(QUIET).await;
    assert_eq!(state_of(&report, "selinux/mode"), Some(ResourceState::NeedsReboot), "{report:#?}");
    assert_eq!(state_of(&bench.apply(QUIET).await, "selinux/mode"), Some(ResourceState::Waiting));
}

/// The policy's rules, of which the fake restorecon knows those that end in `(/.*)?` or name a file.
const RULES: &str = "/usr/bin/crun\t--\tsystem_u:object_r:container_runtime_exec_t:s0\n\
    /var/lib/containers(/.*)?\tsystem_u:object_r:container_var_lib_t:s0\n\
    /var/lib/containers/overlay(/.*)?\tsystem_u:object_r:container_ro_file_t:s0\n\
    /var/lib/kubelet(/.*)?\tsystem_u:object_r:container_var_lib_t:s0\n";

#[tokio::test]
async fn the_runtimes_files_are_labelled_repaired_and_put_back() {
    if !nix::unistd::geteuid().is_root() {
        // only root may write the attribute that labels are, where no SELinux gives it a meaning
        return;
    }
    let bench = with_kubernetes();
    let files = "/etc/selinux/targeted/contexts/files";
    let program = "/usr/libexec/nodeagent/nodeagent-runtime";
    bench.fake.edit("/etc/selinux/config", "SELINUX=permissive\nSELINUXTYPE=targeted\n").unwrap();
    bench.fake.edit("/sys/fs/selinux/enforce", "0").unwrap();
    bench.fake.edit(&format!("{files}/file_contexts"), RULES).unwrap();
    bench
        .fake
        .edit("/var/lib/selinux/targeted/active/file_contexts.local", "/srv\tsystem_u:object_r:x_t:s0\n")
        .unwrap();
    bench.fake.edit(program, "").unwrap();
    bench.fake.edit("/var/lib/kubelet/x", "").unwrap();
    bench.apply(QUIET).await;
    let root = &bench.fake.host.root;
    root.set_selinux_label(program, "system_u:object_r:bin_t:s0").unwrap();
    let kind =
        |path: &str| root.selinux_label(path).unwrap().and_then(|label| label.split(':').nth(2).map(str::to_owned));
    let before = bench.tree();

    let report = bench.apply(NODE).await;
    assert_eq!(state_of(&report, "selinux/labels"), Some(ResourceState::Changed), "{report:#?}");
    let snapshots = "/var/lib/nodeagent/containers/images/snapshots";
    for (path, wanted) in [
        (program, "container_runtime_exec_t"),
        ("/var/lib/nodeagent/containers", "container_var_lib_t"),
        (snapshots, "container_ro_file_t"),
        ("/var/lib/nodeagent/containers/images/tmp", "container_ro_file_t"),
        ("/var/lib/kubelet", "container_var_lib_t"),
    ] {
        assert_eq!(kind(path).as_deref(), Some(wanted), "{path}");
    }
    let store = bench.text("/var/lib/selinux/targeted/active/file_contexts.local").unwrap();
    assert!(store.starts_with("/srv\tsystem_u:object_r:x_t:s0\n/usr/libexec/"), "{store}");
    assert_eq!(bench.text(&format!("{files}/file_contexts.local")).unwrap().lines().count(), 5);
    bench.writes();
    bench.apply(NODE).await;
    assert_eq!(bench.writes(), Vec::<String>::new());

    root.set_selinux_label(program, "system_u:object_r:bin_t:s0").unwrap();
    assert_eq!(state_of(&bench.reconcile(NODE).await, "selinux/labels"), Some(ResourceState::Changed));
    assert_eq!(kind(program).as_deref(), Some("container_runtime_exec_t"));
    // a rebuilt policy has only what was in its store
    std::fs::remove_file(bench.dir.path().join(&files[1..]).join("file_contexts.local")).unwrap();
    assert_eq!(state_of(&bench.reconcile(NODE).await, "selinux/labels"), Some(ResourceState::Changed));

    let undone = bench.apply(&format!("{QUIET}[reconcile]\nremoved = \"undo\"\n")).await;
    assert_eq!(undone.exit(), Exit::Converged, "{undone:#?}");
    assert_eq!(kind(program).as_deref(), Some("bin_t"));
    assert_eq!(bench.tree(), before);
}

#[tokio::test]
async fn one_question_to_rpm_is_for_all_resources() {
    let bench = with_kubernetes();
    bench.apply(NODE).await;
    let before = bench.fake.programs.runs().len();
    bench.apply(NODE).await;
    let runs: Vec<String> = bench.fake.programs.runs()[before..].iter().map(|command| command.line()).collect();
    assert_eq!(runs.len(), 1, "{runs:#?}");
    assert!(runs[0].contains("rpm -q") && runs[0].contains("kubelet") && runs[0].contains("iproute-tc"), "{runs:#?}");
}

#[tokio::test]
async fn updates_are_installed_once_and_versions_are_locked_as_they_were_installed() {
    let bench = host(&["kubelet.service"]);
    let lock = "python3-dnf-plugin-versionlock";
    let offer = |all: &[(&str, &str)]| Repository {
        dead: false,
        packages: all.iter().map(|(name, evr)| ((*name).to_owned(), (*evr).to_owned())).collect(),
    };
    let kubernetes = ["kubelet", "kubeadm", "kubectl"].map(|name| (name, "1.31.4-1"));
    bench.fake.programs.repository("kubernetes", offer(&kubernetes));
    let base = [(lock, "4.3-1"), ("container-selinux", "2.2-1"), ("iproute-tc", "6.1-1")];
    bench.fake.programs.repository("updates", offer(&[&base[..], &[("bash", "5.1-2")]].concat()));
    bench.fake.programs.install("bash", "5.1-1");
    let config = NODE.replace("source = \"preinstalled\"", "update = \"all\"\nlock = true");
    let report = bench.apply(&config).await;
    for id in ["package/updates", "package/lock", "package/kubernetes"] {
        assert_eq!(state_of(&report, id), Some(ResourceState::Changed), "{id}: {report:#?}");
    }
    assert_eq!(bench.fake.programs.installed("bash").as_deref(), Some("5.1-2"));
    let list = bench.text("/etc/dnf/plugins/versionlock.list").unwrap();
    assert!(list.contains("\nkubelet-1.31.4-1.*\n"), "{list}");

    bench.fake.programs.repository("updates", offer(&[&base[..], &[("bash", "5.1-3")]].concat()));
    bench.writes();
    assert_eq!(bench.apply(&config).await.exit(), Exit::Converged);
    assert_eq!(bench.writes(), Vec::<String>::new(), "once");
    bench.fake.edit("/etc/dnf/plugins/versionlock.list", "vim-9.*\n").unwrap();
    let repaired = bench.reconcile(&config).await;
    assert_eq!(state_of(&repaired, "package/lock"), Some(ResourceState::Changed), "{repaired:#?}");
    let list = bench.text("/etc/dnf/plugins/versionlock.list").unwrap();
    assert!(list.starts_with("vim-9.*\n") && list.contains("kubelet-1.31.4-1.*\n"), "{list}");
}

#[tokio::test]
async fn a_repair_that_is_given_up_says_who_is_known_to_do_such_things() {
    let bench = Bench::new(&[]);
    let config = "[kernel.sysctl]\n\"net.ipv4.ip_forward\" = 1\n[reconcile]\nmax_repairs_per_hour = 1\n";
    bench.apply(config).await;
    let drift = || bench.fake.edit("/proc/sys/net/ipv4/ip_forward", "0\n").unwrap();
    drift();
    assert_eq!(state_of(&bench.reconcile(config).await, "sysctl/net.ipv4.ip_forward"), Some(ResourceState::Changed));
    drift();
    let fix = |report: &Report| {
        let entry = report.resources.iter().find(|entry| entry.id.as_str() == "sysctl/net.ipv4.ip_forward").unwrap();
        assert_eq!(entry.state, ResourceState::Blocked, "{entry:?}");
        entry.fix.clone().unwrap_or_default()
    };
    let nobody = fix(&bench.reconcile(config).await);
    assert!(nobody.contains("find what else changes it"), "{nobody}");
    bench.fake.systemd.set("tuned.service", FakeUnit::running());
    let tuned = fix(&bench.reconcile(config).await);
    assert!(tuned.contains("tuned.service"), "{tuned}");
}

const RUNTIME: &str = "nodeagent-runtime.service";

#[tokio::test]
async fn a_drop_in_of_others_that_starts_another_runtime_is_a_conflict_that_names_it() {
    let bench = Bench::new(&[]);
    bench.apply(QUIET).await;
    let theirs = "/etc/systemd/system/nodeagent-runtime.service.d/99-site.conf";
    bench.fake.edit(theirs, "[Service]\nExecStart=\nExecStart=/opt/runtime\n").unwrap();
    // the first run has systemd read it, the second one finds who starts what
    bench.apply(QUIET).await;
    let report = bench.apply(QUIET).await;
    let entry = report.resources.iter().find(|entry| entry.id.as_str() == "unit/nodeagent-runtime.service").unwrap();
    assert_eq!(entry.state, ResourceState::Conflict, "{entry:?}");
    assert!(format!("{entry:?}").contains(theirs), "{entry:?}");
}

#[tokio::test]
async fn the_file_of_a_masked_unit_is_not_looked_into() {
    let bench = Bench::new(&[]);
    bench.apply(QUIET).await;
    let directory = bench.dir.path().join("etc/systemd/system");
    std::fs::create_dir_all(&directory).unwrap();
    // as the device that a mask leads to, this is no file that could be read
    std::os::unix::fs::symlink("/usr", directory.join(RUNTIME)).unwrap();
    bench.fake.systemd.set(RUNTIME, FakeUnit { state: UnitFileState::Masked, ..FakeUnit::disabled() });
    let report = bench.apply(QUIET).await;
    assert_eq!(state_of(&report, "unit/nodeagent-runtime.service"), Some(ResourceState::Conflict), "{report:?}");
}
