//! firewalld: over D-Bus where it runs, by its zone files where it does not.
//!
//! A change goes into what runs and into what is kept, one by one. firewalld is never told to reload: that flushes the rules of
//! kube-proxy and of network plugins, and some of them never come back.

pub mod bus;
pub mod zone;

use std::collections::BTreeSet;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why firewalld could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The message bus.
    #[error("connect to the message bus for firewalld")]
    Connect(#[source] Box<zbus::Error>),
    /// A call.
    #[error("firewalld: {call}")]
    Call {
        /// What was asked.
        call: &'static str,
        /// Why.
        #[source]
        source: Box<zbus::Error>,
    },
    /// It did not answer.
    #[error("firewalld did not answer {call} within {seconds} s")]
    NoAnswer {
        /// What was asked.
        call: &'static str,
        /// How long was waited.
        seconds: u64,
    },
}

/// One thing that can be in a zone, or about zones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "entry", rename_all = "kebab-case")]
pub enum FirewallEntry {
    /// Packets from this network belong to the zone.
    Source {
        /// The zone.
        zone: String,
        /// `10.244.0.0/16`
        source: String,
    },
    /// The port is open in the zone.
    Port {
        /// The zone.
        zone: String,
        /// `10250`, `30000-32767`
        port: String,
        /// `tcp`, `udp`
        protocol: String,
    },
}

impl std::fmt::Display for FirewallEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FirewallEntry::Source { zone, source } => write!(f, "{source} in zone {zone}"),
            FirewallEntry::Port { zone, port, protocol } => write!(f, "{port}/{protocol} in zone {zone}"),
        }
    }
}

/// A zone, as far as we care.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// What is in it both now and after a restart.
    pub entries: BTreeSet<FirewallEntry>,
}

/// The firewall that runs.
#[async_trait]
pub trait Firewall: Send + Sync {
    /// The zone of interfaces that are in none.
    async fn default_zone(&self) -> Result<String, FirewallError>;

    /// Has another zone be that, now and after a restart.
    async fn set_default_zone(&self, zone: &str) -> Result<(), FirewallError>;

    /// A zone; what is in it only now, or only after a restart, is not counted.
    async fn zone(&self, name: &str) -> Result<Zone, FirewallError>;

    /// Puts an entry in, now and for later; one that is there is no error.
    async fn add(&self, entry: &FirewallEntry) -> Result<(), FirewallError>;

    /// Takes an entry out, now and for later; one that is not there is no error.
    async fn remove(&self, entry: &FirewallEntry) -> Result<(), FirewallError>;
}
