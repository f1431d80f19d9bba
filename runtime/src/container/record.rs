//! What is known of a container.

use nodeagent_cri_api::{ContainerConfig, LinuxContainerResources};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::cdi::Hook;
use crate::cgroup::{CgroupPath, DeviceRule};
use crate::state::as_base64;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being made; nobody was told its id yet, so a new daemon undoes it.
    Creating,
    /// Everything is there but the process.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process ended, or could not be started.
    Exited,
}

/// Why a container is not running any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// The kernel killed a process of it for want of memory.
    OOMKilled,
    /// Its program could not be executed.
    StartError,
    /// The pod's supervisor died.
    ShimLost,
    /// The host was started anew.
    HostRestarted,
}

impl Reason {
    /// As kubelet and people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Completed => "Completed",
            Reason::Error => "Error",
            Reason::OOMKilled => "OOMKilled",
            Reason::StartError => "StartError",
            Reason::ShimLost => "ShimLost",
            Reason::HostRestarted => "HostRestarted",
        }
    }
}

/// Exit code of a container whose end nobody saw.
pub const UNSEEN_EXIT: i32 = 255;

/// Its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, 128 + signal.
    pub code: i32,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

/// The user a container runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The group id, then supplementary ones.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Programs that are run on the host for a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outside {
    /// In the order in which they were described.
    pub hooks: Vec<Hook>,
    /// What each reads, but for what changes.
    pub state: Map<String, Value>,
}

/// What is known of a container, in memory and on disk; what to launch is kept apart, since it never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// 64 lower-case hex digits.
    pub id: String,
    /// Its pod.
    pub sandbox: String,
    /// The runtime that makes it; empty for ours.
    #[serde(default)]
    pub handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where it is in its life.
    pub phase: Phase,
    /// As it was asked for.
    #[serde(with = "as_base64")]
    pub config: ContainerConfig,
    /// Its image.
    pub image_id: String,
    /// Its image as a digest that can be pulled, else the id.
    pub image_ref: String,
    /// Images that it mounts as volumes, by their ids, in the order of their mounts.
    #[serde(default)]
    pub image_volumes: Vec<String>,
    /// Its cgroup.
    pub cgroup: CgroupPath,
    /// Limits as they are now.
    #[serde(with = "as_base64")]
    pub resources: LinuxContainerResources,
    /// Devices that it may use, where its cgroup is made with its process.
    #[serde(default)]
    pub device_rules: Vec<DeviceRule>,
    /// Programs to be run on the host at its start and after its end.
    #[serde(default)]
    pub hooks: Outside,
    /// Who runs in it.
    pub user: User,
    /// Signal number of a polite stop.
    pub stop_signal: i32,
    /// Absolute path of the log, if there is one.
    #[serde(default)]
    pub log_path: String,
    /// First process while it runs.
    #[serde(default)]
    pub pid: i32,
    /// Nanoseconds since the epoch, 0 before.
    #[serde(default)]
    pub started_at: i64,
    /// Its end.
    #[serde(default)]
    pub exit: Option<Exit>,
}

impl ContainerRecord {
    /// Records the end.
    pub fn end(&mut self, exit: Exit) {
        self.phase = Phase::Exited;
        self.pid = 0;
        self.exit = Some(exit);
    }

    /// Whether this is the container that the name and the attempt of `config` mean.
    pub fn is_named(&self, config: &ContainerConfig) -> bool {
        self.config.metadata == config.metadata
    }
}
