//! Architectures: what the kernel calls them, and which number a syscall has on each.

use std::str::FromStr;

/// An architecture that may make calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64 bit x86.
    X86_64,
    /// 32 bit x86, on a 64 bit kernel too.
    X86,
    /// x86-64 with 32 bit pointers: the numbers of x86-64 with bit 30 set.
    X32,
    /// 64 bit ARM.
    Aarch64,
    /// 32 bit ARM, on a 64 bit kernel too.
    Arm,
}

/// Bit that tells an x32 call from an x86-64 one; both have the same `AUDIT_ARCH`.
pub const X32_BIT: u32 = 0x4000_0000;

impl Arch {
    /// That of this machine.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Arch = Arch::X86_64;
    /// That of this machine.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Arch = Arch::Aarch64;

    /// `AUDIT_ARCH_…` of linux/audit.h, which is what a filter sees.
    pub fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// Number of the syscall `name`; none where the architecture does not have it.
    pub fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Arch::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok()?.id(),
            Arch::X32 => return X32.number(name),
            Arch::X86 => syscalls::x86::Sysno::from_str(name).ok()?.id(),
            Arch::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok()?.id(),
            Arch::Arm => syscalls::arm::Sysno::from_str(name).ok()?.id(),
        };
        u32::try_from(number).ok()
    }

    /// `SCMP_ARCH_…`. None for one that exists and that no machine we run on can execute; `Err` is for the caller to make.
    pub fn from_scmp(name: &str) -> Option<Option<Arch>> {
        Some(match name {
            "SCMP_ARCH_X86_64" => Some(Arch::X86_64),
            "SCMP_ARCH_X86" => Some(Arch::X86),
            "SCMP_ARCH_X32" => Some(Arch::X32),
            "SCMP_ARCH_AARCH64" => Some(Arch::Aarch64),
            "SCMP_ARCH_ARM" => Some(Arch::Arm),
            other => {
                let foreign = ["MIPS", "PPC", "S390", "PARISC", "RISCV64", "LOONGARCH64", "M68K", "SH"];
                let family = other.strip_prefix("SCMP_ARCH_")?;
                foreign.iter().any(|name| family.starts_with(name)).then_some(None)?
            }
        })
    }

    /// Whether a kernel of this architecture lets `other` make calls.
    pub fn runs(self, other: Arch) -> bool {
        self == other
            || matches!(
                (self, other),
                (Arch::X86_64, Arch::X86) | (Arch::X86_64, Arch::X32) | (Arch::Aarch64, Arch::Arm)
            )
    }

    /// Name as in Go's GOARCH, which is what `includes.arches` has.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::X86 => "x86",
            Arch::X32 => "x32",
            Arch::Aarch64 => "arm64",
            Arch::Arm => "arm",
        }
    }

    /// Whether one of the names in a profile is this one.
    pub fn is_in(self, names: &[String]) -> bool {
        names.iter().any(|name| name == self.name() || Arch::from_scmp(name) == Some(Some(self)))
    }
}

/// x32's own numbers begin at 512; everything else is x86-64's.
struct X32;

impl X32 {
    /// Calls whose structures differ: x32 has entries of its own for them (arch/x86/entry/syscalls/syscall_64.tbl).
    const OWN: [(&'static str, u32); 36] = [
        ("rt_sigaction", 512),
        ("rt_sigreturn", 513),
        ("ioctl", 514),
        ("readv", 515),
        ("writev", 516),
        ("recvfrom", 517),
        ("sendmsg", 518),
        ("recvmsg", 519),
        ("execve", 520),
        ("ptrace", 521),
        ("rt_sigpending", 522),
        ("rt_sigtimedwait", 523),
        ("rt_sigqueueinfo", 524),
        ("sigaltstack", 525),
        ("timer_create", 526),
        ("mq_notify", 527),
        ("kexec_load", 528),
        ("waitid", 529),
        ("set_robust_list", 530),
        ("get_robust_list", 531),
        ("vmsplice", 532),
        ("move_pages", 533),
        ("preadv", 534),
        ("pwritev", 535),
        ("rt_tgsigqueueinfo", 536),
        ("recvmmsg", 537),
        ("sendmmsg", 538),
        ("process_vm_readv", 539),
        ("process_vm_writev", 540),
        ("setsockopt", 541),
        ("getsockopt", 542),
        ("io_setup", 543),
        ("io_submit", 544),
        ("execveat", 545),
        ("preadv2", 546),
        ("pwritev2", 547),
    ];

    fn number(&self, name: &str) -> Option<u32> {
        let own = Self::OWN.iter().find(|(own, _)| *own == name).map(|(_, number)| *number);
        own.or_else(|| Arch::X86_64.number(name)).map(|number| number | X32_BIT)
    }
}
