//! The CRI service of a node: pods, containers and images, without any other runtime below it.
//!
//! Start reading at [`daemon`], which wires everything; then one call from the wire ([`cri`]) to its pod
//! ([`sandbox`], [`container`]).
//!
//! * [`config`]: what `/etc/nodeagent/runtime.toml` and the flags say
//! * [`cli`]: commands beside the daemon
//! * [`telemetry`], [`notify`]: journal and systemd
//! * [`daemon`]: serves until told to stop; [`node`]: what it serves, built from the configuration
//! * [`server`]: the sockets and the dialects spoken on them
//! * [`cri`]: protocol only: unpack, call the domain, pack
//! * [`sandbox`]: one task per pod; the client of the pod's shim
//! * [`container`]: from a container's configuration to what the shim launches
//! * [`handler`]: other runtimes that make containers in our place
//! * [`image`]: pull, list, remove, prepare root file systems; [`content`]: blobs by digest; [`snapshot`]: layers
//! * [`network`]: CNI configurations and plugins, names of network namespaces
//! * [`cgroup`]: hierarchies, limits, statistics
//! * [`seccomp`]: from profiles to filters; [`capability`]: names and numbers
//! * [`selinux`]: labels of pods and their files
//! * [`state`]: records that survive the daemon
//! * [`events`]: what happened to containers, for those who listen

pub mod capability;
pub mod cgroup;
pub mod cli;
mod clock;
pub mod config;
pub mod container;
pub mod content;
pub mod cri;
pub mod daemon;
pub mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod handler;
mod id;
pub mod image;
pub mod kernel;
pub mod network;
pub mod node;
pub mod notify;
pub mod sandbox;
pub mod seccomp;
pub mod selinux;
pub mod server;
pub mod snapshot;
pub mod state;
mod sys;
pub mod telemetry;
