//! The library behind the `agent` command: it brings a CentOS-like host to the state of a Kubernetes node, and keeps it
//! there.
//!
//! Dependencies point one way: `cli` → `reconcile`, `firstboot` → `resource` → `host`. Only `host` touches the machine.
//!
//! - [`cli`]: the command line, one subcommand per file
//! - [`config`]: files to validated settings
//! - [`plan`]: what a run will do, as a value
//! - [`resource`]: what a node must look like, one kind per file
//! - [`reconcile`]: plans a run, journals it, carries it out, takes it back
//! - [`firstboot`]: the stages of a first boot
//! - [`doctor`]: what would keep a host from being a node
//! - [`host`]: files, kernel, systemd, programs
//! - [`telemetry`], [`notify`]: the journal and systemd's progress line
//! - [`exit`]: the exit codes

pub mod cli;
pub mod config;
pub mod doctor;
pub mod exit;
pub mod firstboot;
pub mod host;
pub mod notify;
pub mod plan;
pub mod reconcile;
pub mod resource;
pub mod telemetry;
