//! Scopes of systemd: where containers' processes are when systemd manages the host's cgroups.
//!
//! ```text
//! shim ── launcher forked, waits ──► daemon ── StartTransientUnit(pid) ── JobRemoved: done ──► shim: the launcher goes on
//! ```
//! One connection serves all containers; calls on it are answered out of order, so nobody waits for another's scope. A
//! scope ends by itself with its last process.

mod link;
mod properties;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use zbus::zvariant::Value;

use super::{CgroupError, CgroupPath, Resources};
use link::{Jobs, Link};

/// A call that is answered at once; process 1 may be busy with a reload.
const CALL: Duration = Duration::from_secs(25);
/// The job of a scope has nothing to wait for but process 1.
const JOB: Duration = Duration::from_secs(60);

/// How long systemd may take to execute itself anew.
const REEXECUTED_WITHIN: Duration = Duration::from_secs(5);
const AGAIN_AFTER: Duration = Duration::from_millis(50);

const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// The systemd of this host, as far as scopes go. Connects with the first call; clones share the connection.
#[derive(Debug, Clone)]
pub struct Scopes {
    current: Arc<Mutex<Option<Arc<Link>>>>,
    version: u8,
}

impl Scopes {
    /// Scopes on a host with that version of cgroups.
    pub fn new(version: u8) -> Self {
        Scopes { current: Arc::default(), version }
    }

    /// Puts a process into a new scope with those limits; when this returns it is there.
    pub async fn start(&self, path: &CgroupPath, pid: i32, resources: &Resources) -> Result<(), CgroupError> {
        let unit = path.name();
        let deadline = Instant::now() + JOB;
        let link = self.link(unit).await?;
        let (job, ends) = match self.ask(&link, path, pid, resources).await {
            Err(error) if named(&error, UNIT_EXISTS) => {
                // of the same container, from a start that was given up: over, but not forgotten
                let reset = timeout(CALL, link.manager.reset_failed_unit(unit)).await;
                log::debug!(unit = unit, reset:? = reset; "a scope of that name is there already");
                self.ask(&link, path, pid, resources).await?
            }
            asked => asked?,
        };
        let result = match timeout_at(deadline, ends.end_of(&job)).await {
            Err(_) => return Err(silent("wait for", unit, JOB)),
            Ok(None) => {
                self.forget(&link).await;
                return Err(silent("wait for", unit, JOB));
            }
            Ok(Some(result)) => result,
        };
        if result != "done" {
            return Err(CgroupError::Job { unit: unit.to_owned(), result });
        }
        Ok(())
    }

    async fn ask(
        &self,
        link: &Arc<Link>,
        path: &CgroupPath,
        pid: i32,
        resources: &Resources,
    ) -> Result<(zbus::zvariant::OwnedObjectPath, Jobs), CgroupError> {
        let unit = path.name();
        // listened for before the call: the job may be over before its answer is here
        let ends = link.jobs();
        let mut all = properties::of_scope(path, pid);
        all.extend(properties::of_resources(resources, self.version));
        let call = link.manager.start_transient_unit(unit, "replace", &all, &[]);
        let job = self.answered(link, "start", unit, timeout(CALL, call).await).await?;
        Ok((job, ends))
    }

    /// Tells systemd of other limits, so that it does not put the old ones back when it reads its units again.
    pub async fn update(&self, path: &CgroupPath, resources: &Resources) -> Result<(), CgroupError> {
        let unit = path.name();
        let changes = properties::of_resources(resources, self.version);
        if changes.is_empty() {
            return Ok(());
        }
        let link = self.link(unit).await?;
        let changes: Vec<(&str, Value<'_>)> = changes;
        let call = link.manager.set_unit_properties(unit, true, &changes);
        self.answered(&link, "change", unit, timeout(CALL, call).await).await
    }

    /// Ends a scope that is still there without a process, and forgets one that failed. An unknown one is as good.
    pub async fn stop(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let unit = path.name();
        let link = self.link(unit).await?;
        let stopped = timeout(CALL, link.manager.stop_unit(unit, "replace")).await;
        match self.answered(&link, "stop", unit, stopped).await {
            Err(error) if !named(&error, NO_SUCH_UNIT) => Err(error),
            _ => Ok(()),
        }
    }

    async fn link(&self, unit: &str) -> Result<Arc<Link>, CgroupError> {
        let mut current = self.current.lock().await;
        if let Some(link) = current.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let opened = timeout(CALL, open()).await;
        let link = opened.map_err(|_| silent("connect for", unit, CALL))?;
        let link = link.map_err(|source| CgroupError::Systemd {
            call: "connect for",
            unit: unit.to_owned(),
            source: Box::new(source),
        })?;
        let link = Arc::new(link);
        *current = Some(Arc::clone(&link));
        Ok(link)
    }

    async fn forget(&self, broken: &Arc<Link>) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|link| Arc::ptr_eq(link, broken)) {
            *current = None;
        }
    }

    async fn answered<T>(
        &self,
        link: &Arc<Link>,
        call: &'static str,
        unit: &str,
        answer: Result<zbus::Result<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, CgroupError> {
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => {
                if matches!(source, zbus::Error::InputOutput(_)) {
                    // systemd executes itself anew: the next call finds it again
                    self.forget(link).await;
                }
                Err(CgroupError::Systemd { call, unit: unit.to_owned(), source: Box::new(source) })
            }
            Err(_) => Err(silent(call, unit, CALL)),
        }
    }
}

/// Opens a way to systemd. One that executes itself anew resets connections, or refuses them, for a moment of which nobody tells.
async fn open() -> zbus::Result<Link> {
    let deadline = Instant::now() + REEXECUTED_WITHIN;
    loop {
        match Link::open().await {
            Err(error @ zbus::Error::InputOutput(_)) if Instant::now() < deadline => {
                log::debug!("connect to systemd: {error}; trying again");
                sleep(AGAIN_AFTER).await;
            }
            opened => return opened,
        }
    }
}

fn silent(call: &'static str, unit: &str, after: Duration) -> CgroupError {
    CgroupError::SystemdSilent { call, unit: unit.to_owned(), after }
}

/// Whether systemd answered with that error.
fn named(error: &CgroupError, name: &str) -> bool {
    let CgroupError::Systemd { source, .. } = error else { return false };
    matches!(&**source, zbus::Error::MethodError(found, _, _) if found.as_str() == name)
}
