//! What a run will do, as a value.
//!
//! A resource observes the host and answers with an [`Outcome`]. A change is a list of primitive, idempotent
//! [`Action`]s; the engine journals an [`Undo`] for each before it executes it. Because all of this is data, a plan can
//! be printed, hashed, compared, stored in the journal and carried out by one piece of code for all kinds.

mod undo;

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use undo::{SavedFile, Undo};

use crate::config::join::TokenSource;
use crate::host::firewall::FirewallEntry;

/// Name of a resource: `kind/name`, or the kind alone where a host has only one (`swap`).
///
/// `kernel-module/overlay`, `sysctl/net.ipv4.ip_forward`, `file//etc/crictl.yaml`, `unit/kubelet.service`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceId(String);

/// Why a text is no [`ResourceId`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("invalid resource id {text:?}: want KIND or KIND/NAME, the kind in lower-case letters, digits and dashes")]
pub struct InvalidResourceId {
    /// What was given.
    pub text: String,
}

impl ResourceId {
    /// The resource `name` of `kind`. `kind` is a constant of the code, `name` comes from validated settings.
    pub fn new(kind: &str, name: &str) -> ResourceId {
        ResourceId(format!("{kind}/{name}"))
    }

    /// A kind of which a host has one.
    pub fn single(kind: &str) -> ResourceId {
        ResourceId(kind.to_owned())
    }

    /// The part before the first slash.
    pub fn kind(&self) -> &str {
        self.0.split_once('/').map_or(self.0.as_str(), |(kind, _)| kind)
    }

    /// The part after the first slash; empty for a single resource.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ResourceId {
    type Err = InvalidResourceId;

    fn from_str(text: &str) -> Result<ResourceId, InvalidResourceId> {
        let kind = text.split_once('/').map_or(text, |(kind, _)| kind);
        let kind_is_plain = kind.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let name_is_empty = text.ends_with('/') && text.len() == kind.len() + 1;
        if kind.is_empty() || !kind_is_plain || name_is_empty || text.chars().any(char::is_control) {
            return Err(InvalidResourceId { text: text.to_owned() });
        }
        Ok(ResourceId(text.to_owned()))
    }
}

impl TryFrom<String> for ResourceId {
    type Error = InvalidResourceId;

    fn try_from(text: String) -> Result<ResourceId, InvalidResourceId> {
        text.parse()
    }
}

impl From<ResourceId> for String {
    fn from(id: ResourceId) -> String {
        id.0
    }
}

/// Which unit of the boot may do the work. A stage does its own resources and those of the stages before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Before sysinit.target, on every boot: local things only, no network, no package manager.
    Early,
    /// Before the runtime and the kubelet: it must not wait for a unit that is ordered after it.
    Prepare,
    /// After the runtime: everything.
    Activate,
}

impl Stage {
    /// As it is written on command lines and in reports.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Early => "early",
            Stage::Prepare => "prepare",
            Stage::Activate => "activate",
        }
    }
}

/// What a resource has found and wants done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// The host is as it should be.
    Converged {
        /// Something worth saying all the same.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// Something has to be done.
    Change(Change),
    /// Nothing is wrong, but the final state depends on somebody else (a kubelet before its join).
    Waiting {
        /// What it waits for.
        reason: String,
    },
    /// The desired state cannot be reached from here.
    Blocked {
        /// What stands in the way.
        reason: String,
        /// What a person can do about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fix: Option<String>,
    },
    /// Somebody else changed what we own since we applied it, on purpose as far as we can tell.
    Conflict {
        /// Who or what differs.
        reason: String,
    },
}

impl Outcome {
    /// The host is as it should be, and there is nothing to add.
    pub fn converged() -> Outcome {
        Outcome::Converged { note: None }
    }

    /// The change, where there is one.
    pub fn change(&self) -> Option<&Change> {
        match self {
            Outcome::Change(change) => Some(change),
            _ => None,
        }
    }
}

/// What one resource wants done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Whose change this is.
    pub id: ResourceId,
    /// Why it is needed.
    pub reason: Reason,
    /// One line for people: "load overlay and keep it loaded".
    pub summary: String,
    /// Old and new, for people.
    pub diffs: Vec<Diff>,
    /// What is executed, in this order.
    pub actions: Vec<Action>,
    /// What has to follow, once per transaction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<Notify>,
    /// Why the change is only whole after a reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<String>,
}

/// Why a change is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// It is not there yet.
    Missing,
    /// It is there, but not as the config wants it.
    Different,
    /// It was as we left it, and is not any more.
    Drifted {
        /// What we had applied.
        last: Option<String>,
    },
    /// It is right on disk, but what runs has not taken it up yet.
    Stale,
    /// Somebody else's setting wins over ours.
    Overridden {
        /// The file or unit that wins.
        by: String,
    },
    /// The config does not want it any more.
    Unwanted,
}

/// Old and new of one thing, for people. Never executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "diff", rename_all = "kebab-case")]
pub enum Diff {
    /// A value.
    Value {
        /// Its name.
        what: String,
        /// What it is.
        old: Option<String>,
        /// What it will be.
        new: Option<String>,
    },
    /// A file's text.
    File {
        /// Absolute path on the host.
        path: String,
        /// Its text; none when the file does not exist or is no text.
        old: Option<String>,
        /// Its text afterwards; none when it goes away.
        new: Option<String>,
        /// Never print the text.
        #[serde(default)]
        secret: bool,
    },
}

/// What has to happen after a change; the engine collapses equal ones within a transaction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "notify", content = "unit", rename_all = "kebab-case")]
pub enum Notify {
    /// systemd reads its units again, before any unit is started or restarted.
    DaemonReload,
    /// udev reads its rules again.
    ReloadUdev,
    /// dnf forgets what it knows about repositories.
    ReloadDnfCache,
    /// The unit reads its files again, if it runs then.
    ReloadUnit(String),
    /// The unit is restarted at the end, if it runs then and was not started in the same transaction.
    RestartUnit(String),
}

/// The primitive things the agent can do to a host. All are idempotent: doing one twice is doing it once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// The file has this text, mode and owner afterwards; parent directories are made.
    WriteFile {
        /// Absolute path on the host.
        path: String,
        /// Its whole text.
        content: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// The text is never printed or logged.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        secret: bool,
    },
    /// The file or link is not there afterwards.
    RemoveFile {
        /// Absolute path on the host.
        path: String,
    },
    /// The path is a symbolic link to `target` afterwards.
    Symlink {
        /// Absolute path on the host.
        path: String,
        /// What it points to, as written into the link.
        target: String,
    },
    /// The directory exists afterwards, with this mode and owner.
    MakeDirectory {
        /// Absolute path on the host.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The kernel module is loaded.
    LoadModule {
        /// Its name.
        name: String,
    },
    /// The kernel parameter has this value.
    WriteSysctl {
        /// Dotted name.
        key: String,
        /// As it would be written with sysctl.
        value: String,
    },
    /// SELinux enforces, or only reports, from now on.
    SetEnforce {
        /// Enforcing or permissive.
        enforcing: bool,
    },
    /// A boolean of the SELinux policy is on or off, now and at boot.
    SetBoolean {
        /// Its name.
        name: String,
        /// On or off.
        on: bool,
    },
    /// These files and directories, not what is below them, have the SELinux labels that the policy's rules say.
    Relabel {
        /// Absolute paths on the host.
        paths: Vec<String>,
    },
    /// Something is done to a systemd unit.
    Unit {
        /// Its full name.
        unit: String,
        /// What.
        op: UnitOp,
        /// Wait for the job and check the result; otherwise it is only enqueued.
        wait: bool,
    },
    /// systemd reads its units again.
    DaemonReload,
    /// udev reads its rules again.
    ReloadUdev,
    /// dnf drops its cached metadata.
    DnfCleanMetadata,
    /// A dnf transaction.
    Dnf {
        /// What.
        op: DnfOp,
        /// Package specs (`name`, `name-version-release`).
        packages: Vec<String>,
        /// Further arguments (`--disableexcludes=kubernetes`).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        options: Vec<String>,
    },
    /// The kernel does not swap there any more.
    Swapoff {
        /// Device or file as in /proc/swaps.
        device: String,
    },
    /// The repository answers: its metadata is fetched anew. Changes nothing that counts.
    ProbeRepository {
        /// Its id.
        repo: String,
    },
    /// firewalld, which runs, lets it through.
    OpenFirewall {
        /// What.
        entry: FirewallEntry,
    },
    /// firewalld's zone of interfaces that are in none.
    DefaultZone {
        /// Its name.
        zone: String,
    },
    /// The node is a member of its cluster. There is no way back but a reset.
    Kubeadm {
        /// By joining it, or by being the first.
        verb: KubeadmVerb,
        /// kubeadm's config, with marks in the places of secrets.
        config: String,
        /// Where the bootstrap token is; it is read at the last moment and written into no journal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<TokenSource>,
        /// Where the key of the cluster's certificates is; likewise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        certificate_key: Option<TokenSource>,
        /// How long kubeadm may take.
        seconds: u64,
    },
    /// The runtime has no pods afterwards.
    RemovePods {
        /// Its CRI socket.
        socket: String,
    },
    /// Nothing is mounted below the directory afterwards.
    UnmountBelow {
        /// Absolute path on the host.
        path: String,
    },
    /// The file, link or directory is not there afterwards, nor what was in it. There is no way back.
    RemoveTree {
        /// Absolute path on the host.
        path: String,
    },
    /// Something that the agent did before is taken back.
    TakeBack {
        /// How.
        undo: Undo,
    },
}

/// How a node comes into a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KubeadmVerb {
    /// `kubeadm init`
    Init,
    /// `kubeadm join`
    Join,
}

impl KubeadmVerb {
    /// kubeadm's word.
    pub fn word(self) -> &'static str {
        match self {
            KubeadmVerb::Init => "init",
            KubeadmVerb::Join => "join",
        }
    }
}

/// What can be done to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UnitOp {
    /// Started at boot.
    Enable,
    /// Not started at boot.
    Disable,
    /// Cannot be started at all.
    Mask,
    /// Can be started again.
    Unmask,
    /// Active.
    Start,
    /// Inactive.
    Stop,
    /// Active, with a new main process.
    Restart,
    /// As restart, but an inactive unit stays inactive.
    TryRestart,
    /// It reads its files again; an inactive unit stays inactive.
    TryReload,
}

impl UnitOp {
    /// For people.
    pub fn verb(self) -> &'static str {
        match self {
            UnitOp::Enable => "enable",
            UnitOp::Disable => "disable",
            UnitOp::Mask => "mask",
            UnitOp::Unmask => "unmask",
            UnitOp::Start => "start",
            UnitOp::Stop => "stop",
            UnitOp::Restart => "restart",
            UnitOp::TryRestart => "try to restart",
            UnitOp::TryReload => "try to reload",
        }
    }
}

/// Kinds of dnf transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DnfOp {
    /// Install, or bring to the version asked for.
    Install,
    /// Bring installed packages to the newest version.
    Upgrade,
    /// Remove.
    Remove,
}
