//! From a container's configuration to what the shim launches.

pub mod capabilities;
pub mod rlimits;
pub mod seccomp;
