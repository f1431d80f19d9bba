//! The running kernel: parameters, modules, SELinux, command line, swap.
//!
//! Facts are proven by their effect. Whether `br_netfilter` is there is not asked of the module list, where a kernel that has
//! it built in shows nothing, but of the parameters that it brings.

mod module;

use std::fmt;
use std::sync::Arc;

use nix::errno::Errno;

pub use module::{MODPROBE_DIRS, ModuleFacts, normal_module_name};

use super::command::{CommandError, CommandRunner};
use super::root::{Root, RootError};
use super::sys;

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

    /// Enforcing or permissive; none when SELinux is off: in the kernel, or by a boot that has loaded no policy, as EL 9 and later
    /// do with `SELINUX=disabled`. Every process has the kernel's own label then.
    pub fn enforcing(&self) -> Result<Option<bool>, KernelError> {
        let Some(text) = self.live_text("/sys/fs/selinux/enforce")? else { return Ok(None) };
        let label = self.live_text("/proc/self/attr/current")?.unwrap_or_default();
        let no_policy = label.trim_end_matches(['\0', '\n']) == "kernel";
        Ok((!no_policy).then(|| text.trim() == "1"))
    }

    /// A boolean of the policy that is loaded; none when it has no such boolean, or SELinux is off.
    pub fn selinux_boolean(&self, name: &str) -> Result<Option<bool>, KernelError> {
        let text = self.live_text(&format!("/sys/fs/selinux/booleans/{name}"))?;
        // the value now, and the value that a commit would set
        Ok(text.map(|text| text.split_whitespace().next() == Some("1")))
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
