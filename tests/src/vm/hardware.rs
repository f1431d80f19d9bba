//! What QEMU is told: the machine's hardware, as a list of arguments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::cache::Image;
use super::recipe::hex;

/// Where the guest finds what [`Forward`] offers it. Nothing else outside can be reached from it.
pub const OFFER_ADDRESS: &str = "10.0.2.100";

/// A service for the guest, at a port of [`OFFER_ADDRESS`]: a program that is started for each connection, on its streams.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The port.
    pub port: u16,
    /// The program with its arguments; without spaces or commas in them.
    pub command: Vec<String>,
}

/// A machine as it is bought. The defaults are what a saved state is made with.
#[derive(Debug, Clone)]
pub struct Hardware {
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u32,
    /// Disks beside the root disk: qcow2 files.
    pub disks: Vec<PathBuf>,
    /// A folder of this machine, at /share in the guest.
    pub share: Option<PathBuf>,
    /// cloud-init's user-data and meta-data (NoCloud).
    pub seed: Option<PathBuf>,
    /// More words for the kernel's command line.
    pub append: String,
    /// Services for the guest.
    pub offers: Vec<Forward>,
    /// Ports of this machine's loopback address that lead into the guest: (here, there).
    pub ports: Vec<(u16, u16)>,
    /// How long a boot may take.
    pub boots_within: std::time::Duration,
}

impl Default for Hardware {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
        Self {
            cpus: u32::try_from(cpus).unwrap_or(1),
            memory_mib: 1024,
            disks: Vec::new(),
            share: None,
            seed: None,
            append: String::new(),
            offers: Vec::new(),
            ports: Vec::new(),
            // emulated, on a machine that has other things to do
            boots_within: std::time::Duration::from_secs(600),
        }
    }
}

/// Where one machine's files are.
pub(super) struct Places<'a> {
    /// Sockets and console.
    pub folder: &'a Path,
    /// Root disk.
    pub disk: &'a Path,
    /// Memory in a file: shared with it, while it is being saved, or a private copy.
    pub memory: Option<(&'a Path, bool)>,
    /// Device state will come.
    pub incoming: bool,
}

/// How instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By QEMU, 10 to 35 times slower.
    Emulation,
}

impl Accelerator {
    /// KVM wants a device, and a processor that says it can: a guest may have the first without the second.
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let can = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
        let may = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if can && may { Self::Kvm } else { Self::Emulation }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Emulation => "software emulation",
        }
    }
}

impl Hardware {
    /// A saved state can be loaded only into the same hardware, under the same QEMU, on the same kind of processor.
    pub fn fingerprint(&self) -> Result<String> {
        let version =
            Command::new("qemu-system-x86_64").arg("--version").output().context("start qemu-system-x86_64")?;
        let mut hash = Sha256::new();
        hash.update(b"1\0"); // to be raised when `arguments` changes
        hash.update(version.stdout);
        hash.update(format!("{} {} {:?}", self.cpus, self.memory_mib, Accelerator::here()));
        if Accelerator::here() == Accelerator::Kvm {
            let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let model = cpuinfo.lines().filter(|l| l.starts_with("model name") || l.starts_with("flags")).take(2);
            model.for_each(|line| hash.update(line));
        }
        Ok(hex(hash.finalize().get(..6).unwrap_or_default()))
    }

    /// QEMU's arguments. The devices are the same for every machine, used or not: a saved state has them all.
    pub(super) fn arguments(&self, image: &Image, places: &Places<'_>) -> Vec<String> {
        let folder = places.folder.display();
        let nothing = places.folder.join("nothing");
        let memory = match places.memory {
            Some((path, shared)) => {
                let shared = if shared { "on" } else { "off" };
                format!("memory-backend-file,mem-path={},share={shared}", path.display())
            }
            None => "memory-backend-ram".to_owned(),
        };
        let processor: &[&str] = match Accelerator::here() {
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Accelerator::Emulation => &["-accel", "tcg,thread=multi", "-cpu", "max"],
        };
        // said each time: a file that says it in the guest loses against some versions' own idea
        let cloud_init = if self.seed.is_some() { "enabled" } else { "disabled" };
        let mut all: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,memory-backend=mem"]);
        add(&[
            "-object",
            &format!("{memory},id=mem,size={}M", self.memory_mib),
            "-m",
            &format!("{}M", self.memory_mib),
        ]);
        add(&["-smp", &self.cpus.to_string()]);
        add(processor);
        add(&["-kernel", &image.file("vmlinux").to_string_lossy(), "-initrd", &image.file("initrd").to_string_lossy()]);
        let append = &self.append;
        let kernel =
            format!("console=ttyS0 quiet panic=-1 selinux=1 security=selinux cloud-init={cloud_init} {append}");
        add(&["-append", &kernel]);
        add(&["-chardev", &format!("file,id=console,path={folder}/console"), "-serial", "chardev:console"]);
        // unsafe: killing QEMU loses what the guest has not written yet and nothing else, which is a power cut
        let drive = |path: &Path, id: &str| {
            format!("file={},format=qcow2,if=none,id={id},cache=unsafe,discard=unmap", path.display())
        };
        add(&["-drive", &drive(places.disk, "root"), "-device", "virtio-blk-pci,drive=root"]);
        let seed = self.seed.as_deref().unwrap_or(&nothing).display();
        add(&["-drive", &format!("driver=vvfat,dir={seed},label=cidata,if=none,id=seed,read-only=on")]);
        add(&["-device", "virtio-blk-pci,drive=seed"]);
        let share = self.share.as_deref().unwrap_or(&nothing).display();
        add(&["-fsdev", &format!("local,id=share,security_model=none,multidevs=remap,path={share}")]);
        add(&["-device", "virtio-9p-pci,fsdev=share,mount_tag=share", "-device", "virtio-serial-pci"]);
        add(&["-chardev", &format!("socket,id=control,path={folder}/control")]);
        add(&["-device", "virtserialport,chardev=control,name=testhost.control"]);
        add(&["-chardev", &format!("socket,id=shell,path={folder}/shell,server=on,wait=off")]);
        add(&["-device", "virtconsole,chardev=shell"]);
        add(&["-netdev", &self.network(), "-device", "virtio-net-pci,netdev=net,romfile="]);
        add(&["-device", "virtio-rng-pci"]);
        for (number, disk) in self.disks.iter().enumerate() {
            let id = format!("data{number}");
            add(&["-drive", &drive(disk, &id), "-device", &format!("virtio-blk-pci,drive={id},serial={id}")]);
        }
        add(&["-qmp", &format!("unix:{folder}/monitor")]);
        if places.incoming {
            add(&["-incoming", "defer"]);
        }
        all
    }

    fn network(&self) -> String {
        let mut network = "user,id=net,restrict=on".to_owned();
        for offer in &self.offers {
            network += &format!(",guestfwd=tcp:{OFFER_ADDRESS}:{}-cmd:{}", offer.port, offer.command.join(" "));
        }
        for (here, there) in &self.ports {
            network += &format!(",hostfwd=tcp:127.0.0.1:{here}-:{there}");
        }
        network
    }
}
