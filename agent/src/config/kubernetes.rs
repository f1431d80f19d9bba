//! Values that only mean something to Kubernetes: its version, labels and taints.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::{InvalidValue, deserialize_from_text};

/// A Kubernetes version: `1.36`, or `1.36.2` where the patch is pinned too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(into = "String")]
#[schemars(try_from = "String")]
pub struct KubernetesVersion {
    minor: u32,
    patch: Option<u32>,
}

deserialize_from_text!(KubernetesVersion, "a version in quotes, such as \"1.36\"");

impl KubernetesVersion {
    /// The oldest minor that the tables know.
    pub const OLDEST_MINOR: u32 = 18;
    /// The newest minor that the tables know.
    pub const NEWEST_MINOR: u32 = 37;

    /// `36` of 1.36.
    pub fn minor(self) -> u32 {
        self.minor
    }

    /// `2` of 1.36.2; none follows the newest patch.
    pub fn patch(self) -> Option<u32> {
        self.patch
    }
}

impl FromStr for KubernetesVersion {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<KubernetesVersion, InvalidValue> {
        let numbers: Option<Vec<u32>> = text
            .strip_prefix('v')
            .unwrap_or(text)
            .split('.')
            .map(|part| if part.bytes().all(|b| b.is_ascii_digit()) { part.parse().ok() } else { None })
            .collect();
        let (minor, patch) = match numbers.as_deref() {
            Some([1, minor]) => (*minor, None),
            Some([1, minor, patch]) => (*minor, Some(*patch)),
            _ => {
                return Err(InvalidValue(format!("{text:?} is no Kubernetes version; want \"1.36\" or \"1.36.2\"")));
            }
        };
        if !(Self::OLDEST_MINOR..=Self::NEWEST_MINOR).contains(&minor) {
            return Err(InvalidValue(format!(
                "{text:?} is not supported; this version knows 1.{} to 1.{}",
                Self::OLDEST_MINOR,
                Self::NEWEST_MINOR
            )));
        }
        Ok(KubernetesVersion { minor, patch })
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.patch {
            Some(patch) => write!(f, "1.{}.{patch}", self.minor),
            None => write!(f, "1.{}", self.minor),
        }
    }
}

impl From<KubernetesVersion> for String {
    fn from(version: KubernetesVersion) -> String {
        version.to_string()
    }
}

/// `prefix/name` of a label or a taint.
pub fn check_qualified_name(text: &str) -> Result<(), InvalidValue> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let prefix_is_good = prefix.is_none_or(|prefix| prefix.parse::<super::value::NodeName>().is_ok());
    if !prefix_is_good || name.is_empty() || !is_label_text(name) {
        return Err(InvalidValue(format!("{text:?} is no label name; want NAME or DNS-PREFIX/NAME")));
    }
    Ok(())
}

/// The value of a label; empty is allowed.
pub fn check_label_value(text: &str) -> Result<(), InvalidValue> {
    if !is_label_text(text) {
        return Err(InvalidValue(format!(
            "{text:?} is no label value: at most 63 letters, digits, - _ . and a letter or digit at both ends"
        )));
    }
    Ok(())
}

fn is_label_text(text: &str) -> bool {
    let end = |c: Option<u8>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && end(text.bytes().next())
        && end(text.bytes().last())
}

/// `key=value:Effect` or `key:Effect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Taint {
    /// Qualified name.
    pub key: String,
    /// May be empty.
    pub value: String,
    /// What it does to pods.
    pub effect: TaintEffect,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // Kubernetes' own names
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

impl FromStr for Taint {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Taint, InvalidValue> {
        let shape = || InvalidValue(format!("{text:?} is no taint; want KEY=VALUE:EFFECT or KEY:EFFECT"));
        let (name, effect) = text.rsplit_once(':').ok_or_else(shape)?;
        let effect = match effect {
            "NoSchedule" => TaintEffect::NoSchedule,
            "PreferNoSchedule" => TaintEffect::PreferNoSchedule,
            "NoExecute" => TaintEffect::NoExecute,
            _ => {
                return Err(InvalidValue(format!(
                    "{text:?} has the unknown effect {effect:?}; want NoSchedule, PreferNoSchedule or NoExecute"
                )));
            }
        };
        let (key, value) = name.split_once('=').unwrap_or((name, ""));
        check_qualified_name(key)?;
        check_label_value(value)?;
        Ok(Taint { key: key.to_owned(), value: value.to_owned(), effect })
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{:?}", self.key, self.value, self.effect)
    }
}

impl TryFrom<String> for Taint {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Taint, InvalidValue> {
        text.parse()
    }
}

impl From<Taint> for String {
    fn from(taint: Taint) -> String {
        taint.to_string()
    }
}
