//! Supervisor of one pod. The library half is what the daemon shares with it.

pub mod protocol;
