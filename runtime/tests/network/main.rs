//! Pod networks with plugins of all kinds: recording, failing, hanging, flooding ones written as shell scripts, and the
//! reference plugins in network namespaces of the tests' own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy.toml's exception for tests does not reach their helpers")]

mod chains;
mod cost;
mod hostports;
mod namespaces;
mod node;
mod oracle;
mod reference;
mod releases;
mod scripts;
mod unruly;
