//! How what was done is taken back.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::UnitOp;
use crate::host::firewall::FirewallEntry;

/// How one executed action is taken back. Captured before the action, so that it describes the host as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "undo", rename_all = "kebab-case")]
pub enum Undo {
    /// Put back what was at the path, or remove what is there now when nothing was.
    RestoreFile {
        /// Absolute path on the host.
        path: String,
        /// What was there.
        previous: Option<SavedFile>,
    },
    /// Remove the directory if it is empty.
    RemoveDirectory {
        /// Absolute path on the host.
        path: String,
    },
    /// Put the old value back.
    WriteSysctl {
        /// Dotted name.
        key: String,
        /// The old value.
        value: String,
    },
    /// Put the old mode back.
    SetEnforce {
        /// Enforcing or permissive.
        enforcing: bool,
    },
    /// Put the old value of the boolean back.
    SetBoolean {
        /// Its name.
        name: String,
        /// On or off.
        on: bool,
    },
    /// Put the old SELinux labels back.
    SetLabels {
        /// By absolute path on the host.
        labels: BTreeMap<String, String>,
    },
    /// The opposite operation on the unit.
    Unit {
        /// Its full name.
        unit: String,
        /// What takes the action back.
        op: UnitOp,
    },
    /// `dnf history undo`.
    DnfUndo {
        /// dnf's own number of the transaction.
        transaction: u64,
    },
    /// Swap there again.
    Swapon {
        /// Device or file.
        device: String,
    },
    /// Do not swap there any more.
    Swapoff {
        /// Device or file.
        device: String,
    },
    /// firewalld does not let it through any more.
    CloseFirewall {
        /// What.
        entry: FirewallEntry,
    },
    /// firewalld lets it through again.
    OpenFirewall {
        /// What.
        entry: FirewallEntry,
    },
    /// Another zone is the default again.
    DefaultZone {
        /// Its name.
        zone: String,
    },
    /// It cannot be taken back.
    Impossible {
        /// Why.
        reason: String,
    },
    /// There is nothing to take back.
    Nothing,
}

impl fmt::Display for Undo {
    /// What it does, for people: "remove /etc/x".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undo::RestoreFile { path, previous: None } => write!(f, "remove {path}"),
            Undo::RestoreFile { path, previous: Some(SavedFile::Regular { .. }) } => write!(f, "put {path} back"),
            Undo::RestoreFile { path, previous: Some(SavedFile::Link { target }) } => {
                write!(f, "make {path} a link to {target} again")
            }
            Undo::RemoveDirectory { path } => write!(f, "remove the directory {path} if it is empty"),
            Undo::WriteSysctl { key, value } => write!(f, "set {key} to {value}"),
            Undo::SetEnforce { enforcing: true } => f.write_str("have SELinux enforce again"),
            Undo::SetEnforce { enforcing: false } => f.write_str("have SELinux only report again"),
            Undo::SetBoolean { name, on } => {
                write!(f, "switch the SELinux boolean {name} {}", if *on { "on" } else { "off" })
            }
            Undo::SetLabels { labels } => {
                write!(f, "label {} as before", labels.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
            }
            Undo::Unit { unit, op } => write!(f, "{} {unit}", op.verb()),
            Undo::DnfUndo { transaction } => write!(f, "dnf history undo {transaction}"),
            Undo::Swapon { device } => write!(f, "swap on {device} again"),
            Undo::Swapoff { device } => write!(f, "not swap on {device} any more"),
            Undo::CloseFirewall { entry } => write!(f, "close the firewall for {entry}"),
            Undo::OpenFirewall { entry } => write!(f, "open the firewall for {entry}"),
            Undo::DefaultZone { zone } => write!(f, "make {zone} the firewall's default zone"),
            Undo::Impossible { reason } => write!(f, "(cannot be taken back: {reason})"),
            Undo::Nothing => f.write_str("(nothing)"),
        }
    }
}

/// A file as it was before a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "was", rename_all = "kebab-case")]
pub enum SavedFile {
    /// A regular file.
    Regular {
        /// Its bytes, in base64: a file that was there before us need not be text.
        content: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A symbolic link.
    Link {
        /// As written in the link.
        target: String,
    },
}

impl SavedFile {
    /// A regular file's bytes; a link has none.
    pub fn bytes(&self) -> Result<Vec<u8>, base64::DecodeError> {
        match self {
            SavedFile::Regular { content, .. } => BASE64.decode(content),
            SavedFile::Link { .. } => Ok(Vec::new()),
        }
    }
}
