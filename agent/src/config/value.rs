//! Validated values: what a setting may be. Each parses from a string and says in its error what would be accepted.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a text is not the value that is wanted. The text itself is added by the caller, which knows the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub String);

fn invalid<T>(text: impl Into<String>) -> Result<T, InvalidValue> {
    Err(InvalidValue(text.into()))
}

/// `Deserialize` through `FromStr`, with a type error that shows how the value is written.
macro_rules! deserialize_from_text {
    ($name:ident, $want:literal) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($want)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
pub(super) use deserialize_from_text;

/// A newtype over a string that only its parser can make.
macro_rules! text_value {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidValue;

            fn try_from(text: String) -> Result<$name, InvalidValue> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}

text_value! {
    /// Name of a kernel module, as modprobe takes it.
    ModuleName
}

impl FromStr for ModuleName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<ModuleName, InvalidValue> {
        // 55 is the kernel's MODULE_NAME_LEN without the terminator
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if text.is_empty() || text.len() > 55 || !plain || text.starts_with('-') {
            return invalid(format!("{text:?} is no module name (letters, digits, _ and -, at most 55)"));
        }
        Ok(ModuleName(text.to_owned()))
    }
}

text_value! {
    /// Dotted name of a kernel parameter. Slashes are allowed, as in sysctl.d: they keep dots inside an interface's name.
    SysctlKey
}

impl FromStr for SysctlKey {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<SysctlKey, InvalidValue> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b'_' | b'-' | b':' | b'@');
        let parts = text.split(['.', '/']);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(plain) || parts.into_iter().any(str::is_empty) {
            return invalid(format!("{text:?} is no kernel parameter; want a name such as net.ipv4.ip_forward"));
        }
        Ok(SysctlKey(text.to_owned()))
    }
}

text_value! {
    /// Full name of a systemd unit.
    UnitName
}

/// The types of unit that can be managed.
const UNIT_SUFFIXES: [&str; 7] = ["service", "socket", "timer", "path", "target", "mount", "swap"];

impl FromStr for UnitName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<UnitName, InvalidValue> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.' | b'\\' | b'@');
        let Some((stem, suffix)) = text.rsplit_once('.') else {
            return invalid(format!("{text:?} has no type; did you mean \"{text}.service\"?"));
        };
        if !UNIT_SUFFIXES.contains(&suffix) {
            return invalid(format!("{text:?} is no unit of a known type (.{})", UNIT_SUFFIXES.join(", .")));
        }
        if stem.is_empty() || text.len() > 255 || !text.bytes().all(plain) {
            return invalid(format!("{text:?} is no unit name"));
        }
        Ok(UnitName(text.to_owned()))
    }
}

text_value! {
    /// Absolute path on the host, without `.`, `..` or double slashes.
    HostPath
}

impl FromStr for HostPath {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<HostPath, InvalidValue> {
        let Some(rest) = text.strip_prefix('/') else {
            return invalid(format!("{text:?} is not absolute; a path starts with /"));
        };
        if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return invalid(format!("{text:?} must be a plain path: no empty parts, no . and no .."));
        }
        if text.len() > 4095 || text.chars().any(char::is_control) {
            return invalid(format!("{text:?} is too long or has control characters"));
        }
        Ok(HostPath(text.to_owned()))
    }
}

text_value! {
    /// A package as dnf takes it: `name`, `name-version` or `name-version-release`, without options and globs.
    PackageSpec
}

impl FromStr for PackageSpec {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<PackageSpec, InvalidValue> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+' | b':' | b'~' | b'^');
        if text.is_empty() || text.len() > 255 || text.starts_with('-') || !text.bytes().all(plain) {
            return invalid(format!("{text:?} is no package (name or name-version-release; no globs, no options)"));
        }
        Ok(PackageSpec(text.to_owned()))
    }
}

text_value! {
    /// Id of a dnf repository: the name of its section and of its file.
    RepoId
}

impl FromStr for RepoId {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<RepoId, InvalidValue> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
        if text.is_empty() || text.len() > 200 || !text.bytes().all(plain) || text.starts_with(['.', '-']) {
            return invalid(format!("{text:?} is no repository id (letters, digits, . _ - :)"));
        }
        Ok(RepoId(text.to_owned()))
    }
}

text_value! {
    /// Name of a node: a lower-case RFC 1123 subdomain.
    NodeName
}

impl FromStr for NodeName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<NodeName, InvalidValue> {
        let label = |part: &str| {
            let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            !part.is_empty()
                && part.len() <= 63
                && part.bytes().all(inside)
                && !part.starts_with('-')
                && !part.ends_with('-')
        };
        if text.len() > 253 || !text.split('.').all(label) {
            return invalid(format!(
                "{text:?} is no node name: want a lower-case DNS name (letters, digits, - and dots, at most 253)"
            ));
        }
        Ok(NodeName(text.to_owned()))
    }
}

text_value! {
    /// An http, https or file URL. `$` is allowed: dnf has variables of its own.
    Url
}

impl FromStr for Url {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Url, InvalidValue> {
        let rest = ["https://", "http://", "file:///"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let plain = text.bytes().all(|b| b.is_ascii_graphic());
        match rest {
            Some(rest) if !rest.is_empty() && plain && text.len() <= 2048 => Ok(Url(text.to_owned())),
            _ => invalid(format!("{text:?} is no URL; it starts with https://, http:// or file:///")),
        }
    }
}

/// Permission bits of a file, written as octal text: `"0644"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "String")]
#[schemars(try_from = "String")]
pub struct FileMode(u32);

deserialize_from_text!(FileMode, "octal digits in quotes, such as \"0644\"");

impl FileMode {
    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for FileMode {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<FileMode, InvalidValue> {
        match u32::from_str_radix(text, 8) {
            Ok(bits) if bits <= 0o7777 && (3..=5).contains(&text.len()) => Ok(FileMode(bits)),
            _ => invalid(format!("{text:?} is no file mode; write octal digits in quotes, such as \"0644\"")),
        }
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> String {
        format!("{:04o}", mode.0)
    }
}

/// A time span with its unit: `"90s"`, `"5m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(into = "String")]
#[schemars(try_from = "String")]
pub struct Span(Duration);

deserialize_from_text!(Span, "a number with its unit in quotes, such as \"90s\"");

/// Units of [`Span`] in milliseconds, longest name first so that `ms` is not read as `m`.
const SPAN_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl Span {
    /// A whole number of seconds.
    pub const fn seconds(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    /// As the standard library wants it.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Span, InvalidValue> {
        let units = "ms, s, m, h or d";
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let Ok(number) = number.parse::<u64>() else {
            return invalid(format!("{text:?} is no time span; write a number and one of {units}, such as \"90s\""));
        };
        if unit.is_empty() {
            return invalid(format!("{text:?} has no unit; write one of {units}, such as \"{number}s\""));
        }
        let factor = SPAN_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        match factor.and_then(|factor| number.checked_mul(factor)) {
            // a year bounds every timeout that makes sense on a node
            Some(ms) if ms <= 366 * 86_400_000 => Ok(Span(Duration::from_millis(ms))),
            Some(_) => invalid(format!("{text:?} is more than a year")),
            None => invalid(format!("{text:?} has the unknown unit {unit:?}; write one of {units}")),
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        let ms = span.0.as_millis();
        let (unit, factor) = SPAN_UNITS
            .iter()
            .rev()
            .find(|(_, factor)| ms.is_multiple_of(u128::from(*factor)))
            .unwrap_or(&SPAN_UNITS[0]);
        format!("{}{unit}", ms / u128::from(*factor))
    }
}

/// A text that is used but never shown: `Debug`, `Display` and `Serialize` all say `***`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself; every use of this is a place to look at in review.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}
