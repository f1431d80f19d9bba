//! The device controller of v2: a program that the kernel asks for every access to a device.

use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::sys::{Instruction, attach_device_program, load_device_program};
use super::{CgroupError, DeviceRule};

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const JUMP_UNEQUAL: u8 = 0x55;
const JUMP_UNEQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// Registers: the verdict, what was asked (later scratch), kind, access, major, minor.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;

/// More than a container with all devices of a big host needs; the kernel's own limit is higher.
const MOST: usize = 4096;

/// Lets the processes of a cgroup use those devices and no others.
pub(super) fn attach(dir: &Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    if rules.contains(&DeviceRule::everything()) {
        return Ok(());
    }
    let failed = |source: nix::Error| CgroupError::DeviceFilter { path: dir.to_owned(), source: source.into() };
    let program = compile(rules);
    if program.len() > MOST {
        return Err(failed(nix::Error::E2BIG));
    }
    let cgroup = open(dir, OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
    // the cgroup holds the program from here on
    let program = load_device_program(&program).map_err(failed)?;
    attach_device_program(cgroup.as_fd(), program.as_fd()).map_err(failed)
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    let (offset, value) = (offset.to_ne_bytes(), value.to_ne_bytes());
    // which half holds which register depends on the byte order, and ours are little-endian
    [code, to | from << 4, offset[0], offset[1], value[0], value[1], value[2], value[3]]
}

/// The first rule that fits allows; none forbids.
fn compile(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        program.extend(one(rule));
    }
    program.extend([instruction(MOVE, VERDICT, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

/// A rule: tests, each of which leads behind the rule when it fails, then the permission.
fn one(rule: &DeviceRule) -> Vec<Instruction> {
    let mut tests: Vec<Vec<Instruction>> = Vec::new();
    let equal = |register: u8, value: i32| vec![instruction(JUMP_UNEQUAL, register, 0, 0, value)];
    match rule.kind {
        'b' => tests.push(equal(KIND, BLOCK)),
        'c' => tests.push(equal(KIND, CHARACTER)),
        _ => {}
    }
    let access = rule.access.chars().fold(0, |all, letter| match letter {
        'm' => all | MAKE,
        'r' => all | READ,
        'w' => all | WRITE,
        _ => all,
    });
    if access != ALL {
        // everything that is wanted has to be among what is allowed
        tests.push(vec![
            instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0),
            instruction(AND, SCRATCH, 0, 0, access),
            instruction(JUMP_UNEQUAL_REGISTER, SCRATCH, ACCESS, 0, 0),
        ]);
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            // numbers have 12 and 20 bits
            tests.push(equal(register, i32::try_from(number).unwrap_or(i32::MAX)));
        }
    }
    let mut code: Vec<Instruction> = tests.into_iter().flatten().collect();
    code.extend([instruction(MOVE, VERDICT, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    let end = code.len();
    for (at, instruction) in code.iter_mut().enumerate() {
        if matches!(instruction[0], JUMP_UNEQUAL | JUMP_UNEQUAL_REGISTER) {
            // a rule has fewer than a dozen instructions
            let behind = i16::try_from(end - at - 1).unwrap_or(0).to_ne_bytes();
            (instruction[2], instruction[3]) = (behind[0], behind[1]);
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's verdict, by a machine of our own for the few instructions there are.
    fn allows(rules: &[DeviceRule], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let program = compile(rules);
        let context = [(access << 16 | kind).cast_unsigned(), major, minor];
        let mut registers = [0u32; 6];
        let mut at = 0usize;
        loop {
            let [code, both, o0, o1, v0, v1, v2, v3] = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let offset = usize::try_from(i16::from_ne_bytes([o0, o1])).unwrap();
            let value = i32::from_ne_bytes([v0, v1, v2, v3]).cast_unsigned();
            at += 1;
            match code {
                LOAD_WORD => registers[to] = context[offset / 4],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                MOVE => registers[to] = value,
                MOVE_REGISTER => registers[to] = registers[from],
                JUMP_UNEQUAL if registers[to] != value => at += offset,
                JUMP_UNEQUAL_REGISTER if registers[to] != registers[from] => at += offset,
                JUMP_UNEQUAL | JUMP_UNEQUAL_REGISTER => {}
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn what_no_rule_allows_is_forbidden() {
        let rules = DeviceRule::defaults();
        assert!(allows(&rules, CHARACTER, READ | WRITE, 1, 3), "null");
        assert!(allows(&rules, CHARACTER, WRITE, 136, 77), "a terminal");
        assert!(allows(&rules, BLOCK, MAKE, 8, 0), "a node alone is harmless");
        assert!(!allows(&rules, BLOCK, READ, 8, 0), "a disk");
        assert!(!allows(&rules, CHARACTER, READ, 1, 1), "memory");
        assert!(!allows(&rules, BLOCK, READ, 1, 3), "another kind of that number");
        assert!(!allows(&[], CHARACTER, READ, 1, 3));
    }

    #[test]
    fn access_is_given_as_far_as_it_was_asked_for() {
        let rule = DeviceRule { kind: 'b', major: Some(8), minor: Some(1), access: "rm".to_owned() };
        let rules = [rule];
        assert!(allows(&rules, BLOCK, READ, 8, 1) && allows(&rules, BLOCK, READ | MAKE, 8, 1));
        assert!(!allows(&rules, BLOCK, WRITE, 8, 1) && !allows(&rules, BLOCK, READ | WRITE, 8, 1));
        assert!(!allows(&rules, BLOCK, READ, 8, 2) && !allows(&rules, BLOCK, READ, 9, 1));
    }

    /// On the host's own v2 tree, where there is one: also a hybrid host's has no controllers and takes programs.
    #[test]
    fn the_kernel_takes_the_program_and_keeps_to_it() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let tree = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let (Some(tree), true) = (tree, nix::unistd::geteuid().is_root()) else {
            return eprintln!("skipped: needs root and a tree of cgroup v2");
        };
        let dir = Path::new(tree).join(format!("nodeagent-filter-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let rules = [DeviceRule { kind: 'c', major: Some(1), minor: Some(3), access: "rw".to_owned() }];
        attach(&dir, &rules).unwrap();
        // one process after the other: the shell joins, the rest is under the filter
        let script = format!("echo $$ > {}/cgroup.procs && echo x > /dev/null && ! head -c1 /dev/zero", dir.display());
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        std::fs::remove_dir(&dir).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("Operation not permitted"), "{said}");
    }
}
