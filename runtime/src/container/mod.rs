//! Containers: from a configuration to what the shim launches, and back to nothing.
//!
//! [`mod@create`] makes one and [`erase`] removes one; in between it belongs to its pod's task
//! ([`crate::sandbox`]). What it is launched with is decided in [`spec`].

pub mod apparmor;
pub mod capabilities;
pub mod cdi;
mod create;
mod error;
mod exec;
pub(crate) mod hooks;
mod record;
pub mod rlimits;
pub mod seccomp;
pub mod spec;
mod update;
mod volumes;

use std::sync::Arc;

pub use create::{create, erase, place};
pub use error::ContainerError;
pub use exec::{exec, reopen_log};
pub use record::{ContainerRecord, Exit, Outside, Phase, Reason, UNSEEN_EXIT, User};
pub use spec::SpecError;
pub use update::{limits, update};
pub use volumes::container_of;

use crate::image::{Image, ImageError, Images, Rootfs};

/// Where containers' files come from.
#[async_trait::async_trait]
pub trait ImageSource: Send + Sync {
    /// An image by any of its names.
    fn find(&self, name: &str) -> Option<Arc<Image>>;
    /// Makes a writable layer over an image.
    async fn prepare(&self, image: &str, container: &str) -> Result<Rootfs, ImageError>;
    /// Removes a writable layer.
    async fn release(&self, container: &str) -> Result<(), ImageError>;
    /// Containers that have one.
    fn holders(&self) -> Vec<String>;
}

#[async_trait::async_trait]
impl ImageSource for Images {
    fn find(&self, name: &str) -> Option<Arc<Image>> {
        Images::find(self, name)
    }

    async fn prepare(&self, image: &str, container: &str) -> Result<Rootfs, ImageError> {
        Images::prepare(self, image, container).await
    }

    async fn release(&self, container: &str) -> Result<(), ImageError> {
        Images::release(self, container).await
    }

    fn holders(&self) -> Vec<String> {
        self.containers()
    }
}
