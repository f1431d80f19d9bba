//! What the agent remembers between runs: `/var/lib/nodeagent/state.json`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::STATE_DIR;
use crate::host::root::Ownership;
use crate::host::{Host, RootError};
use crate::plan::ResourceId;

/// The version of the format that this agent writes. Older ones are upgraded on reading, newer ones refused.
pub const SCHEMA: u32 = 1;

/// The state file.
pub const PATH: &str = "/var/lib/nodeagent/state.json";

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading it.
    #[error("read state")]
    Read(#[source] RootError),
    /// Writing it.
    #[error("write state")]
    Write(#[source] RootError),
    /// Not what the agent writes.
    #[error("state {PATH} is damaged; move it away to start anew: what is applied is then taken as found")]
    Damaged(#[source] serde_json::Error),
    /// From a newer agent.
    #[error(
        "state {PATH} has schema {found}, this agent knows {SCHEMA}: it was written by a newer agent; install that one"
    )]
    Newer {
        /// What the file says.
        found: u64,
    },
}

/// The identity of the system that the agent runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Identity {
    /// `/etc/machine-id`; none in an image that gets one at its first boot.
    pub machine_id: Option<String>,
    /// cloud-init's id of the instance; none without cloud-init.
    pub instance_id: Option<String>,
}

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of the format.
    pub schema: u32,
    /// The agent that wrote it.
    pub agent_version: String,
    /// The system it is about.
    pub identity: Identity,
    /// The boot in which it was last written.
    pub boot_id: Option<String>,
    /// Number of the last transaction.
    pub last_transaction: Option<String>,
    /// What was applied, by resource.
    pub resources: BTreeMap<ResourceId, Applied>,
    /// When `reconcile` repaired what, within the last hour: a resource that needs it again and again is left alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repairs: BTreeMap<ResourceId, Vec<Timestamp>>,
}

/// What was applied for one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// In the resource's own words; handed back to it.
    pub value: serde_json::Value,
    /// The transaction that last changed it; none when it was found as wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// What somebody has adopted of the host, though the config says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// A difference between host and config that a person wants to stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Names the difference: another one is drift again.
    pub difference: String,
    /// Since when.
    pub at: Timestamp,
}

impl State {
    /// For a system that the agent has not been on.
    pub fn new(identity: Identity) -> State {
        State {
            schema: SCHEMA,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            identity,
            boot_id: None,
            last_transaction: None,
            resources: BTreeMap::new(),
            repairs: BTreeMap::new(),
        }
    }

    /// What is on disk, if anything is.
    pub fn load(host: &Host) -> Result<Option<State>, StateError> {
        let Some(bytes) = host.root.read(PATH).map_err(StateError::Read)? else { return Ok(None) };
        State::parse(&bytes).map(Some)
    }

    fn parse(bytes: &[u8]) -> Result<State, StateError> {
        // the version first: a newer format may not even have our fields
        let any: serde_json::Value = serde_json::from_slice(bytes).map_err(StateError::Damaged)?;
        match any.get("schema").and_then(serde_json::Value::as_u64) {
            Some(found) if found > u64::from(SCHEMA) => Err(StateError::Newer { found }),
            _ => serde_json::from_value(any).map_err(StateError::Damaged),
        }
    }

    /// Replaces what is on disk; whole or not at all, also across a power cut.
    pub fn save(&self, host: &Host) -> Result<(), StateError> {
        let owner = Ownership { mode: 0o700, uid: 0, gid: 0 };
        if !host.root.exists(STATE_DIR).map_err(StateError::Write)? {
            host.root.make_directory(STATE_DIR, owner).map_err(StateError::Write)?;
        }
        let mut bytes = serde_json::to_vec_pretty(self).map_err(StateError::Damaged)?;
        bytes.push(b'\n');
        host.root.write(PATH, &bytes, Ownership { mode: 0o600, ..owner }).map_err(StateError::Write)
    }
}

impl Identity {
    /// Reads who this system is.
    pub fn read(host: &Host) -> Result<Identity, RootError> {
        let line = |path: &str| -> Result<Option<String>, RootError> {
            let text = host.root.read_text(path)?.unwrap_or_default();
            Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty() && text != "uninitialized"))
        };
        Ok(Identity { machine_id: line("/etc/machine-id")?, instance_id: line("/var/lib/cloud/data/instance-id")? })
    }

    /// True when `self` is certainly another system than `other`: both are known and differ.
    pub fn differs_from(&self, other: &Identity) -> bool {
        let differ = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
        differ(&self.machine_id, &other.machine_id) || differ(&self.instance_id, &other.instance_id)
    }
}

/// The kernel's id of this boot; none for a tree that does not run.
pub fn boot_id(host: &Host) -> Result<Option<String>, RootError> {
    if host.is_offline() {
        return Ok(None);
    }
    let text = host.root.read_text("/proc/sys/kernel/random/boot_id")?;
    Ok(text.map(|text| text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_schema_stays_readable() {
        let text = r#"{"schema":1,"agent_version":"0.1.0","identity":{"machine_id":"0f","instance_id":null},"boot_id":"b",
            "last_transaction":"000001","resources":{"swap":{"value":{"policy":"off"},"transaction":"000001"}}}"#;
        let state = State::parse(text.as_bytes()).unwrap();
        assert_eq!(state.resources[&ResourceId::single("swap")].value["policy"], "off");
    }

    #[test]
    fn a_newer_schema_is_refused_even_when_nothing_else_is_understood() {
        let error = State::parse(br#"{"schema":2,"other":true}"#).unwrap_err();
        assert!(matches!(error, StateError::Newer { found: 2 }));
    }

    #[test]
    fn a_damaged_state_is_an_error_not_a_fresh_start() {
        for text in ["", "{", "{}", r#"{"schema":1}"#] {
            assert!(matches!(State::parse(text.as_bytes()), Err(StateError::Damaged(_))), "{text:?}");
        }
    }

    #[test]
    fn an_image_without_identity_is_nobody_elses() {
        let identity = |machine: Option<&str>, instance: Option<&str>| Identity {
            machine_id: machine.map(str::to_owned),
            instance_id: instance.map(str::to_owned),
        };
        assert!(!identity(Some("a"), None).differs_from(&identity(None, None)));
        assert!(!identity(Some("a"), Some("i")).differs_from(&identity(Some("a"), None)));
        assert!(identity(Some("a"), None).differs_from(&identity(Some("b"), None)));
        assert!(identity(Some("a"), Some("i")).differs_from(&identity(Some("a"), Some("j"))));
    }
}
