//! What trials share: registries, each started when the first one asks for it, and the image that most of them run.

use std::env;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow};
use nodeagent_tests::image::{Image, Pushed};
use nodeagent_tests::registry::{Access, Registry};

/// Started once, with success or without.
type Once<T> = OnceLock<Result<Arc<T>, String>>;

#[derive(Default)]
pub struct World {
    open: Once<Registry>,
    basic: Once<Registry>,
    token: Once<Registry>,
    busybox: Once<Pushed>,
}

impl World {
    /// Lets everybody in.
    pub fn open(&self) -> Result<Arc<Registry>> {
        once(&self.open, || match env::var("NODEAGENT_REGISTRY") {
            Ok(there) => Registry::at(there.parse().with_context(|| format!("NODEAGENT_REGISTRY={there}"))?),
            Err(_) => Registry::start(Access::Open),
        })
    }

    /// Wants a password.
    pub fn basic(&self) -> Result<Arc<Registry>> {
        once(&self.basic, || Registry::start(Access::Basic))
    }

    /// Wants a token.
    pub fn token(&self) -> Result<Arc<Registry>> {
        once(&self.token, || Registry::start(Access::Token))
    }

    /// `busybox:1` in the open registry: its reference, and what it is.
    pub fn busybox(&self) -> Result<(String, Arc<Pushed>)> {
        let open = self.open()?;
        let pushed = once(&self.busybox, || Image::busybox()?.push(&open, "library/busybox", "1"))?;
        Ok((open.reference("library/busybox:1"), pushed))
    }
}

fn once<T>(cell: &Once<T>, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
    cell.get_or_init(|| make().map(Arc::new).map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}
