//! Filters are executed here by a small BPF machine and compared with what the profile says, and loaded into the kernel.

use proptest::prelude::*;

use super::arch::{Arch, X32_BIT};
use super::compile::{self, Instruction, compile, value};
use super::profile::{Action, Condition, Profile, ProfileError, Resolved, Rule, Subject, Test as Comparison};
use super::*;

/// What a filter sees of a call.
#[derive(Debug, Clone, Copy)]
struct Call {
    audit: u32,
    number: u32,
    arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.audit,
            16..64 => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                let half = if offset.is_multiple_of(8) { argument & 0xffff_ffff } else { argument >> 32 };
                u32::try_from(half).unwrap()
            }
            other => panic!("load from {other}"),
        }
    }
}

/// Runs a filter as linux/filter.h describes; a jump past the end panics.
fn run(program: &[Instruction], call: Call) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            compile::LOAD => accumulator = call.word(k),
            compile::AND => accumulator &= k,
            compile::JUMP => at += k as usize,
            compile::EQUAL => at += branch(accumulator == k),
            compile::GREATER => at += branch(accumulator > k),
            compile::GREATER_EQUAL => at += branch(accumulator >= k),
            compile::RETURN => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn holds(condition: &Condition, call: Call) -> bool {
    let argument = call.arguments[usize::from(condition.argument)];
    match condition.test {
        Comparison::NotEqual(value) => argument != value,
        Comparison::Less(value) => argument < value,
        Comparison::LessOrEqual(value) => argument <= value,
        Comparison::Equal(value) => argument == value,
        Comparison::GreaterOrEqual(value) => argument >= value,
        Comparison::Greater(value) => argument > value,
        Comparison::MaskedEqual { mask, value } => argument & mask == value,
    }
}

/// The rules of `name` read in order; an unconditional one stands behind all conditional ones before it.
fn expected(profile: &Resolved, name: &str, call: Call) -> Action {
    let rules = profile.rules.get(name).map(Vec::as_slice).unwrap_or_default();
    let end = rules.iter().position(|rule| rule.conditions.is_empty()).map_or(rules.len(), |at| at + 1);
    let rule = rules[..end].iter().find(|rule| rule.conditions.iter().all(|condition| holds(condition, call)));
    rule.map_or(profile.default_action, |rule| rule.action)
}

fn resolve(text: &str, capabilities: &[&str]) -> Result<Resolved, ProfileError> {
    let has = |name: &str| capabilities.contains(&name);
    Profile::parse(text.as_bytes())?.resolve(&Subject { capabilities: &has, kernel: (5, 14), arch: Arch::X86_64 })
}

fn default_profile(capabilities: &[&str]) -> Resolved {
    resolve(std::str::from_utf8(DEFAULT_PROFILE).unwrap(), capabilities).unwrap()
}

fn call(arch: Arch, name: &str, arguments: [u64; 6]) -> Call {
    Call { audit: arch.audit(), number: arch.number(name).unwrap(), arguments }
}

const ALLOW: u32 = 0x7fff_0000;

#[test]
fn the_default_profile_allows_programs_and_refuses_the_kernels_inside() {
    let profile = default_profile(&[]);
    let program = compile(&profile).unwrap();
    let result = |name: &str, arguments| run(&program, call(Arch::X86_64, name, arguments));
    for name in ["read", "openat", "execve", "futex", "statx", "epoll_pwait2", "close_range"] {
        assert_eq!(result(name, [0; 6]), ALLOW, "{name}");
    }
    for name in ["mount", "init_module", "keyctl", "io_uring_setup", "userfaultfd", "unshare", "bpf", "reboot"] {
        assert_eq!(result(name, [0; 6]), value(Action::Errno(1)), "{name}");
    }
    assert_eq!(result("clone3", [0; 6]), value(Action::Errno(38)));
    assert_eq!(result("clone", [0x1_0000, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(result("clone", [0x1000_0000, 0, 0, 0, 0, 0]), value(Action::Errno(1)), "CLONE_NEWUSER");
    assert_eq!(result("socket", [2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(result("socket", [40, 0, 0, 0, 0, 0]), value(Action::Errno(1)), "AF_VSOCK");
    assert_eq!(result("personality", [0xffff_ffff, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(result("personality", [0x4_0000, 0, 0, 0, 0, 0]), value(Action::Errno(1)), "ADDR_NO_RANDOMIZE");
}

#[test]
fn a_capability_opens_its_calls() {
    let with = compile(&default_profile(&["CAP_SYS_ADMIN", "CAP_SYS_TIME"])).unwrap();
    for name in ["mount", "unshare", "clone3", "clock_settime"] {
        assert_eq!(run(&with, call(Arch::X86_64, name, [u64::MAX; 6])), ALLOW, "{name}");
    }
    assert_ne!(run(&with, call(Arch::X86_64, "reboot", [0; 6])), ALLOW);
}

#[test]
fn a_call_that_is_newer_than_the_profile_does_not_exist() {
    let program = compile(&default_profile(&[])).unwrap();
    let newer = Call { audit: Arch::X86_64.audit(), number: 4000, arguments: [0; 6] };
    assert_eq!(run(&program, newer), value(Action::Errno(38)));
}

#[test]
fn every_architecture_of_the_machine_is_filtered_by_its_own_numbers() {
    let program = compile(&default_profile(&[])).unwrap();
    assert_eq!(run(&program, call(Arch::X86, "openat", [0; 6])), ALLOW);
    assert_eq!(run(&program, call(Arch::X86, "mount", [0; 6])), value(Action::Errno(1)));
    assert_eq!(run(&program, call(Arch::X32, "openat", [0; 6])), ALLOW);
    assert_eq!(run(&program, call(Arch::X32, "mount", [0; 6])), value(Action::Errno(1)));
    let foreign = Call { audit: Arch::Aarch64.audit(), number: 0, arguments: [0; 6] };
    assert_eq!(run(&program, foreign), value(Action::KillProcess));
}

#[test]
fn x32_numbers_do_not_pass_a_profile_that_does_not_name_x32() {
    let profile = resolve(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}"#,
        &[],
    )
    .unwrap();
    let program = compile(&profile).unwrap();
    let mount = call(Arch::X86_64, "mount", [0; 6]);
    assert_eq!(run(&program, mount), value(Action::Errno(1)));
    assert_eq!(run(&program, Call { number: mount.number | X32_BIT, ..mount }), value(Action::KillProcess));
}

#[test]
fn several_conditions_on_one_argument_are_alternatives() {
    let profile = resolve(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#,
        &[],
    )
    .unwrap();
    let program = compile(&profile).unwrap();
    for (family, allowed) in [(1, true), (2, true), (3, false)] {
        let result = run(&program, call(Arch::X86_64, "socket", [family, 0, 0, 0, 0, 0]));
        assert_eq!(result == ALLOW, allowed, "{family}");
    }
}

#[test]
fn what_a_profile_says_wrong_is_named() {
    let error = |text: &str| resolve(text, &[]).unwrap_err().to_string();
    assert!(error(r#"{"defaultAction":"ALLOW"}"#).contains("\"ALLOW\""));
    let arg = |index: u32, op: &str| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"SCMP_ACT_LOG",
                "args":[{{"index":{index},"value":0,"op":"{op}"}}]}}]}}"#
        )
    };
    assert!(error(&arg(6, "SCMP_CMP_EQ")).contains("argument 6"));
    assert!(error(&arg(0, "==")).contains("\"==\""));
    assert!(error(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_Z80"]}"#).contains("Z80"));
    let foreign = error(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_S390X"]}"#);
    assert!(foreign.contains("amd64"), "{foreign}");
}

#[test]
fn a_filter_is_built_once_for_each_set_of_capabilities() {
    let filters = Filters::new((5, 14));
    let first = filters.filter(DEFAULT_PROFILE, 0).unwrap();
    assert!(Arc::ptr_eq(&first, &filters.filter(DEFAULT_PROFILE, 0).unwrap()));
    assert!(!Arc::ptr_eq(&first, &filters.filter(DEFAULT_PROFILE, 1 << 21).unwrap()));
    assert!(first.len() / 8 < 1200, "{} instructions", first.len() / 8);
}

fn comparison() -> impl Strategy<Value = Comparison> {
    let value = prop_oneof![any::<u64>(), 0..4u64, Just(u64::from(u32::MAX)), Just(1 << 32)];
    (0..7, value.clone(), value).prop_map(|(kind, value, mask)| match kind {
        0 => Comparison::NotEqual(value),
        1 => Comparison::Less(value),
        2 => Comparison::LessOrEqual(value),
        3 => Comparison::Equal(value),
        4 => Comparison::GreaterOrEqual(value),
        5 => Comparison::Greater(value),
        _ => Comparison::MaskedEqual { mask, value: value & mask },
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let condition = (0..6u8, comparison()).prop_map(|(argument, test)| Condition { argument, test });
    let action = prop_oneof![
        Just(Action::Allow),
        Just(Action::Log),
        (1..200u16).prop_map(Action::Errno),
        Just(Action::Trap),
        Just(Action::KillProcess)
    ];
    (proptest::collection::vec(condition, 0..4), action).prop_map(|(conditions, action)| Rule { conditions, action })
}

proptest! {
    #[test]
    fn a_filter_does_what_its_rules_say(
        rules in proptest::collection::btree_map(
            proptest::sample::select(vec!["read", "write", "openat", "socket", "clone", "ioctl", "personality", "mmap"]),
            proptest::collection::vec(rule(), 1..5), 1..8),
        arguments in proptest::array::uniform6(prop_oneof![any::<u64>(), 0..4u64, Just(1 << 32)]),
    ) {
        let rules = rules.into_iter().map(|(name, rules)| (name.to_owned(), rules)).collect();
        let profile = Resolved { default_action: Action::Errno(1), arches: vec![Arch::X86_64, Arch::X86], rules };
        let program = compile(&profile).unwrap();
        for name in profile.rules.keys() {
            for arch in [Arch::X86_64, Arch::X86] {
                let call = call(arch, name, arguments);
                prop_assert_eq!(run(&program, call), value(expected(&profile, name, call)), "{} on {:?}", name, arch);
            }
        }
    }
}
