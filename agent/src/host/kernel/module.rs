//! Kernel modules: whether what they are for is there, and what keeps them out.

use std::time::Duration;

use super::{Kernel, KernelError};
use crate::host::command::Command;

/// modules.dep of a distribution kernel has about half a megabyte; alias lists up to two.
const MODULE_LIST_LIMIT: u64 = 16 * 1024 * 1024;

/// Where modprobe looks for its settings. A file in an earlier directory hides one of the same name in a later one.
pub const MODPROBE_DIRS: [&str; 5] =
    ["/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"];

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

impl Kernel {
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
