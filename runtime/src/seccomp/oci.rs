//! A profile in the words of the OCI runtime specification, for runtimes that build their own filter.

use serde_json::{Value, json};

use super::arch::Arch;
use super::profile::{Action, Condition, Resolved, Test};

/// `linux.seccomp` of a profile in which nothing depends on anything any more.
pub fn document(resolved: &Resolved) -> Value {
    let mut syscalls = Vec::new();
    for (name, rules) in &resolved.rules {
        // the first that applies counts for us; libseccomp takes the default action for one that is said again
        for rule in rules.iter().filter(|rule| rule.action != resolved.default_action) {
            let mut entry = action(rule.action, "action", "errnoRet");
            entry["names"] = json!([name]);
            if !rule.conditions.is_empty() {
                entry["args"] = rule.conditions.iter().map(condition).collect();
            }
            syscalls.push(entry);
        }
    }
    let mut all = action(resolved.default_action, "defaultAction", "defaultErrnoRet");
    all["architectures"] = resolved.arches.iter().map(|arch| json!(architecture(*arch))).collect();
    all["syscalls"] = Value::Array(syscalls);
    all
}

fn architecture(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "SCMP_ARCH_X86_64",
        Arch::X86 => "SCMP_ARCH_X86",
        Arch::X32 => "SCMP_ARCH_X32",
        Arch::Aarch64 => "SCMP_ARCH_AARCH64",
        Arch::Arm => "SCMP_ARCH_ARM",
    }
}

fn action(action: Action, key: &str, errno_key: &str) -> Value {
    let (name, errno) = match action {
        Action::Allow => ("SCMP_ACT_ALLOW", None),
        Action::Log => ("SCMP_ACT_LOG", None),
        Action::Errno(errno) => ("SCMP_ACT_ERRNO", Some(errno)),
        Action::Trap => ("SCMP_ACT_TRAP", None),
        Action::Trace(errno) => ("SCMP_ACT_TRACE", Some(errno)),
        Action::KillThread => ("SCMP_ACT_KILL_THREAD", None),
        Action::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
    };
    let mut value = json!({ key: name });
    if let Some(errno) = errno {
        value[errno_key] = json!(errno);
    }
    value
}

fn condition(condition: &Condition) -> Value {
    let (op, value, second) = match condition.test {
        Test::NotEqual(value) => ("SCMP_CMP_NE", value, 0),
        Test::Less(value) => ("SCMP_CMP_LT", value, 0),
        Test::LessOrEqual(value) => ("SCMP_CMP_LE", value, 0),
        Test::Equal(value) => ("SCMP_CMP_EQ", value, 0),
        Test::GreaterOrEqual(value) => ("SCMP_CMP_GE", value, 0),
        Test::Greater(value) => ("SCMP_CMP_GT", value, 0),
        Test::MaskedEqual { mask, value } => ("SCMP_CMP_MASKED_EQ", mask, value),
    };
    json!({"index": condition.argument, "value": value, "valueTwo": second, "op": op})
}

#[cfg(test)]
mod tests {
    use super::super::profile::{Profile, Subject};
    use super::*;

    fn of(profile: &[u8], capabilities: &[&str]) -> Value {
        let has = |name: &str| capabilities.contains(&name);
        let subject = Subject { capabilities: &has, kernel: (6, 1), arch: Arch::X86_64 };
        document(&Profile::parse(profile).unwrap().resolve(&subject).unwrap())
    }

    #[test]
    fn what_is_written_means_the_same_when_it_is_read_again() {
        // the specification's form is a part of the one that profiles are written in
        let written = of(super::super::DEFAULT_PROFILE, &["CAP_SYS_CHROOT"]);
        let again = of(written.to_string().as_bytes(), &[]);
        assert_eq!(written, again);
        let names = written["syscalls"].as_array().unwrap();
        assert!(names.len() > 200 && names.iter().any(|entry| entry["names"][0] == "chroot"));
    }

    #[test]
    fn conditions_and_error_numbers_are_kept() {
        let profile = br#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
            {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":7,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["mount"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#;
        let expected = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": ["clone"],
                "args": [{"index": 0, "value": 7, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}],
        });
        assert_eq!(of(profile, &[]), expected, "a rule that says what the default says is refused by libseccomp");
    }
}
