//! The stamp that says that the first boot is done, and the marker that says that it is under way.

use serde::{Deserialize, Serialize};

use crate::host::root::Ownership;
use crate::host::{Host, RootError};
use crate::plan::Stage;
use crate::reconcile::STATE_DIR;
use crate::reconcile::state::Identity;
use crate::telemetry::event;

/// There, and about this system, when the first boot is done.
pub const STAMP_PATH: &str = "/var/lib/nodeagent/firstboot.done";

/// There while the first boot is under way: after a power cut it goes on instead of starting blind.
pub const MARKER_PATH: &str = "/var/lib/nodeagent/firstboot.started";

/// Why the stamp or the marker could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// Reading.
    #[error("read first-boot stamp")]
    Read(#[source] RootError),
    /// Not what the agent writes.
    #[error("first-boot stamp {STAMP_PATH} is damaged")]
    Damaged(#[source] serde_json::Error),
    /// Writing.
    #[error("write first-boot stamp")]
    Write(#[source] RootError),
}

/// What the files say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    schema: u32,
    /// The system it is about.
    #[serde(flatten)]
    pub identity: Identity,
    agent_version: String,
    /// When.
    at: String,
    /// The last stage that began.
    stage: Stage,
}

impl Stamp {
    fn now(host: &Host, identity: &Identity, stage: Stage) -> Stamp {
        Stamp {
            schema: 1,
            identity: identity.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            at: host.clock.now().to_string(),
            stage,
        }
    }
}

/// The stamp, if there is one.
pub(super) fn read(host: &Host) -> Result<Option<Stamp>, StampError> {
    let Some(bytes) = host.root.read(STAMP_PATH).map_err(StampError::Read)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(StampError::Damaged)
}

/// Says that the first boot is under way. A stamp of another system goes away: this one is a copy.
pub(super) fn begin(host: &Host, identity: &Identity, stage: Stage) -> Result<(), StampError> {
    if let Ok(Some(old)) = read(host)
        && identity.differs_from(&old.identity)
    {
        log::warn!(
            MESSAGE_ID = event::CLONE_FOUND;
            "the first boot was done on another system, of which this one is a copy: it is done again"
        );
        host.root.remove(STAMP_PATH).map_err(StampError::Write)?;
    }
    if host.root.exists(MARKER_PATH).map_err(StampError::Read)? {
        log::info!("the first boot goes on: it was begun before");
        return Ok(());
    }
    write(host, MARKER_PATH, &Stamp::now(host, identity, stage))
}

/// Says that it is done.
pub(super) fn finish(host: &Host, identity: &Identity) -> Result<(), StampError> {
    write(host, STAMP_PATH, &Stamp::now(host, identity, Stage::Activate))?;
    host.root.remove(MARKER_PATH).map_err(StampError::Write)?;
    Ok(())
}

fn write(host: &Host, path: &str, stamp: &Stamp) -> Result<(), StampError> {
    let owner = Ownership { mode: 0o700, uid: 0, gid: 0 };
    if !host.root.exists(STATE_DIR).map_err(StampError::Write)? {
        host.root.make_directory(STATE_DIR, owner).map_err(StampError::Write)?;
    }
    let mut json = serde_json::to_vec_pretty(stamp).map_err(StampError::Damaged)?;
    json.push(b'\n');
    // 0644: units and people test for it
    host.root.write(path, &json, Ownership { mode: 0o644, ..owner }).map_err(StampError::Write)
}
