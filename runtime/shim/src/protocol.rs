//! What daemon and shim say to each other: a `u32` little-endian length, then one JSON value.
//!
//! The daemon is the client; the shim answers each [`Request`] with a [`Reply`] of the same `seq` and sends [`Event`]s
//! unasked. Shims outlive daemons and are met by newer ones after an update, so this protocol only ever grows:
//! new fields are optional with a default, unknown fields are ignored, an unknown request is answered with
//! [`ErrorKind::Unsupported`]. Transcripts of each release are replayed in tests.
//!
//! What comes in which order: [`Answer::Started`] before the [`Event::Exited`] of that container; of a container that
//! could not be started first its `Exited` (with exit code and message), then the error that answers the start. When
//! `Exited` is sent, no process of the container is left, its log is complete and its OOM kills have been counted: its
//! cgroups can be removed. Events go to all connections that have said hello.

use serde::{Deserialize, Serialize};

mod spec;

pub use spec::{
    Capabilities, Device, Hook, Hooks, LaunchSpec, Mount, OciRuntime, PidNamespace, Placement, ProcessSpec,
    Propagation, Rootfs,
};

/// Version of this protocol, said in [`Hello`]. Raised when a meaning changes, not when a field is added.
pub const VERSION: u32 = 1;

/// Largest frame either side accepts, in bytes: an `ExecSync` may return 16 MiB on each stream, as base64.
pub const MAX_FRAME: usize = 48 << 20;

/// Largest request a shim takes, in bytes.
pub const MAX_REQUEST: usize = 8 << 20;

/// First frame in each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Identifier of the pod sandbox, 64 lower-case hex digits; both must name the same.
    pub sandbox: String,
    /// Process id of the sender.
    pub pid: i32,
    /// Of a shim: it knows [`LaunchSpec::hooks`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hooks: bool,
}

/// A frame from the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the daemon, echoed in the reply.
    pub seq: u64,
    /// What is asked.
    pub call: Call,
}

/// What the daemon can ask for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    /// Makes the pod's namespaces; once, before any container.
    Setup(PodSetup),
    /// Launches a container. The reply comes when its program has been executed or has failed to be: then with
    /// [`ErrorKind::CannotExecute`] and exit code 127 or 126 in its state, or with another kind and exit code 128. For one
    /// that is being launched or runs, it is the answer to the first; only one that has ended cannot be started again.
    Start(Box<LaunchSpec>),
    /// Lets a launcher go on that was held by [`Placement::Wait`], or for [`Hooks::outside`].
    Continue {
        /// The container.
        container: String,
    },
    /// Sends a signal to the container's first process, or to all of its cgroup.
    Signal {
        /// The container.
        container: String,
        /// Signal number.
        signal: i32,
        /// Every process of the container; `SIGKILL` is answered when none is left, and at once when there was none.
        #[serde(default)]
        all: bool,
    },
    /// Runs a program in a running container and collects its output. What it started and left behind stays; the
    /// cgroup `exec-<n>` made for it below one of the container's is removed when it is empty.
    Exec(Box<ExecSpec>),
    /// Opens the container's log file anew; answered when the new file exists.
    ReopenLog {
        /// The container.
        container: String,
    },
    /// State of every container that was started and not forgotten.
    List,
    /// Drops what is known of an exited container.
    Forget {
        /// The container.
        container: String,
    },
    /// Kills what still runs and leaves the pod's network namespace, so that it can be taken down. Answered when
    /// nothing is left; afterwards nothing can be started.
    StopPod,
    /// Ends the shim. Refused while a container runs.
    Exit,
}

/// The pod's namespaces and what belongs into them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSetup {
    /// Make a network namespace (else the host's is used) and bring `lo` up in it.
    pub new_net: bool,
    /// Make an IPC namespace.
    pub new_ipc: bool,
    /// Make a UTS namespace.
    pub new_uts: bool,
    /// Start the reaper as process 1 of a PID namespace that the pod's containers share.
    pub shared_pid: bool,
    /// Where to bind the network namespace for plugins and people, for example `/run/netns/nodeagent-<id>`.
    pub netns_path: Option<String>,
    /// Host name to set in the new UTS namespace.
    pub hostname: Option<String>,
    /// Sysctls of the pod's namespaces: dotted or slashed name, value.
    pub sysctls: Vec<(String, String)>,
    /// SELinux label of the reaper.
    pub selinux_label: Option<String>,
    /// Make a user namespace, which the others then belong to.
    pub user_namespace: Option<IdMaps>,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdMaps {
    /// User ids.
    pub uids: Vec<IdMap>,
    /// Group ids.
    pub gids: Vec<IdMap>,
}

/// A range of ids of a user namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdMap {
    /// The first inside.
    pub inside: u32,
    /// The first outside.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

impl IdMaps {
    /// The user outside who is `uid` inside.
    pub fn uid(&self, uid: u32) -> Option<u32> {
        outside(&self.uids, uid)
    }

    /// The group outside that is `gid` inside.
    pub fn gid(&self, gid: u32) -> Option<u32> {
        outside(&self.gids, gid)
    }
}

fn outside(maps: &[IdMap], id: u32) -> Option<u32> {
    let found = maps.iter().find_map(|map| Some((map, id.checked_sub(map.inside).filter(|at| *at < map.length)?)));
    found.and_then(|(map, at)| map.outside.checked_add(at))
}

/// A program to run in a running container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecSpec {
    /// The container.
    pub container: String,
    /// The process.
    pub process: ProcessSpec,
    /// Killed after that many milliseconds, with everything it started; 0 = no limit.
    pub timeout_ms: u64,
    /// Bytes kept of each stream.
    pub output_limit: u64,
    /// The process in the words of an OCI runtime, for a container that one has made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci: Option<String>,
}

/// A frame from the shim: the answer to a request, or an event.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FromShim {
    /// Answer to the request with the same `seq`.
    Reply(Reply),
    /// Something happened.
    Event(Event),
}

/// Answer to one request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// That of the request.
    pub seq: u64,
    /// What came of it.
    pub result: Answer,
}

/// What came of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Done; nothing to tell.
    Done,
    /// The container's program runs.
    Started {
        /// Process id in the host's PID namespace.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
        /// What had to be given up (for example an oom score that may not be set).
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// All containers.
    Containers {
        /// In the order of their start.
        containers: Vec<ContainerState>,
    },
    /// An exec came to its end.
    Executed {
        /// Exit code, 128 + signal.
        exit_code: i32,
        /// base64.
        stdout: String,
        /// base64.
        stderr: String,
        /// It was killed at its timeout.
        timed_out: bool,
    },
    /// It failed.
    Error {
        /// Class of the failure.
        kind: ErrorKind,
        /// For people.
        message: String,
    },
}

/// Classes of failure that the daemon tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No such container.
    NotFound,
    /// Not in this state.
    WrongState,
    /// The request makes no sense.
    Invalid,
    /// The program is not there or cannot be executed (exit code 127 or 126 applies).
    CannotExecute,
    /// The kernel said no.
    System,
    /// This shim does not know that request.
    Unsupported,
    /// What a newer shim calls its errors.
    #[serde(other)]
    Other,
}

/// What the shim says unasked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A launcher waits for its cgroup.
    Launched {
        /// The container.
        container: String,
        /// The launcher.
        pid: i32,
    },
    /// A container is made but for its root, which is still the host's; its launcher waits while programs run outside.
    Made {
        /// The container.
        container: String,
        /// The launcher.
        pid: i32,
    },
    /// A container ended.
    Exited {
        /// Its last state.
        state: ContainerState,
    },
}

/// State of a container as the shim, its parent, knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The container.
    pub container: String,
    /// Process id while it runs.
    pub pid: Option<i32>,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
    /// Nanoseconds since the epoch, 0 while it runs.
    #[serde(default)]
    pub finished_at: i64,
    /// Exit code once it ended, 128 + signal.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The kernel killed a process of it for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// Why it could not be started, or what else there is to say.
    #[serde(default)]
    pub message: String,
}
