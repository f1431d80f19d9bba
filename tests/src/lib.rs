//! What the suites stand on. Nothing in here asserts: it starts real parts, talks to them, and says what was left behind.
//!
//! [`place`] gives a suite namespaces of its own, [`registry`] and [`image`] make something to pull, [`daemon`] starts the
//! runtime with a [`cni`] directory, [`client`] talks to it, [`leaks`] looks at what is left when everything is removed.

pub mod agent_bench;
pub mod bench;
pub mod client;
pub mod cni;
pub mod daemon;
pub mod demo;
pub mod depot;
pub mod first_boot;
pub mod http;
pub mod hung_mount;
pub mod image;
pub mod leaks;
pub mod outside;
pub mod place;
pub mod raw;
pub mod registry;
pub mod terminal;
pub mod tokens;
pub mod vm;
