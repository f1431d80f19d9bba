//! The library behind the `agent` command: it brings a CentOS-like host to the state of a Kubernetes node, and keeps it
//! there.
//!
//! Dependencies point one way: `cli` → `reconcile`, `firstboot` → `resource` → `host`. Only `host` touches the machine.
//!
//! - [`config`]: files to validated settings
//! - [`plan`]: what a run will do, as a value
//! - [`resource`]: what a node must look like, one kind per file
//! - [`host`]: files, kernel, systemd, programs

pub mod config;
pub mod host;
pub mod plan;
pub mod resource;
