//! Compiles a resolved profile to classic BPF, without libseccomp.
//!
//! ```text
//! load arch ─► per architecture: load number ─► binary search over ranges of numbers with one and the same treatment
//!                                                └► leaf: return, or test arguments and then return
//! unknown architecture ─► kill the process
//! ```
//!
//! A syscall that is newer than the profile fails with ENOSYS instead of the default error, so that programs fall back
//! as on an old kernel; "newer" is what lies above the highest number that the profile names on that architecture.

use super::arch::{Arch, X32_BIT};
use super::profile::{Action, Condition, Resolved, Rule, Test};

/// One instruction, `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the test holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// `BPF_LD | BPF_W | BPF_ABS`
pub(super) const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`
pub(super) const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`
pub(super) const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`
pub(super) const EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`
pub(super) const GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`
pub(super) const GREATER_EQUAL: u16 = 0x35;
/// `BPF_RET | BPF_K`
pub(super) const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const ENOSYS: u16 = 38;

/// The kernel takes no longer filter (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Why a profile cannot be compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("seccomp filter of {0} instructions: the kernel takes {MAX_INSTRUCTIONS}")]
pub struct TooLong(pub usize);

/// Compiles a profile. The result depends on nothing but the profile.
pub fn compile(profile: &Resolved) -> Result<Vec<Instruction>, TooLong> {
    let mut program = vec![statement(LOAD, ARCH)];
    let mut audits: Vec<u32> = profile.arches.iter().map(|arch| arch.audit()).collect();
    audits.dedup();
    for audit in audits {
        let block = machine_block(profile, audit);
        program.push(jump(EQUAL, audit, 1, 0));
        program.push(statement(JUMP, length(&block)));
        program.extend(block);
    }
    program.push(statement(RETURN, value(Action::KillProcess)));
    if program.len() > MAX_INSTRUCTIONS { Err(TooLong(program.len())) } else { Ok(program) }
}

/// Everything for one `AUDIT_ARCH`; x86-64 and x32 share one, and differ in bit 30 of the number.
fn machine_block(profile: &Resolved, audit: u32) -> Vec<Instruction> {
    let mut ranges = Vec::new();
    let arches: Vec<Arch> = [Arch::X86_64, Arch::X32, Arch::X86, Arch::Aarch64, Arch::Arm]
        .into_iter()
        .filter(|arch| arch.audit() == audit)
        .collect();
    for arch in arches {
        if profile.arches.contains(&arch) {
            ranges.extend(arch_ranges(profile, arch));
        } else if arch == Arch::X32 {
            // the numbers exist whether or not the profile knows x32; they must not pass as large x86-64 numbers
            ranges.push(Range { from: X32_BIT, treatment: Treatment::flat(Action::KillProcess) });
        }
    }
    merge(&mut ranges);
    let mut block = vec![statement(LOAD, NUMBER)];
    search(&ranges, &mut block);
    block
}

/// Numbers from here to the next range are treated alike.
#[derive(Debug, Clone, PartialEq)]
struct Range {
    from: u32,
    treatment: Treatment,
}

/// Conditional rules in order, then what happens when none applies.
#[derive(Debug, Clone, PartialEq)]
struct Treatment {
    rules: Vec<Rule>,
    otherwise: Action,
}

impl Treatment {
    fn flat(action: Action) -> Treatment {
        Treatment { rules: Vec::new(), otherwise: action }
    }

    /// An unconditional rule ends the list; what comes after it can never apply.
    fn of(rules: &[Rule], default: Action) -> Treatment {
        match rules.iter().position(|rule| rule.conditions.is_empty()) {
            // whatever else is said of the call, somebody allows or forbids it always
            Some(at) => {
                Treatment { rules: keep_different(&rules[..at], rules[at].action), otherwise: rules[at].action }
            }
            None => Treatment { rules: keep_different(rules, default), otherwise: default },
        }
    }
}

/// Conditions whose outcome is what happens anyway need no code, as long as nothing after them differs.
fn keep_different(rules: &[Rule], otherwise: Action) -> Vec<Rule> {
    let needed = rules.iter().rposition(|rule| rule.action != otherwise).map_or(0, |last| last + 1);
    rules[..needed].to_vec()
}

fn arch_ranges(profile: &Resolved, arch: Arch) -> Vec<Range> {
    let mut known: Vec<(u32, Treatment)> = profile
        .rules
        .iter()
        .filter_map(|(name, rules)| Some((arch.number(name)?, Treatment::of(rules, profile.default_action))))
        .collect();
    known.sort_by_key(|(number, _)| *number);
    // two names of one call (e.g. umount and umount2 elsewhere): the first by name counts
    known.dedup_by_key(|(number, _)| *number);
    let first = if arch == Arch::X32 { X32_BIT } else { 0 };
    let mut ranges = Vec::with_capacity(2 * known.len() + 2);
    let mut next = first;
    for (number, treatment) in known {
        if number > next {
            ranges.push(Range { from: next, treatment: Treatment::flat(profile.default_action) });
        }
        ranges.push(Range { from: number, treatment });
        next = number + 1;
    }
    let newer = match profile.default_action {
        Action::Errno(_) => Action::Errno(ENOSYS),
        other => other,
    };
    ranges.push(Range { from: next, treatment: Treatment::flat(newer) });
    ranges
}

/// Neighbours with the same treatment become one.
fn merge(ranges: &mut Vec<Range>) {
    ranges.dedup_by(|later, earlier| later.treatment == earlier.treatment);
}

/// Emits a binary search over `ranges`, with the number in the accumulator.
fn search(ranges: &[Range], out: &mut Vec<Instruction>) {
    match ranges {
        [] => out.push(statement(RETURN, value(Action::KillProcess))),
        [one] => leaf(&one.treatment, out),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let mut low = Vec::new();
            search(lower, &mut low);
            let pivot = upper.first().map_or(0, |range| range.from);
            match u8::try_from(low.len()) {
                Ok(skip) => out.push(jump(GREATER_EQUAL, pivot, skip, 0)),
                // too far for the eight bits of a test: over a long jump
                Err(_) => {
                    out.push(jump(GREATER_EQUAL, pivot, 0, 1));
                    out.push(statement(JUMP, length(&low)));
                }
            }
            out.extend(low);
            search(upper, out);
        }
    }
}

/// Emits the tests of one syscall. They load arguments, so the number is gone afterwards; a leaf always returns.
fn leaf(treatment: &Treatment, out: &mut Vec<Instruction>) {
    for rule in &treatment.rules {
        let mut body = vec![statement(RETURN, value(rule.action))];
        for condition in rule.conditions.iter().rev() {
            body = guarded(condition, body);
        }
        out.extend(body);
    }
    out.push(statement(RETURN, value(treatment.otherwise)));
}

/// `body` runs when the condition holds; otherwise it is skipped.
fn guarded(condition: &Condition, body: Vec<Instruction>) -> Vec<Instruction> {
    let low = ARGUMENTS + 8 * u32::from(condition.argument);
    let high = low + 4;
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    // to where a test goes, in the order of `out`; resolved once the lengths are known
    let mut code = Code::default();
    match condition.test {
        Test::Equal(value) => {
            let (upper, lower) = halves(value);
            code.load(high).test(EQUAL, upper, Goal::Next, Goal::Skip);
            code.load(low).test(EQUAL, lower, Goal::Body, Goal::Skip);
        }
        Test::NotEqual(value) => {
            let (upper, lower) = halves(value);
            code.load(high).test(EQUAL, upper, Goal::Next, Goal::Body);
            code.load(low).test(EQUAL, lower, Goal::Skip, Goal::Body);
        }
        Test::Greater(value) => code.ordered(high, low, halves(value), GREATER, Goal::Body, Goal::Skip),
        Test::GreaterOrEqual(value) => code.ordered(high, low, halves(value), GREATER_EQUAL, Goal::Body, Goal::Skip),
        Test::Less(value) => code.ordered(high, low, halves(value), GREATER_EQUAL, Goal::Skip, Goal::Body),
        Test::LessOrEqual(value) => code.ordered(high, low, halves(value), GREATER, Goal::Skip, Goal::Body),
        Test::MaskedEqual { mask, value } => {
            let ((mask_upper, mask_lower), (upper, lower)) = (halves(mask), halves(value));
            code.load(high).and(mask_upper).test(EQUAL, upper, Goal::Next, Goal::Skip);
            code.load(low).and(mask_lower).test(EQUAL, lower, Goal::Body, Goal::Skip);
        }
    }
    code.around(body)
}

/// Where a test goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Goal {
    /// The following instruction.
    Next,
    /// The guarded body.
    Body,
    /// Behind the body.
    Skip,
}

/// Instructions whose jumps are not resolved yet.
#[derive(Default)]
struct Code(Vec<(u16, u32, Goal, Goal)>);

impl Code {
    fn load(&mut self, offset: u32) -> &mut Code {
        self.0.push((LOAD, offset, Goal::Next, Goal::Next));
        self
    }

    fn and(&mut self, mask: u32) -> &mut Code {
        self.0.push((AND, mask, Goal::Next, Goal::Next));
        self
    }

    fn test(&mut self, code: u16, operand: u32, then: Goal, otherwise: Goal) {
        self.0.push((code, operand, then, otherwise));
    }

    /// Compares 64 bits in two halves: the upper one decides unless it is equal.
    fn ordered(&mut self, high: u32, low: u32, (upper, lower): (u32, u32), code: u16, then: Goal, otherwise: Goal) {
        self.load(high).test(GREATER, upper, then, Goal::Next);
        self.test(EQUAL, upper, Goal::Next, otherwise);
        self.load(low).test(code, lower, then, otherwise);
    }

    fn around(self, body: Vec<Instruction>) -> Vec<Instruction> {
        let count = self.0.len();
        // the body is a handful of instructions (five arguments tested at the most): always within eight bits
        let skip = body.len();
        let mut out: Vec<Instruction> = self
            .0
            .into_iter()
            .enumerate()
            .map(|(at, (code, k, then, otherwise))| {
                let distance = |goal: Goal| match goal {
                    Goal::Next => 0,
                    Goal::Body => short(count - at - 1),
                    Goal::Skip => short(count - at - 1 + skip),
                };
                Instruction { code, jt: distance(then), jf: distance(otherwise), k }
            })
            .collect();
        out.extend(body);
        out
    }
}

/// Jumps within one rule: six tests of at most five instructions each.
fn short(distance: usize) -> u8 {
    debug_assert!(distance <= 255);
    u8::try_from(distance).unwrap_or(u8::MAX)
}

fn length(block: &[Instruction]) -> u32 {
    u32::try_from(block.len()).unwrap_or(u32::MAX)
}

fn statement(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// `SECCOMP_RET_…` of linux/seccomp.h.
pub(super) fn value(action: Action) -> u32 {
    match action {
        Action::Allow => 0x7fff_0000,
        Action::Log => 0x7ffc_0000,
        Action::Trace(data) => 0x7ff0_0000 | u32::from(data),
        Action::Errno(number) => 0x0005_0000 | u32::from(number),
        Action::Trap => 0x0003_0000,
        Action::KillThread => 0,
        Action::KillProcess => 0x8000_0000,
    }
}

/// The filter as the kernel takes it, `struct sock_filter[]` in the machine's byte order.
pub fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 * program.len());
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_ne_bytes());
    }
    bytes
}
