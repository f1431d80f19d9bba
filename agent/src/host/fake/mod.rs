//! A small host for tests: a directory with the files of a fresh EL 9, and little implementations of what is no file.
//!
//! Nothing here is scripted. Loading a module makes its files appear, dnf installs from a map, a unit that is started is
//! active, and what is written by the code under test is what it reads back.

mod firewall;
mod programs;
mod units;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use nix::errno::Errno;

use super::clock::Clock;
use super::kernel::{Kernel, SwapCalls};
use super::ledger::Ledger;
use super::platform::Platform;
use super::root::Root;
use super::{Host, Mode};
pub use firewall::FakeFirewall;
pub use programs::{FakePrograms, Repository};
pub use units::{FakeSystemd, FakeUnit};

/// The kernel that the fake runs.
pub const KERNEL: &str = "5.14.0-503.el9.x86_64";

/// What a fresh host holds. `/proc/sys` has no bridge parameters: their module is not loaded.
const FILES: [(&str, &str); 24] = [
    (
        "etc/os-release",
        "NAME=\"CentOS Stream\"\nID=\"centos\"\nID_LIKE=\"rhel fedora\"\nVERSION_ID=\"9\"\nPRETTY_NAME=\"CentOS Stream 9\"\n",
    ),
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    ("etc/hostname", "node1\n"),
    (
        "etc/selinux/config",
        "# This file controls the state of SELinux on the system.\nSELINUX=enforcing\n# SELINUXTYPE= can take one of these three values:\nSELINUXTYPE=targeted\n",
    ),
    ("etc/fstab", "/dev/vda1 / xfs defaults 0 0\n/dev/vda2 none swap defaults 0 0\n"),
    ("etc/sysctl.conf", "# nothing\n"),
    ("usr/lib/sysctl.d/50-default.conf", "kernel.sysrq = 16\n-net.ipv4.conf.all.promote_secondaries = 1\n"),
    ("usr/lib/systemd/libsystemd-shared-252.so", ""),
    ("usr/lib/systemd/system/.keep", ""),
    ("etc/systemd/system/.keep", ""),
    ("proc/sys/kernel/osrelease", "5.14.0-503.el9.x86_64\n"),
    ("proc/sys/kernel/modules_disabled", "0\n"),
    ("proc/sys/kernel/sysrq", "16\n"),
    ("proc/sys/kernel/panic", "0\n"),
    ("proc/sys/net/ipv4/ip_forward", "0\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("proc/sys/fs/inotify/max_user_instances", "128\n"),
    ("proc/sys/vm/overcommit_memory", "0\n"),
    ("proc/filesystems", "nodev\tproc\n\text4\n"),
    ("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet\n"),
    ("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"),
    ("sys/fs/selinux/enforce", "1"),
    ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
    ("run/systemd/system/.keep", ""),
];

const MODULES: &str = "kernel/fs/overlayfs/overlay.ko.xz:\n\
    kernel/net/bridge/br_netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz\n\
    kernel/net/bridge/bridge.ko.xz:\n\
    kernel/net/netfilter/ipvs/ip_vs.ko.xz:\n\
    kernel/drivers/net/dummy.ko.xz:\n";

/// A host and the handles that a test turns.
pub struct FakeHost {
    /// What the code under test gets.
    pub host: Host,
    /// Its units.
    pub systemd: Arc<FakeSystemd>,
    /// Its firewall.
    pub firewall: Arc<FakeFirewall>,
    /// Its packages and repositories.
    pub programs: Arc<FakePrograms>,
    /// Its clock.
    pub clock: Arc<FakeClock>,
}

impl FakeHost {
    /// A fresh EL 9 in this directory, which must exist; files that are there already are kept.
    pub fn new(dir: &Path) -> std::io::Result<FakeHost> {
        for (path, text) in FILES {
            seed(&dir.join(path), text)?;
        }
        seed(&dir.join(format!("lib/modules/{KERNEL}/modules.dep")), MODULES)?;
        seed(&dir.join(format!("lib/modules/{KERNEL}/modules.builtin")), "kernel/net/netfilter/nf_conntrack.ko\n")?;
        let link = dir.join("etc/sysconfig/selinux");
        if !link.is_symlink() {
            seed(&dir.join("etc/sysconfig/.keep"), "")?;
            std::os::unix::fs::symlink("../selinux/config", link)?;
        }
        let ledger = Ledger::default();
        let root = Root::open(dir, false, ledger.clone()).map_err(std::io::Error::other)?;
        let programs = Arc::new(FakePrograms::new(root.clone(), ledger.clone()));
        let systemd = Arc::new(FakeSystemd::new(root.clone(), ledger.clone()));
        let clock = Arc::new(FakeClock::default());
        let firewall = Arc::new(FakeFirewall::new(ledger.clone()));
        let swap = Arc::new(FakeSwap { dir: dir.to_owned() });
        let host = Host {
            kernel: Kernel::new(root.clone(), programs.clone(), swap, KERNEL),
            systemd: systemd.clone(),
            firewall: firewall.clone(),
            commands: programs.clone(),
            clock: clock.clone(),
            mode: Mode::Live,
            inside_unit: false,
            root,
            ledger,
        };
        Ok(FakeHost { host, systemd, firewall, programs, clock })
    }

    /// What kind of system it is.
    pub fn platform(&self) -> Platform {
        Platform {
            id: "centos".to_owned(),
            id_like: vec!["rhel".to_owned(), "fedora".to_owned()],
            name: "CentOS Stream 9".to_owned(),
            version: "9".to_owned(),
            systemd: Some(252),
            kernel: KERNEL.to_owned(),
            arch: "x86_64",
            cgroups: super::platform::CgroupMode::V2,
        }
    }

    /// Everything that was changed since the last call, in order.
    pub fn writes(&self) -> Vec<String> {
        self.host.ledger.take()
    }

    /// Puts a file there as somebody else would: it is not counted as a write.
    pub fn edit(&self, path: &str, text: &str) -> std::io::Result<()> {
        let path = self.host.root.path().join(path.trim_start_matches('/'));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(path, text)
    }
}

fn seed(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    if path.exists() { Ok(()) } else { std::fs::write(path, text) }
}

/// A clock that stands until it is set.
#[derive(Debug, Default)]
pub struct FakeClock {
    now: Mutex<Timestamp>,
    unsynchronized: AtomicBool,
}

impl FakeClock {
    /// Sets it.
    pub fn set(&self, now: Timestamp) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Moves it on.
    pub fn advance(&self, by: std::time::Duration) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now += by;
    }

    /// Nobody keeps it in step any more, or somebody does again.
    pub fn synchronized(&self, synchronized: bool) {
        self.unsynchronized.store(!synchronized, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_synchronized(&self) -> bool {
        !self.unsynchronized.load(Ordering::Relaxed)
    }
}

/// Swap is what the fake's own /proc/swaps says.
struct FakeSwap {
    dir: std::path::PathBuf,
}

impl FakeSwap {
    fn edit(&self, change: impl Fn(&mut Vec<String>)) -> Result<(), Errno> {
        let path = self.dir.join("proc/swaps");
        let text = std::fs::read_to_string(&path).map_err(|_| Errno::EIO)?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        change(&mut lines);
        std::fs::write(&path, lines.join("\n") + "\n").map_err(|_| Errno::EIO)
    }
}

impl SwapCalls for FakeSwap {
    fn swapoff(&self, device: &str) -> Result<(), Errno> {
        self.edit(|lines| lines.retain(|line| line.split_whitespace().next() != Some(device)))
    }

    fn swapon(&self, device: &str) -> Result<(), Errno> {
        self.edit(|lines| lines.push(format!("{device} partition\t1048576\t\t0\t\t-2")))
    }
}
