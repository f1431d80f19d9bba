//! What can go wrong with a pod's network.

use super::{
    builtin::BridgeError, cache::CacheError, conf_dir::NotReady, exec::ExecError, exec::with_messages, pod::InvalidPod,
    result::ResultError,
};
use std::{io, path::PathBuf};

/// A pod's network could not be made, checked or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// there is no usable configuration
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// the pod's identity is unusable
    #[error(transparent)]
    InvalidPod(#[from] InvalidPod),
    /// a plugin failed
    #[error("network {network}: plugin {plugin} on {verb}")]
    Plugin {
        /// the network
        network: String,
        /// the executable's name
        plugin: String,
        /// ADD, DEL, CHECK, GC or STATUS
        verb: &'static str,
        /// what happened
        #[source]
        source: Box<PluginError>,
    },
    /// what is built in failed
    #[error("network {network}: built-in bridge on {verb}")]
    Builtin {
        /// the network
        network: String,
        /// ADD, DEL or CHECK
        verb: &'static str,
        /// what happened
        #[source]
        source: BridgeError,
    },
    /// host ports of pods that are there could not be brought back
    #[error("bring back the host ports of pods")]
    Restore(#[source] BridgeError),
    /// a record says that the network was made by what is built in, but its configuration cannot have been
    #[error("network {network} on record is not one that is built in")]
    NotBuiltin {
        /// the network
        network: String,
    },
    /// all plugins were satisfied, but the pod has no address
    #[error("network {network} gave the pod no address")]
    NoAddress {
        /// the network
        network: String,
    },
    /// an attachment's record could not be kept
    #[error("record of the pod's network")]
    Record(#[from] CacheError),
    /// a result that was kept makes no sense
    #[error("recorded result of the pod's network")]
    Recorded(#[source] ResultError),
    /// CHECK of a pod that was never added
    #[error("sandbox {0} has no network on record")]
    Unknown(String),
    /// the whole operation took longer than it may
    #[error("network {network}: {verb} did not finish within {seconds} s")]
    TimedOut {
        /// the network
        network: String,
        /// ADD, DEL, CHECK, GC or STATUS
        verb: &'static str,
        /// the time it had
        seconds: u64,
    },
}

impl NetworkError {
    /// Whether the plugin asked to be tried again later (code 11 of the specification).
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Plugin { source, .. } if matches!(**source, PluginError::Reported { code: 11, .. }))
    }
}

/// What a plugin did instead of its work.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// not installed
    #[error("no such executable in {}", directories.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))]
    Missing {
        /// where it was looked for
        directories: Vec<PathBuf>,
    },
    /// its configuration could not be written down
    #[error("encode its configuration")]
    Encode(#[source] serde_json::Error),
    /// what it is to read could not be laid ready
    #[error("write its input")]
    Input(#[source] io::Error),
    /// it did not run to its end
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// it failed and said why, in the way of the specification
    #[error("{message}{} (code {code})", with_messages(.details))]
    Reported {
        /// error code: below 100 the specification's, from 100 the plugin's own
        code: u32,
        /// one line
        message: String,
        /// more of it
        details: String,
    },
    /// it failed and did not say why
    #[error("failed with {status}{}", with_messages(.stderr))]
    Failed {
        /// exit status or signal
        status: std::process::ExitStatus,
        /// the end of its standard error, or the beginning of its answer
        stderr: String,
    },
    /// it succeeded with an answer that is none
    #[error("unusable answer")]
    Result(#[from] ResultError),
}
