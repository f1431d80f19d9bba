//! The exit codes. They are an interface: units, cloud-init and scripts act on them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Exit {
    /// The host is as it should be.
    Converged,
    /// A defect of the agent, or an error that is none of the others.
    Internal,
    /// There are differences: `plan` would change something, `reconcile` was told to report only.
    Differences,
    /// Applied, but something failed: its own steps are undone, what does not depend on it stays.
    Degraded,
    /// The whole transaction was undone.
    Undone,
    /// Applied; it takes a reboot to be whole.
    RebootRequired,
    /// The config is not valid; nothing was touched.
    ConfigInvalid,
    /// Something that the command needs is not there; nothing was touched.
    Precondition,
    /// Another run holds the lock.
    Busy,
    /// The agent does not manage this kind of system; nothing was touched.
    UnsupportedPlatform,
    /// Taking changes back failed: a person has to look.
    UndoFailed,
}

/// All codes with what they mean, for `--help` and the man page.
pub const ALL: [(Exit, &str); 11] = [
    (Exit::Converged, "the host is as it should be"),
    (Exit::Internal, "internal error, or one that is none of the others"),
    (Exit::Differences, "differences exist (plan); drift was found and the policy is to report it (reconcile)"),
    (Exit::Degraded, "applied, but degraded: a resource failed and its own steps were undone, the rest stays"),
    (Exit::Undone, "the whole transaction was undone (--atomic, or a run that could not go on after a crash)"),
    (Exit::RebootRequired, "applied; a reboot is required"),
    (Exit::ConfigInvalid, "the config is not valid; nothing was touched"),
    (Exit::Precondition, "a precondition is not met (no systemd, no root, no status yet); nothing was touched"),
    (Exit::Busy, "another run holds the lock"),
    (Exit::UnsupportedPlatform, "unsupported platform; nothing was touched"),
    (Exit::UndoFailed, "taking changes back failed; a person has to look"),
];

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Converged => 0,
            Exit::Internal => 1,
            Exit::Differences => 2,
            Exit::Degraded => 3,
            Exit::Undone => 4,
            Exit::RebootRequired => 5,
            Exit::ConfigInvalid => 10,
            Exit::Precondition => 11,
            Exit::Busy => 12,
            Exit::UnsupportedPlatform => 13,
            Exit::UndoFailed => 14,
        }
    }
}

impl Exit {
    /// The code with this number; numbers that are none are internal errors.
    pub fn from_code(code: u8) -> Exit {
        ALL.iter().map(|(exit, _)| *exit).find(|exit| exit.code() == code).unwrap_or(Exit::Internal)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> std::process::ExitCode {
        std::process::ExitCode::from(exit.code())
    }
}
