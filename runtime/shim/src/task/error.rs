//! What can go wrong between us and another runtime's shim.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use super::wire::Malformed;

/// A step that failed.
#[derive(thiserror::Error)]
pub enum TaskError {
    /// Told something that it does not know.
    #[error("{0}")]
    Usage(String),
    /// A file.
    #[error("{action} {}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A document that is not as it has to be.
    #[error("{}: {reason}", path.display())]
    Document {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something about processes, pipes, signals.
    #[error("{what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// The other shim's program.
    #[error("{program} {action}: {said}")]
    Program {
        /// Its path.
        program: String,
        /// What it was told.
        action: String,
        /// How it ended, and what it said.
        said: String,
    },
    /// Nobody listens.
    #[error("connect to {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection is gone.
    #[error("{method}: the runtime's shim is gone")]
    Gone {
        /// In which call.
        method: &'static str,
        /// How that showed.
        #[source]
        source: io::Error,
    },
    /// No answer.
    #[error("{method}: no answer within {} s", after.as_secs())]
    Silent {
        /// To which call.
        method: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// An answer that is none.
    #[error("{method}: an answer of the runtime's shim")]
    Malformed {
        /// To which call.
        method: &'static str,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// A frame that is larger than the protocol allows.
    #[error("{method}: a frame of {length} bytes")]
    TooLong {
        /// In which call.
        method: &'static str,
        /// Its length.
        length: u32,
    },
    /// It said no.
    #[error("{message}")]
    Refused {
        /// gRPC's number of the reason.
        code: u64,
        /// In its words.
        message: String,
    },
    /// What another process of ours reported.
    #[error("{0}")]
    Reported(String),
}

/// In the words of [`std::fmt::Display`]: the tables of a derived one would be in the memory of every pod's shim.
impl std::fmt::Debug for TaskError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

/// gRPC's numbers.
pub mod code {
    /// No such thing.
    pub const NOT_FOUND: u64 = 5;
    /// No such call.
    pub const UNIMPLEMENTED: u64 = 12;
}

impl TaskError {
    /// Whether there is nobody at the other end.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Gone { .. })
    }

    /// Whether it does not know the task, or not any more.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { code: code::NOT_FOUND, .. })
    }

    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(super) fn system(what: &'static str) -> impl Fn(Errno) -> Self {
        move |source| Self::System { what, source }
    }
}
