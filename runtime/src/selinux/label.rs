//! One label: user, role, type, level.

use std::fmt;
use std::str::FromStr;

/// Longest part that a policy could have.
const MAX_PART: usize = 1024;

/// A label that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("SELinux {what} `{value}` is none")]
pub struct LabelError {
    /// Which part, or the whole.
    pub what: &'static str,
    /// As it was given.
    pub value: String,
}

/// A security context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// SELinux's user.
    pub user: String,
    /// Its role.
    pub role: String,
    /// Its type.
    pub kind: String,
    /// Sensitivity and categories.
    pub level: String,
}

impl Label {
    pub(super) fn usual(role: &str, kind: &str) -> Self {
        Label { user: "system_u".into(), role: role.into(), kind: kind.into(), level: "s0".into() }
    }

    /// A part with a colon would shift the others, and one with a quote would end a mount option.
    pub(super) fn check(&self) -> Result<(), LabelError> {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let parts = [("user", &self.user), ("role", &self.role), ("type", &self.kind), ("level", &self.level)];
        for (what, value) in parts {
            let allowed = |c: char| word(c) || (what == "level" && matches!(c, ':' | ','));
            if value.is_empty() || value.len() > MAX_PART || !value.chars().all(allowed) {
                return Err(LabelError { what, value: value.clone() });
            }
        }
        Ok(())
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let wrong = || LabelError { what: "label", value: text.to_owned() };
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let mut next = || parts.next().ok_or_else(wrong);
        let label = Label { user: next()?, role: next()?, kind: next()?, level: next()? };
        label.check()?;
        Ok(label)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.user, self.role, self.kind, self.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_they_are_written() {
        for text in ["system_u:object_r:container_file_t:s0:c1,c2", "u:r:t:s0-s15:c0.c1023"] {
            assert_eq!(text.parse::<Label>().unwrap().to_string(), text);
        }
        for text in ["", "u:r:t", "u:r:t:", "u:r:t:s0\0", "u:r:t t:s0"] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
    }
}
