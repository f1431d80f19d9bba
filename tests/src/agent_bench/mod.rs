//! `make bench`: what runs of the agent cost, beside the same steps as shell commands.
//!
//! A host in namespaces of its own: a real systemd, a real database of rpm with what a node needs, and /etc, /usr and /var/lib as
//! layers over the machine's, on its disk. Nothing of it is seen outside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use tempfile::TempDir;

use crate::bench::figures::{Durations, Figure};
use crate::outside::{collect, repository, run};
use crate::place::VENDOR_UNITS;

/// The same steps as the agent's, as people write them down. Says how long was waited for units and dnf.
const BY_HAND: &str = include_str!("by-hand.bash");

/// What the agent is asked to make of the host.
const CONFIG: &str = r#"schema = 1
[node]
role = "standalone"
[kubernetes]
version = "1.31"
kubelet_mode = "agent"
repo_baseurl = "http://127.0.0.1:9/kubernetes/1.31/"
[runtime]
ready_timeout = "20s"
[[file]]
path = "/etc/cni/net.d/10-pods.conflist"
content = "{}\n"
"#;

/// Packages that the node has: their installation would be dnf's time.
const PACKAGES: [&str; 6] = ["container-selinux", "iproute-tc", "kubelet", "kubeadm", "kubectl", "cri-tools"];

/// Notes its calls and answers at once: how often it was started is a figure, how long it takes is its own affair.
const DNF: &str = "#!/bin/sh\necho \"$@\" >> /run/nodeagent-test/dnf\n";

/// What is measured: name, unit, and what is not to be exceeded.
pub const FIGURES: [(&str, &str, Option<f64>); 6] = [
    ("first boot, without waiting for dnf and units", "ms", Some(500.0)),
    ("first boot, with it", "ms", None),
    ("nothing to do, p50", "ms", Some(50.0)),
    ("nothing to do, p95", "ms", None),
    ("nothing to do, peak memory", "MB", Some(12.0)),
    ("nothing to do, dnf started", "times", Some(0.0)),
];

/// One of each.
pub type Values = [f64; FIGURES.len()];

/// With their names, for a report.
pub fn figures(values: Values) -> Vec<Figure> {
    let named =
        |((name, unit, _), value): (&(&str, &'static str, _), f64)| Figure { name: (*name).to_owned(), unit, value };
    FIGURES.iter().zip(values).map(named).collect()
}

/// Runs of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the agent.
    Agent,
    /// By shell commands.
    ByHand,
}

/// Made once per set of namespaces; ends with them.
pub struct Host {
    _disk: TempDir,
}

impl Host {
    /// Prepares it. `bin` has the programs that the RPM ships.
    pub fn new(bin: &Path) -> Result<Host> {
        ensure!(
            fs::read_to_string("/proc/swaps")?.lines().count() < 2,
            "this machine swaps, and its swap would be switched off"
        );
        let disk = tempfile::Builder::new().prefix("nodeagent-bench-").tempdir_in("/var/tmp")?;
        let packages = build_packages(disk.path())?;
        for place in ["/etc", "/usr", "/var/lib"] {
            layer(disk.path(), place)?;
        }
        fs::create_dir_all(VENDOR_UNITS)?;
        put("/etc/os-release", "ID=centos\nID_LIKE=\"rhel fedora\"\nVERSION_ID=9\nPRETTY_NAME=\"CentOS Stream 9\"\n")?;
        put("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
        put("/etc/fstab", "UUID=1 / ext4 defaults 0 1\n")?;
        put("/etc/rpm/macros", "%_dbpath /var/lib/rpm\n")?;
        put("/etc/nodeagent/config.toml", CONFIG)?;
        fs::create_dir_all("/etc/yum.repos.d")?;
        program("/usr/bin/dnf", DNF)?;
        program("/usr/bin/kubelet", "#!/bin/sh\nexec sleep infinity\n")?;
        for (name, folder) in [("agent", "/usr/bin"), ("nodeagent-runtime", NODEAGENT), ("nodeagent-shim", NODEAGENT)] {
            fs::create_dir_all(folder)?;
            let from = bin.join(name);
            fs::copy(&from, Path::new(folder).join(name)).with_context(|| format!("copy {}", from.display()))?;
        }
        let runtime = repository().join("units/system/nodeagent-runtime.service");
        fs::copy(runtime, Path::new(VENDOR_UNITS).join("nodeagent-runtime.service"))?;
        put(
            &format!("{VENDOR_UNITS}/kubelet.service"),
            "[Service]\nExecStart=/usr/bin/kubelet\nRestart=always\n[Install]\nWantedBy=multi-user.target\n",
        )?;
        // services need the first two, and what is enabled hangs on the last
        for target in ["sysinit.target", "basic.target", "multi-user.target"] {
            put(&format!("{VENDOR_UNITS}/{target}"), "[Unit]\nDescription=Reached\n")?;
        }
        let files = packages.iter().map(|file| file.display().to_string());
        let arguments = ["-i", "--justdb", "--nodeps", "--nosignature"].map(str::to_owned).into_iter().chain(files);
        // on Debian it says that there is apt
        run("rpm", arguments)?.ok("rpm -i --justdb")?;
        run("systemctl", ["daemon-reload"])?.silent("systemctl daemon-reload")?;
        put("/etc/nodeagent/by-hand.bash", BY_HAND)?;
        Ok(Host { _disk: disk })
    }

    /// Makes the host a node and looks again `runs` times, in one of the two ways. In the order of [`FIGURES`].
    pub fn measure(&self, way: Way, runs: usize) -> Result<Values> {
        let first = match way {
            Way::Agent => self.first_boot()?,
            Way::ByHand => self.by_hand("first-boot")?,
        };
        let dnf_before = dnf_calls();
        let (mut times, mut peak) = (Durations::default(), 0);
        for _ in 0..runs {
            let mut command = match way {
                Way::Agent => agent(&["reconcile"]),
                Way::ByHand => bash("look"),
            };
            let (time, memory) = watched(&mut command)?;
            times.add(time);
            peak = peak.max(memory);
        }
        Ok([
            first.own,
            first.all,
            times.quantile(0.5),
            times.quantile(0.95),
            peak as f64 / 1024.0,
            (dnf_calls() - dnf_before) as f64,
        ])
    }

    /// The three units of a first boot, one after the other, as systemd would start them.
    fn first_boot(&self) -> Result<FirstBoot> {
        let (mut all, mut apart) = (Duration::ZERO, Duration::ZERO);
        for stage in ["early", "prepare", "activate"] {
            let began = Instant::now();
            let said = collect(&mut agent(&["apply", "--yes", "--json", "--stage", stage]))?;
            all += began.elapsed();
            let text = said.ok(&format!("agent apply --stage {stage}"))?;
            let report = text.find('{').map(|at| &text[at..]).context("no report")?;
            let report: Value =
                serde_json::Deserializer::from_str(report).into_iter().next().context("no report")??;
            for resource in report["resources"].as_array().context("no resources in the report")? {
                let id = resource["id"].as_str().unwrap_or_default();
                // jobs of units and their two seconds of staying up; packages and repositories are dnf's
                if ["unit/", "package/", "repo/"].iter().any(|kind| id.starts_with(kind)) {
                    apart += Duration::from_micros(resource["duration_us"].as_u64().unwrap_or_default());
                }
            }
        }
        run("systemctl", ["is-active", "kubelet.service", "nodeagent-runtime.service"])?.ok("the node does not run")?;
        Ok(FirstBoot { own: milliseconds(all.saturating_sub(apart)), all: milliseconds(all) })
    }

    fn by_hand(&self, what: &str) -> Result<FirstBoot> {
        let began = Instant::now();
        let text = collect(&mut bash(what))?.ok("the shell's first boot")?;
        let all = began.elapsed();
        let waited =
            text.lines().find_map(|line| line.strip_prefix("waited ")).context("it does not say what it waited")?;
        let waited = Duration::from_micros(waited.trim().parse()?);
        Ok(FirstBoot { own: milliseconds(all.saturating_sub(waited)), all: milliseconds(all) })
    }
}

/// Milliseconds.
struct FirstBoot {
    own: f64,
    all: f64,
}

const NODEAGENT: &str = "/usr/libexec/nodeagent";

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/agent");
    command.args(arguments).env_remove("INVOCATION_ID").env_remove("NOTIFY_SOCKET");
    command
}

fn bash(what: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["/etc/nodeagent/by-hand.bash", what]);
    command
}

/// How long it takes, and the largest size of the program itself in KiB. What wait4 reports would begin with our own size, which
/// a child has until it executes its program.
fn watched(command: &mut Command) -> Result<(Duration, u64)> {
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let own = fs::read_link("/proc/self/exe")?;
    let exe = PathBuf::from(format!("/proc/{}/exe", child.id()));
    let mut peak = 0;
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        if fs::read_link(&exe).is_ok_and(|exe| exe != own)
            && let Ok(text) = fs::read_to_string(&status)
            && let Some(size) = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))
        {
            peak = peak.max(size.trim().trim_end_matches("kB").trim().parse().unwrap_or(0));
        }
        pause();
    };
    let time = began.elapsed();
    if !ended.success() {
        bail!("{:?} ended with {ended}", command.get_program());
    }
    Ok((time, peak))
}

// the size of a process that lives for milliseconds is only there to be looked at again and again
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(Duration::from_micros(500));
}

fn dnf_calls() -> usize {
    fs::read_to_string("/run/nodeagent-test/dnf").map_or(0, |text| text.lines().count())
}

/// Writable over what the machine has there.
fn layer(disk: &Path, place: &str) -> Result<()> {
    let name = place.trim_start_matches('/').replace('/', "-");
    let (upper, work) = (disk.join(format!("{name}-upper")), disk.join(format!("{name}-work")));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let units = place == "/etc";
    let options = format!("lowerdir={place},upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), place, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mount a layer over {place}"))?;
    if units {
        // the mount that stood there is beneath the layer now
        let dir = "/etc/systemd/system";
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("mount its units")?;
    }
    Ok(())
}

fn put(path: &str, text: &str) -> Result<()> {
    if let Some(folder) = Path::new(path).parent() {
        fs::create_dir_all(folder)?;
    }
    // a link would be followed to a file that others read too
    let _ = fs::remove_file(path);
    fs::write(path, text).with_context(|| format!("write {path}"))
}

fn program(path: &str, text: &str) -> Result<()> {
    put(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Packages with nothing in them, of names and versions that a node has.
fn build_packages(disk: &Path) -> Result<Vec<PathBuf>> {
    let mut spec =
        "Name: bench\nVersion: 1\nRelease: 1\nSummary: x\nLicense: x\nBuildArch: noarch\n%description\nx\n".to_owned();
    for name in PACKAGES {
        let version = if name.starts_with("kube") { "1.31.1" } else { "1" };
        spec.push_str(&format!(
            "%package -n {name}\nVersion: {version}\nSummary: x\n%description -n {name}\nx\n%files -n {name}\n"
        ));
    }
    let file = disk.join("bench.spec");
    fs::write(&file, spec)?;
    let top = format!("_topdir {}", disk.join("rpm").display());
    let output = collect(Command::new("rpmbuild").args(["-bb", "--quiet", "--define", &top]).arg(&file))?;
    output.ok("rpmbuild (package rpm)")?;
    let folder = disk.join("rpm/RPMS/noarch");
    let files = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    files.map(|entry| Ok(entry?.path())).collect()
}
