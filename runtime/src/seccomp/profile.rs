//! Seccomp profiles as Docker, podman and kubelet's `Localhost` files write them.
//!
//! The form is that of moby's and containers/common's `seccomp.json`: rules by syscall name, with conditions on arguments,
//! on the container's capabilities, on the architecture and on the kernel. [`Profile::resolve`] applies the latter three
//! and leaves what the [compiler](super::compile) needs.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use super::arch::Arch;

/// Most a profile may have: the largest in use have about 80 rules and 500 names.
const MAX_RULES: usize = 4096;
/// Largest profile file that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Why a profile cannot be used.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// It is no JSON of this form.
    #[error("parse seccomp profile")]
    Parse(#[source] serde_json::Error),
    /// An action that does not exist or that this runtime does not offer.
    #[error(
        "seccomp profile: action {0:?} is not known; want SCMP_ACT_ALLOW, _ERRNO, _KILL, _KILL_PROCESS, _KILL_THREAD, _LOG, _TRACE or _TRAP"
    )]
    Action(String),
    /// A comparison that does not exist.
    #[error("seccomp profile: operator {0:?} is not known; want SCMP_CMP_NE, _LT, _LE, _EQ, _GE, _GT or _MASKED_EQ")]
    Operator(String),
    /// An argument index that no syscall has.
    #[error("seccomp profile: syscall argument {0} does not exist; there are 0 to 5")]
    Argument(u32),
    /// An architecture that does not exist.
    #[error("seccomp profile: architecture {0:?} is not known")]
    Architecture(String),
    /// It has no rule for the architecture of this machine.
    #[error("seccomp profile: it does not cover the architecture of this machine, {0}")]
    NotForThisMachine(&'static str),
    /// More rules than any real profile has.
    #[error("seccomp profile: more than {MAX_RULES} rules")]
    TooLarge,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is made.
    Allow,
    /// It is made and logged.
    Log,
    /// It fails with this error number.
    Errno(u16),
    /// The process gets SIGSYS.
    Trap,
    /// A tracer is told; without one the call fails with ENOSYS.
    Trace(u16),
    /// The calling thread ends.
    KillThread,
    /// The process ends.
    KillProcess,
}

/// A condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub argument: u8,
    /// How it is compared.
    pub test: Test,
}

/// How an argument is compared, as unsigned 64 bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Test {
    /// `argument != value`
    NotEqual(u64),
    /// `argument < value`
    Less(u64),
    /// `argument <= value`
    LessOrEqual(u64),
    /// `argument == value`
    Equal(u64),
    /// `argument >= value`
    GreaterOrEqual(u64),
    /// `argument > value`
    Greater(u64),
    /// `argument & mask == value`
    MaskedEqual {
        /// Bits looked at.
        mask: u64,
        /// What they have to be.
        value: u64,
    },
}

/// Alternatives for one syscall, tried in order; a rule without conditions always applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All have to hold.
    pub conditions: Vec<Condition>,
    /// What happens then.
    pub action: Action,
}

/// A profile for one container on one machine: nothing in it depends on anything else any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// For calls that the profile knows and has no rule for.
    pub default_action: Action,
    /// Architectures that may call, the machine's own first.
    pub arches: Vec<Arch>,
    /// Rules by syscall name.
    pub rules: BTreeMap<String, Vec<Rule>>,
}

/// What a profile's conditions are judged by.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Names of the container's bounding capabilities, `CAP_…`.
    pub capabilities: &'a dyn Fn(&str) -> bool,
    /// Major and minor of the running kernel.
    pub kernel: (u32, u32),
    /// The machine.
    pub arch: Arch,
}

/// A profile as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

impl Profile {
    /// Reads a profile.
    pub fn parse(text: &[u8]) -> Result<Profile, ProfileError> {
        let profile: Profile = serde_json::from_slice(text).map_err(ProfileError::Parse)?;
        if profile.syscalls.len() > MAX_RULES {
            return Err(ProfileError::TooLarge);
        }
        Ok(profile)
    }

    /// Applies the conditions that do not depend on the call.
    pub fn resolve(&self, subject: &Subject) -> Result<Resolved, ProfileError> {
        let default_action = action(&self.default_action, self.default_errno_ret)?;
        let mut rules: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for entry in &self.syscalls {
            if !entry.includes.all_hold(subject) || entry.excludes.any_holds(subject) {
                continue;
            }
            let action = action(&entry.action, entry.errno_ret)?;
            let alternatives = alternatives(entry.args.as_deref().unwrap_or_default())?;
            for name in entry.names.iter().chain(&entry.name) {
                let known = rules.entry(name.clone()).or_default();
                known.extend(alternatives.iter().map(|conditions| Rule { conditions: conditions.clone(), action }));
            }
        }
        Ok(Resolved { default_action, arches: self.arches(subject.arch)?, rules })
    }

    /// The machine's own architecture and those that the profile lets in beside it.
    fn arches(&self, native: Arch) -> Result<Vec<Arch>, ProfileError> {
        let parse = |name: &String| Arch::from_scmp(name).ok_or_else(|| ProfileError::Architecture(name.clone()));
        let mut listed = Vec::new();
        for map in &self.arch_map {
            if parse(&map.architecture)? == Some(native) {
                listed.push(native);
                for name in map.sub_architectures.iter().flatten() {
                    listed.extend(parse(name)?);
                }
            }
        }
        for name in &self.architectures {
            listed.extend(parse(name)?);
        }
        if self.arch_map.is_empty() && self.architectures.is_empty() {
            return Ok(vec![native]);
        }
        if !listed.contains(&native) {
            return Err(ProfileError::NotForThisMachine(native.name()));
        }
        let mut arches = vec![native];
        for arch in listed {
            if native.runs(arch) && !arches.contains(&arch) {
                arches.push(arch);
            }
        }
        Ok(arches)
    }
}

impl Filter {
    fn all_hold(&self, subject: &Subject) -> bool {
        self.caps.iter().flatten().all(|name| (subject.capabilities)(name))
            && self.arches.as_ref().is_none_or(|arches| arches.is_empty() || subject.arch.is_in(arches))
            && self.min_kernel.as_ref().is_none_or(|kernel| at_least(subject.kernel, kernel))
    }

    fn any_holds(&self, subject: &Subject) -> bool {
        self.caps.iter().flatten().any(|name| (subject.capabilities)(name))
            || self.arches.as_ref().is_some_and(|arches| subject.arch.is_in(arches))
            || self.min_kernel.as_ref().is_some_and(|kernel| at_least(subject.kernel, kernel))
    }
}

fn at_least(kernel: (u32, u32), wanted: &str) -> bool {
    let mut numbers = wanted.split('.').map(|part| part.parse().unwrap_or(0));
    kernel >= (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, ProfileError> {
    const EPERM: u16 = 1;
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(EPERM)),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(EPERM)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(ProfileError::Action(other.to_owned())),
    })
}

/// Conditions on different arguments have to hold together; several on one argument are alternatives, as libseccomp's
/// users (runc, crun) take them, since no filter can ask for one argument twice in a rule.
fn alternatives(args: &[Arg]) -> Result<Vec<Vec<Condition>>, ProfileError> {
    let conditions: Vec<Condition> = args.iter().map(condition).collect::<Result<_, _>>()?;
    let repeated = conditions
        .iter()
        .enumerate()
        .any(|(at, condition)| conditions[..at].iter().any(|earlier| earlier.argument == condition.argument));
    Ok(if repeated { conditions.into_iter().map(|condition| vec![condition]).collect() } else { vec![conditions] })
}

fn condition(arg: &Arg) -> Result<Condition, ProfileError> {
    let argument = u8::try_from(arg.index).ok().filter(|index| *index < 6).ok_or(ProfileError::Argument(arg.index))?;
    let test = match arg.op.as_str() {
        "SCMP_CMP_NE" => Test::NotEqual(arg.value),
        "SCMP_CMP_LT" => Test::Less(arg.value),
        "SCMP_CMP_LE" => Test::LessOrEqual(arg.value),
        "SCMP_CMP_EQ" => Test::Equal(arg.value),
        "SCMP_CMP_GE" => Test::GreaterOrEqual(arg.value),
        "SCMP_CMP_GT" => Test::Greater(arg.value),
        // the mask comes first, what the masked bits have to be second
        "SCMP_CMP_MASKED_EQ" => Test::MaskedEqual { mask: arg.value, value: arg.value_two },
        other => return Err(ProfileError::Operator(other.to_owned())),
    };
    Ok(Condition { argument, test })
}
