//! What can go wrong before the first call is served.

use std::{io, path::PathBuf};

/// A socket could not be brought into service.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process accepts connections on this path.
    #[error("a live server owns the socket {path}")]
    Occupied {
        /// the socket's path
        path: PathBuf,
    },
    /// The path exists and is no socket, so it is not ours to remove.
    #[error("{path} exists and is not a socket")]
    NotASocket {
        /// what was in the way
        path: PathBuf,
    },
    /// The path does not fit into a socket address (107 bytes).
    #[error("the socket path {path} is too long")]
    PathTooLong {
        /// the path as configured
        path: PathBuf,
        /// what the address builder said
        #[source]
        source: nix::Error,
    },
    /// The path names no file inside a directory.
    #[error("the socket path {path} has no parent directory")]
    NoParent {
        /// the path as configured
        path: PathBuf,
    },
    /// The directory for the socket could not be made.
    #[error("create socket directory {path}")]
    CreateDirectory {
        /// the directory
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// The directory could not be locked against a second starter.
    #[error("lock socket directory {path}")]
    LockDirectory {
        /// the directory
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// It could not be found out who owns what is at the path.
    #[error("examine {path}")]
    Probe {
        /// the socket's path
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// A dead server's socket could not be removed.
    #[error("remove stale socket {path}")]
    RemoveStale {
        /// the socket's path
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// The socket could not be created, bound, or made to listen.
    #[error("bind socket {path}")]
    Bind {
        /// the socket's path
        path: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
}
