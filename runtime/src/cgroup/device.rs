//! Rules of the device controller.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One kind of devices a container may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// `a`, `c` or `b`.
    pub kind: char,
    /// None for all.
    pub major: Option<u32>,
    /// None for all.
    pub minor: Option<u32>,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}

impl DeviceRule {
    /// Any device, every access: what a privileged container has.
    pub fn everything() -> Self {
        DeviceRule { kind: 'a', major: None, minor: None, access: "rwm".to_owned() }
    }

    /// What every container has: nodes may be made, and the harmless ones used.
    pub fn defaults() -> Vec<Self> {
        let any = |kind| DeviceRule { kind, major: None, minor: None, access: "m".to_owned() };
        let one = |major, minor| DeviceRule { kind: 'c', major: Some(major), minor, access: "rwm".to_owned() };
        // null, zero, full, tty, random, urandom, console, ptmx, and every pts
        let harmless = [(1, 3), (1, 5), (1, 7), (5, 0), (1, 8), (1, 9), (5, 1), (5, 2)];
        let mut rules = vec![any('c'), any('b')];
        rules.extend(harmless.map(|(major, minor)| one(major, Some(minor))));
        rules.push(one(136, None));
        rules
    }
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(f, "{} {}:{} {}", self.kind, part(self.major), part(self.minor), self.access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_written_as_the_kernel_reads_them() {
        assert_eq!(DeviceRule::everything().to_string(), "a *:* rwm");
        let lines: Vec<String> = DeviceRule::defaults().iter().map(ToString::to_string).collect();
        assert_eq!(lines[0], "c *:* m");
        assert!(lines.contains(&"c 1:3 rwm".to_owned()));
        assert!(lines.contains(&"c 136:* rwm".to_owned()));
    }
}
