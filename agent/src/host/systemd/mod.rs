//! systemd, as the agent uses it.
//!
//! [`bus`] talks to the running one over D-Bus, [`offline`] makes the same symlinks in a tree that `systemctl --root` makes.

pub mod bus;
mod connection;
mod health;
mod job;
pub mod offline;
mod proxy;
mod status;

use std::time::Duration;

use async_trait::async_trait;

pub use health::{Health, settle};
pub use status::{UnitFileState, UnitStatus};

/// What a job does to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Active.
    Start,
    /// Inactive.
    Stop,
    /// Active, with a new main process.
    Restart,
    /// As restart, if it is active.
    TryRestart,
    /// Its files read again, if it is active.
    TryReload,
}

impl JobKind {
    /// For messages.
    pub fn verb(self) -> &'static str {
        match self {
            JobKind::Start => "start",
            JobKind::Stop => "stop",
            JobKind::Restart => "restart",
            JobKind::TryRestart => "try-restart",
            JobKind::TryReload => "try-reload",
        }
    }
}

/// How a job ended, in systemd's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobResult {
    /// It did what it was for.
    Done,
    /// Somebody cancelled it, or a contrary job replaced it.
    Canceled,
    /// The unit's own timeout.
    Timeout,
    /// The unit failed.
    Failed,
    /// A unit that it requires failed.
    Dependency,
    /// There was nothing to do for this unit.
    Skipped,
    /// A word that this version does not know, or one that says the job could not apply.
    Other,
}

impl JobResult {
    pub(super) fn parse(word: &str) -> JobResult {
        match word {
            "done" => JobResult::Done,
            "canceled" => JobResult::Canceled,
            "timeout" => JobResult::Timeout,
            "failed" => JobResult::Failed,
            "dependency" => JobResult::Dependency,
            "skipped" => JobResult::Skipped,
            _ => JobResult::Other,
        }
    }
}

/// A program that systemd runs later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// Of the timer and of the service, without their endings.
    pub name: String,
    /// For people.
    pub description: String,
    /// How much later.
    pub after: Duration,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// A program that runs as a unit of its own, so that nothing that happens to the agent's unit ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transient {
    /// Unit name, `.service`.
    pub name: String,
    /// For people.
    pub description: String,
    /// Absolute program and arguments.
    pub command: Vec<String>,
    /// Variables.
    pub env: Vec<(String, String)>,
    /// Where stdout goes, as an absolute path of a file that systemd makes.
    pub output: String,
    /// Where stderr goes.
    pub errors: String,
    /// When it is ended.
    pub deadline: Duration,
}

/// Why systemd did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// Neither its own socket nor the system bus answers.
    #[error("connect to systemd: neither {private} nor the system bus answers")]
    Connect {
        /// systemd's own socket.
        private: String,
        /// What the last attempt said.
        #[source]
        source: Box<zbus::Error>,
    },
    /// A call failed.
    #[error("{call} {unit}")]
    Call {
        /// What was asked.
        call: &'static str,
        /// Of what.
        unit: String,
        /// Why.
        #[source]
        source: Box<zbus::Error>,
    },
    /// A call was not answered in time.
    #[error("{call} {unit}: systemd did not answer within {} s", deadline.as_secs())]
    NoAnswer {
        /// What was asked.
        call: &'static str,
        /// Of what.
        unit: String,
        /// The deadline.
        deadline: Duration,
    },
    /// There is no such unit.
    #[error("unit {unit} does not exist")]
    NotFound {
        /// Its name.
        unit: String,
    },
    /// It is masked.
    #[error("unit {unit} is masked")]
    Masked {
        /// Its name.
        unit: String,
    },
    /// It has nothing that enabling could act on.
    #[error("unit {unit} has no [Install] section: it is started by others and cannot be enabled ({state})")]
    NotInstallable {
        /// Its name.
        unit: String,
        /// static, indirect, generated, transient.
        state: String,
    },
    /// Its file is somebody's own file where the agent would put a link.
    #[error("mask {unit}: {path} is a file of its own, not a link")]
    InTheWay {
        /// Its name.
        unit: String,
        /// The file.
        path: String,
    },
    /// The job ended without its effect.
    #[error("{verb} {unit}: job ended as {result:?}: {state}")]
    Job {
        /// start, stop, restart.
        verb: &'static str,
        /// Its name.
        unit: String,
        /// systemd's word.
        result: JobResult,
        /// What the unit says of itself.
        state: String,
    },
    /// The job did not end in time and was cancelled.
    #[error("{verb} {unit}: no result within {} s, job cancelled", deadline.as_secs())]
    Deadline {
        /// start, stop, restart.
        verb: &'static str,
        /// Its name.
        unit: String,
        /// The deadline.
        deadline: Duration,
    },
    /// The job was done, but the unit did not stay up.
    #[error("unit {unit} did not stay up: {state}")]
    Unhealthy {
        /// Its name.
        unit: String,
        /// What the unit says of itself.
        state: String,
    },
    /// It can only be done to a running system.
    #[error("{call} {unit}: the root is offline")]
    Offline {
        /// What was asked.
        call: &'static str,
        /// Of what.
        unit: String,
    },
    /// A unit file in the tree.
    #[error("unit files of {unit}")]
    File {
        /// The unit.
        unit: String,
        /// Why.
        #[source]
        source: super::root::RootError,
    },
    /// A name that is no unit's.
    #[error("{unit:?} is not the name of a unit")]
    BadName {
        /// As given.
        unit: String,
    },
}

/// The service manager of a host.
#[async_trait]
pub trait Systemd: Send + Sync {
    /// What is known about a unit. One that does not exist has the load state `not-found`; that is no error.
    async fn unit(&self, name: &str) -> Result<UnitStatus, SystemdError>;

    /// Has it started at boot; true when anything changed.
    async fn enable(&self, name: &str) -> Result<bool, SystemdError>;

    /// Has it not started at boot; true when anything changed.
    async fn disable(&self, name: &str) -> Result<bool, SystemdError>;

    /// Makes it impossible to start; true when anything changed.
    async fn mask(&self, name: &str) -> Result<bool, SystemdError>;

    /// Makes it possible to start again; true when anything changed.
    async fn unmask(&self, name: &str) -> Result<bool, SystemdError>;

    /// Runs a job to its end and checks what it left. A start or restart is only done when the unit stays up.
    async fn run_job(&self, kind: JobKind, name: &str) -> Result<(), SystemdError>;

    /// Puts a job into the queue and does not wait: for units that are ordered after the one that the agent runs in.
    async fn enqueue(&self, kind: JobKind, name: &str) -> Result<(), SystemdError>;

    /// Reads all units again.
    async fn daemon_reload(&self) -> Result<(), SystemdError>;

    /// Runs a program as a unit of its own, to its end; its exit status.
    async fn run_transient(&self, unit: &Transient) -> Result<i32, SystemdError>;

    /// Has systemd run a program later, whatever becomes of this process. A timer of the same name is replaced. It does not
    /// outlive a reboot.
    async fn start_timer(&self, timer: &Timer) -> Result<(), SystemdError>;

    /// Lets go of such a timer; of one that is not there too.
    async fn stop_timer(&self, name: &str) -> Result<(), SystemdError>;
}
