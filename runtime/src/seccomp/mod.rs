//! Seccomp: from a profile to the filter that the launcher loads.
//!
//! `RuntimeDefault` is [`default.json`](DEFAULT_PROFILE); `Localhost` profiles are files of the same form. A filter depends
//! on the profile, the container's capabilities and the machine, so it is built once for each and kept.

pub mod arch;
pub mod compile;
pub mod oci;
pub mod profile;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::capability::number;
use arch::Arch;
use profile::{Profile, ProfileError, Resolved, Subject};

/// The profile of `RuntimeDefault`.
///
/// It allows what programs use and leaves out what reaches the kernel's and the host's inside: keys, modules, time, mounts,
/// namespaces, raw devices, io_uring, userfaultfd, unless the container has the capability for it anyway. `AF_VSOCK` stays
/// closed, since it leads past the pod's network; `clone3` says ENOSYS, since its flags are out of a filter's reach.
pub const DEFAULT_PROFILE: &[u8] = include_bytes!("default.json");

/// Filters kept; a node has a handful of combinations.
const KEPT: usize = 256;

/// Why there is no filter.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// The profile is unusable.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The filter is longer than the kernel takes.
    #[error(transparent)]
    Compile(#[from] compile::TooLong),
}

/// What makes two containers need the same filter.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    profile: [u8; 32],
    capabilities: u64,
}

/// Builds filters, each once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Filters {
    kernel: (u32, u32),
    kept: Arc<Mutex<HashMap<Key, Arc<Vec<u8>>>>>,
}

impl Filters {
    /// For a machine whose kernel is of this major and minor version.
    pub fn new(kernel: (u32, u32)) -> Filters {
        Filters { kernel, kept: Arc::default() }
    }

    /// A profile for a container with these bounding capabilities, as it is on this machine.
    pub fn resolved(&self, profile: &[u8], capabilities: u64) -> Result<Resolved, SeccompError> {
        let has = |name: &str| number(name).is_some_and(|number| capabilities & (1 << number) != 0);
        let subject = Subject { capabilities: &has, kernel: self.kernel, arch: Arch::NATIVE };
        Ok(Profile::parse(profile)?.resolve(&subject)?)
    }

    /// The filter of a profile for a container with these bounding capabilities (bit = number): `struct sock_filter[]`.
    pub fn filter(&self, profile: &[u8], capabilities: u64) -> Result<Arc<Vec<u8>>, SeccompError> {
        let key = Key { profile: Sha256::digest(profile).into(), capabilities };
        let kept =
            |filters: &Filters| filters.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key).map(Arc::clone);
        if let Some(filter) = kept(self) {
            return Ok(filter);
        }
        let resolved = self.resolved(profile, capabilities)?;
        let filter = Arc::new(compile::to_bytes(&compile::compile(&resolved)?));
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            all.clear();
        }
        all.insert(key, Arc::clone(&filter));
        Ok(filter)
    }
}

#[cfg(test)]
mod tests;
