//! What a host is beside its kernel and packages, one kind per file.

pub mod firewall;
pub mod hostname;
pub mod limits;
pub mod network;
pub mod registries;
pub mod time;
