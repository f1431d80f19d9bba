//! The running kernel: parameters, modules, SELinux, command line, swap.
//!
//! Facts are proven by their effect. Whether `br_netfilter` is there is not asked of the module list, where a kernel that has
//! it built in shows nothing, but of the parameters that it brings.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::command::{Command, CommandError, CommandRunner};
use super::root::{Root, RootError};
use super::sys;

/// modules.dep of a distribution kernel has about half a megabyte; alias lists up to two.
const MODULE_LIST_LIMIT: u64 = 16 * 1024 * 1024;

/// Where modprobe looks for its settings. A file in an earlier directory hides one of the same name in a later one.
pub const MODPROBE_DIRS: [&str; 5] =
    ["/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"];

/// Why the kernel could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file of the kernel.
    #[error("kernel state")]
    File(#[source] RootError),
    /// A kernel parameter.
    #[error("set kernel parameter {key} to {value:?}")]
    SetSysctl {
        /// Dotted name.
        key: String,
        /// The value.
        value: String,
        /// Why.
        #[source]
        source: RootError,
    },
    /// Loading a module.
    #[error("load kernel module {name}")]
    LoadModule {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// Swap.
    #[error("{call} {device}")]
    Swap {
        /// swapon or swapoff.
        call: &'static str,
        /// Device or file.
        device: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A name that is none.
    #[error("{key:?} is not the name of a kernel parameter")]
    BadKey {
        /// As given.
        key: String,
    },
    /// There is no running kernel that belongs to this root.
    #[error("{what}: an offline root has no running kernel")]
    Offline {
        /// What was asked for.
        what: &'static str,
    },
}

/// A kernel parameter, however its name was written. Printed with dots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Parameter {
    path: String,
}

impl Parameter {
    /// Accepts `net.ipv4.ip_forward`, `net/ipv4/ip_forward`, and for interfaces with a dot in their name
    /// `net.ipv4.conf.eth0/100.forwarding` or `net/ipv4/conf/eth0.100/forwarding`, as sysctl.d(5) does: the first separator
    /// tells which way the name is written.
    pub fn parse(text: &str) -> Result<Parameter, KernelError> {
        let slashes_separate = text.find(['.', '/']).is_some_and(|at| text.as_bytes()[at] == b'/');
        let path = if slashes_separate { text.to_owned() } else { swap_separators(text) };
        let path = path.trim_start_matches('/').to_owned();
        let plain = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'?' | b'[' | b'='))
        };
        if !path.contains('/') || !path.split('/').all(plain) || path.len() > 512 {
            return Err(KernelError::BadKey { key: text.to_owned() });
        }
        Ok(Parameter { path })
    }

    /// Below /proc/sys.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&swap_separators(&self.path))
    }
}

fn swap_separators(text: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    text.chars().map(swap).collect()
}

/// What is known about a module on the running kernel (or, offline, on the kernel that will boot).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModuleFacts {
    /// What the module is for is there, and where that was seen.
    pub effect: Option<String>,
    /// The kernel has it built in.
    pub builtin: bool,
    /// Its file, as modules.dep has it.
    pub file: Option<String>,
    /// What keeps it from being loaded, with the file that says so.
    pub barred: Option<String>,
    /// `kernel.modules_disabled` is 1: nothing can be loaded until the next boot.
    pub loading_disabled: bool,
}

impl ModuleFacts {
    /// What the module is for is there, or can be counted on: a kernel with it built in may show nothing of it.
    pub fn present(&self) -> bool {
        self.effect.is_some() || self.builtin
    }
}

/// One line of /proc/swaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// Device or file.
    pub device: String,
    /// Size.
    pub size_kib: u64,
    /// In use.
    pub used_kib: u64,
}

/// The two system calls that act on swap; everything else about the kernel is files.
pub trait SwapCalls: Send + Sync {
    /// swapoff(2)
    fn swapoff(&self, device: &str) -> Result<(), Errno>;
    /// swapon(2)
    fn swapon(&self, device: &str) -> Result<(), Errno>;
}

/// Those of the running kernel.
#[derive(Debug, Clone, Copy)]
pub struct RealSwap;

impl SwapCalls for RealSwap {
    fn swapoff(&self, device: &str) -> Result<(), Errno> {
        sys::swapoff(device)
    }

    fn swapon(&self, device: &str) -> Result<(), Errno> {
        sys::swapon(device)
    }
}

/// The kernel of a host.
#[derive(Clone)]
pub struct Kernel {
    root: Root,
    commands: Arc<dyn CommandRunner>,
    swap: Arc<dyn SwapCalls>,
    release: String,
}

impl Kernel {
    /// The kernel `release` below this root.
    pub fn new(root: Root, commands: Arc<dyn CommandRunner>, swap: Arc<dyn SwapCalls>, release: &str) -> Kernel {
        Kernel { root, commands, swap, release: release.to_owned() }
    }

    /// `uname -r`; offline the newest kernel installed.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// A parameter's value without the final line end; none when the kernel has no such parameter.
    pub fn sysctl(&self, key: &Parameter) -> Result<Option<String>, KernelError> {
        let text = self.live_text(&format!("/proc/sys/{}", key.path()))?;
        Ok(text.map(|text| text.trim_end_matches('\n').to_owned()))
    }

    /// Sets a parameter.
    pub fn set_sysctl(&self, key: &Parameter, value: &str) -> Result<(), KernelError> {
        self.root
            .write_kernel_file(&format!("/proc/sys/{}", key.path()), value)
            .map_err(|source| KernelError::SetSysctl { key: key.to_string(), value: value.to_owned(), source })
    }

    /// Everything that decides whether a module is there, can be loaded, or cannot.
    pub fn module(&self, name: &str) -> Result<ModuleFacts, KernelError> {
        let name = normal_module_name(name);
        let offline = self.root.is_offline();
        Ok(ModuleFacts {
            effect: if offline { None } else { self.effect(&name)? },
            builtin: self.listed("modules.builtin", &name)?.is_some(),
            file: self.listed("modules.dep", &name)?,
            barred: self.barred(&name)?,
            loading_disabled: !offline && self.flag("/proc/sys/kernel/modules_disabled")?,
        })
    }

    /// Loads a module with modprobe, which knows dependencies, options and compression. Whether that had the effect is for
    /// the caller to see: an `install NAME /bin/true` line makes it succeed and do nothing.
    pub async fn load_module(&self, name: &str) -> Result<(), KernelError> {
        let command = Command::new("/usr/sbin/modprobe", Duration::from_secs(60)).args(["--", name]);
        let failed = |source| KernelError::LoadModule { name: name.to_owned(), source };
        self.commands.run(&command).await.map_err(failed)?.success(&command).map_err(failed)?;
        Ok(())
    }

    /// Enforcing or permissive; none when SELinux is off.
    pub fn enforcing(&self) -> Result<Option<bool>, KernelError> {
        Ok(self.live_text("/sys/fs/selinux/enforce")?.map(|text| text.trim() == "1"))
    }

    /// Sets the mode until the next boot.
    pub fn set_enforcing(&self, enforcing: bool) -> Result<(), KernelError> {
        let value = if enforcing { "1" } else { "0" };
        self.root.write_kernel_file("/sys/fs/selinux/enforce", value).map_err(KernelError::File)
    }

    /// The kernel's command line as words; quotes hold words together.
    pub fn command_line(&self) -> Result<Vec<String>, KernelError> {
        Ok(words(&self.live_text("/proc/cmdline")?.unwrap_or_default()))
    }

    /// Where the kernel swaps to now.
    pub fn swaps(&self) -> Result<Vec<Swap>, KernelError> {
        Ok(parse_swaps(&self.live_text("/proc/swaps")?.unwrap_or_default()))
    }

    /// Memory that can be had without swapping.
    pub fn available_memory_kib(&self) -> Result<Option<u64>, KernelError> {
        let text = self.live_text("/proc/meminfo")?.unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        Ok(line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()))
    }

    /// Stops swapping to a device or file; brings its pages back first.
    pub async fn swapoff(&self, device: &str) -> Result<(), KernelError> {
        self.swap_call("swapoff", device, |calls, device| calls.swapoff(device)).await
    }

    /// Swaps to a device or file.
    pub async fn swapon(&self, device: &str) -> Result<(), KernelError> {
        self.swap_call("swapon", device, |calls, device| calls.swapon(device)).await
    }

    async fn swap_call(
        &self,
        call: &'static str,
        device: &str,
        run: fn(&dyn SwapCalls, &str) -> Result<(), Errno>,
    ) -> Result<(), KernelError> {
        if self.root.is_offline() {
            return Err(KernelError::Offline { what: call });
        }
        self.root.ledger().note(format!("{call} {device}"));
        let (calls, path) = (self.swap.clone(), device.to_owned());
        // minutes, when the swap is full: not on the thread that everything else runs on
        let result = tokio::task::spawn_blocking(move || run(calls.as_ref(), &path)).await;
        let result = result.unwrap_or(Err(Errno::ECANCELED));
        result.map_err(|source| KernelError::Swap { call, device: device.to_owned(), source })
    }

    /// Text of the running kernel; none offline, where the tree's /proc is empty or not its own.
    fn live_text(&self, path: &str) -> Result<Option<String>, KernelError> {
        if self.root.is_offline() {
            return Ok(None);
        }
        self.root.read_text(path).map_err(KernelError::File)
    }

    fn flag(&self, path: &str) -> Result<bool, KernelError> {
        Ok(self.live_text(path)?.is_some_and(|text| text.trim() == "1"))
    }

    fn effect(&self, name: &str) -> Result<Option<String>, KernelError> {
        // what people load these modules for; a module without an entry is proven by its directory in /sys/module
        let effect = match name {
            "overlay" => return self.filesystem(name),
            "br_netfilter" => "/proc/sys/net/bridge/bridge-nf-call-iptables",
            "nf_conntrack" => "/proc/sys/net/netfilter/nf_conntrack_max",
            "ip_vs" => "/proc/sys/net/ipv4/vs",
            _ => &format!("/sys/module/{name}"),
        };
        let there = self.root.exists(effect).map_err(KernelError::File)?;
        Ok(there.then(|| effect.to_owned()))
    }

    fn filesystem(&self, name: &str) -> Result<Option<String>, KernelError> {
        let list = self.live_text("/proc/filesystems")?.unwrap_or_default();
        let there = list.lines().any(|line| line.split_whitespace().last() == Some(name));
        Ok(there.then(|| format!("/proc/filesystems: {name}")))
    }

    /// The module's file in one of the lists that depmod and the kernel build write.
    fn listed(&self, list: &str, name: &str) -> Result<Option<String>, KernelError> {
        let path = format!("/lib/modules/{}/{list}", self.release);
        let bytes = self.root.read_bounded(&path, MODULE_LIST_LIMIT).map_err(KernelError::File)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let found = text.lines().map(|line| line.split(':').next().unwrap_or(line).trim()).find(|file| {
            let base = file.rsplit('/').next().unwrap_or(file);
            base.split(".ko").next().is_some_and(|stem| normal_module_name(stem) == name) && base.contains(".ko")
        });
        Ok(found.map(str::to_owned))
    }

    fn barred(&self, name: &str) -> Result<Option<String>, KernelError> {
        for (option, value) in self.command_line()?.iter().filter_map(|word| word.split_once('=')) {
            let bars = matches!(option, "module_blacklist" | "modprobe.blacklist");
            if bars && value.split(',').any(|each| normal_module_name(each) == name) {
                return Ok(Some(format!("{option}= on the kernel's command line")));
            }
        }
        for (file, text) in self.root.drop_ins(&MODPROBE_DIRS, ".conf").map_err(KernelError::File)? {
            if let Some(line) = text.lines().find(|line| line_bars(line, name)) {
                return Ok(Some(format!("`{}` in {file}", line.trim())));
            }
        }
        Ok(None)
    }
}

/// The kernel and its tools take `-` and `_` in a module's name as the same.
pub fn normal_module_name(name: &str) -> String {
    name.replace('-', "_")
}

/// True for `blacklist NAME`, which systemd-modules-load obeys at each boot, and for `install NAME /bin/true` and the like,
/// which makes modprobe say yes and do nothing.
fn line_bars(line: &str, name: &str) -> bool {
    let mut words = line.split_whitespace();
    let verb = words.next();
    if words.next().is_none_or(|module| normal_module_name(module) != name) {
        return false;
    }
    match verb {
        Some("blacklist") => true,
        Some("install") => words.next().is_some_and(|program| {
            matches!(program.rsplit('/').next(), Some("true" | "false" | ":" | "nologin")) || program == "exit"
        }),
        _ => false,
    }
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn parse_swaps(text: &str) -> Vec<Swap> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let device = fields.next()?;
        let _kind = fields.next()?;
        let size_kib = fields.next()?.parse().ok()?;
        let used_kib = fields.next()?.parse().ok()?;
        // a removed swap file is listed with this mark, and blanks are octal
        let device = device.trim_end_matches("\\040(deleted)").replace("\\040", " ");
        Some(Swap { device, size_kib, used_kib })
    };
    text.lines().skip(1).filter_map(line).collect()
}

impl Root {
    /// The files that count in a set of drop-in directories, in the order in which they are read: by name, and of files with
    /// one name the one in the earliest directory. An empty file or a link to /dev/null there hides the later ones.
    pub fn drop_ins(&self, dirs: &[&str], suffix: &str) -> Result<Vec<(String, String)>, RootError> {
        let mut winners: BTreeMap<String, String> = BTreeMap::new();
        for dir in dirs {
            for name in self.list(dir)?.unwrap_or_default() {
                if name.ends_with(suffix) && !name.starts_with('.') {
                    winners.entry(name.clone()).or_insert_with(|| format!("{dir}/{name}"));
                }
            }
        }
        let mut files = Vec::new();
        for path in winners.into_values() {
            let hidden = self.link_target(&path)?.as_deref() == Some("/dev/null");
            if !hidden && let Some(bytes) = self.read(&path)? {
                files.push((path, String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        Ok(files)
    }
}
