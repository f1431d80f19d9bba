//! What the checks look at, gathered in one go. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::settings::Settings;
use crate::host::command::Command;
use crate::host::platform::CgroupMode;
use crate::host::systemd::SystemdError;
use crate::host::{Host, Platform, RootError};

/// Questions to programs that answer from memory.
const QUESTION: Duration = Duration::from_secs(10);

/// Where root's programs are.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Programs that kubeadm looks for.
pub const PROGRAMS: [&str; 11] =
    ["conntrack", "crictl", "ebtables", "ethtool", "ip", "iptables", "mount", "nsenter", "socat", "tc", "touch"];

/// Files and directories whose existence says something.
pub const PATHS: [&str; 11] = [
    "/etc/kubernetes/kubelet.conf",
    "/etc/kubernetes/bootstrap-kubelet.conf",
    "/etc/kubernetes/pki/ca.crt",
    "/etc/kubernetes/manifests/kube-apiserver.yaml",
    "/etc/kubernetes/manifests/kube-controller-manager.yaml",
    "/etc/kubernetes/manifests/kube-scheduler.yaml",
    "/etc/kubernetes/manifests/etcd.yaml",
    "/etc/kubernetes/manifests",
    "/var/lib/etcd",
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/sys/fs/selinux/enforce",
];

/// Files whose text says something.
pub const TEXTS: [&str; 16] = [
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv6/conf/default/forwarding",
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/swaps",
    "/proc/cgroups",
    "/proc/self/net/tcp",
    "/proc/self/net/tcp6",
    "/sys/fs/cgroup/cgroup.controllers",
    "/etc/machine-id",
    "/etc/sysconfig/kubelet",
    "/var/lib/kubelet/kubeadm-flags.env",
    "/var/lib/kubelet/config.yaml",
    "/var/lib/kubelet/instance-config.yaml",
];

/// Units whose state says something.
pub const UNITS: [&str; 8] = [
    "kubelet.service",
    "firewalld.service",
    "docker.service",
    "containerd.service",
    "crio.service",
    "nm-cloud-setup.timer",
    "nm-cloud-setup.service",
    "nodeagent-runtime.service",
];

/// A unit, as far as the checks care.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnitFacts {
    /// It exists.
    pub exists: bool,
    /// It starts at boot.
    pub enabled: bool,
    /// It runs.
    pub active: bool,
}

/// What the host says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// This process may do everything.
    pub is_root: bool,
    /// `x86_64`-style release of the running kernel.
    pub kernel: String,
    /// cgroup v1 or v2.
    pub cgroup_v2: bool,
    /// Lines of the kernel's build config; none where it is not installed.
    pub kernel_config: Option<BTreeSet<String>>,
    /// Programs of [`PROGRAMS`] that are there.
    pub programs: BTreeSet<String>,
    /// Of [`PATHS`].
    pub paths: BTreeSet<String>,
    /// Of [`TEXTS`].
    pub texts: BTreeMap<String, String>,
    /// Of [`UNITS`].
    pub units: BTreeMap<String, UnitFacts>,
    /// The host's name, and whether it can be resolved.
    pub hostname: String,
    /// It can be resolved.
    pub resolves: bool,
    /// What `kubelet --version` says.
    pub kubelet_version: Option<String>,
    /// What `kubeadm version` says.
    pub kubeadm_version: Option<String>,
    /// The policy of the FORWARD chain; none where iptables does not say.
    pub forward_policy: Option<String>,
    /// The runtime's socket accepts connections.
    pub cri_answers: bool,
    /// The kernel's clock is kept in step.
    pub clock_synchronized: bool,
    /// Files in /etc/cni/net.d.
    pub cni: Vec<String>,
    /// Free bytes where images and containers are.
    pub free_bytes: Option<u64>,
    /// `HTTPS_PROXY` and the like, and `NO_PROXY`, of this process.
    pub proxy: Option<(String, String)>,
}

/// Why the host could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// A file.
    #[error("look at files")]
    File(#[from] RootError),
    /// A unit.
    #[error("look at units")]
    Systemd(#[from] SystemdError),
}

impl Facts {
    /// Looks at everything.
    pub async fn gather(host: &Host, platform: &Platform, settings: &Settings) -> Result<Facts, FactsError> {
        let mut facts = Facts {
            is_root: nix::unistd::Uid::effective().is_root(),
            kernel: host.kernel.release().to_owned(),
            cgroup_v2: platform.cgroups == CgroupMode::V2,
            cni: host.root.list("/etc/cni/net.d")?.unwrap_or_default(),
            clock_synchronized: host.clock.is_synchronized(),
            proxy: proxy(),
            ..Facts::default()
        };
        for program in PROGRAMS {
            let mut there = false;
            for dir in PATH {
                there = there || host.root.exists(&format!("{dir}/{program}"))?;
            }
            if there {
                facts.programs.insert(program.to_owned());
            }
        }
        for path in PATHS {
            if host.root.exists(path)? {
                facts.paths.insert(path.to_owned());
            }
        }
        for path in TEXTS {
            if let Some(bytes) = host.root.read(path)? {
                facts.texts.insert(path.to_owned(), String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        for name in UNITS {
            let unit = host.systemd.unit(name).await?;
            let known = UnitFacts { exists: unit.exists(), enabled: unit.is_enabled(), active: unit.is_active() };
            facts.units.insert(name.to_owned(), known);
        }
        let config = host.root.read(&format!("/boot/config-{}", facts.kernel))?;
        facts.kernel_config = config.map(|bytes| String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect());
        facts.hostname = match &settings.node.name {
            Some(name) => name.as_str().to_owned(),
            None => host.root.read_text("/proc/sys/kernel/hostname")?.unwrap_or_default().trim().to_owned(),
        };
        facts.ask_programs(host).await;
        let (root, socket) = (host.root.clone(), settings.runtime.socket.as_str().to_owned());
        // on a thread of its own: a full queue would hold everything else
        let asked = tokio::task::spawn_blocking(move || root.accepts_connections(&socket));
        facts.cri_answers = matches!(tokio::time::timeout(QUESTION, asked).await, Ok(Ok(Ok(true))));
        facts.free_bytes = host.root.free_bytes("/var/lib")?;
        Ok(facts)
    }

    async fn ask_programs(&mut self, host: &Host) {
        let ask = async |program: &str, args: &[&str]| {
            let command = Command::query(program, QUESTION).args(args.iter().copied());
            let output = host.commands.run(&command).await.ok()?;
            (output.code == Some(0)).then(|| output.stdout.trim().to_owned())
        };
        self.kubelet_version = ask("/usr/bin/kubelet", &["--version"]).await.map(|text| last_word(&text));
        self.kubeadm_version = ask("/usr/bin/kubeadm", &["version", "-o", "short"]).await.map(|text| last_word(&text));
        self.resolves = ask("/usr/bin/getent", &["ahosts", &self.hostname]).await.is_some();
        let rules = ask("/usr/sbin/iptables", &["-w", "5", "-S", "FORWARD"]).await;
        self.forward_policy = rules.and_then(|rules| rules.lines().find_map(policy));
    }

    /// The text of a file that was looked at.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// A unit that was looked at.
    pub fn unit(&self, name: &str) -> UnitFacts {
        self.units.get(name).copied().unwrap_or_default()
    }

    /// Memory in MB, as kubeadm counts it.
    pub fn memory_mb(&self) -> Option<u64> {
        let line = self.text("/proc/meminfo")?.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib / 1024)
    }

    /// Processors.
    pub fn processors(&self) -> Option<usize> {
        Some(self.text("/proc/cpuinfo")?.lines().filter(|line| line.starts_with("processor")).count())
            .filter(|count| *count > 0)
    }

    /// Devices and files that are swapped to.
    pub fn swaps(&self) -> Vec<&str> {
        let lines = self.text("/proc/swaps").unwrap_or_default().lines().skip(1);
        lines.filter_map(|line| line.split_whitespace().next()).collect()
    }

    /// True when something listens on this TCP port.
    pub fn listens(&self, port: u16) -> bool {
        let wanted = format!(":{port:04X}");
        ["/proc/self/net/tcp", "/proc/self/net/tcp6"].iter().filter_map(|path| self.text(path)).any(|text| {
            text.lines().skip(1).any(|line| {
                let mut fields = line.split_whitespace().skip(1);
                // 0A is TCP_LISTEN
                fields.next().is_some_and(|local| local.ends_with(&wanted)) && fields.nth(1) == Some("0A")
            })
        })
    }

    /// kubeadm has made this host a member of a cluster.
    pub fn joined(&self) -> bool {
        self.paths.contains("/etc/kubernetes/kubelet.conf")
    }
}

/// `Kubernetes v1.36.1`
fn last_word(text: &str) -> String {
    text.split_whitespace().last().unwrap_or_default().to_owned()
}

fn policy(line: &str) -> Option<String> {
    line.strip_prefix("-P FORWARD ").map(|policy| policy.trim().to_owned())
}

fn proxy() -> Option<(String, String)> {
    let first = |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()));
    let proxy = first(&["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"])?;
    Some((proxy, first(&["NO_PROXY", "no_proxy"]).unwrap_or_default()))
}
