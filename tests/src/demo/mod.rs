//! What `make run` shows: a host that becomes a node at its first boot, and a pod that answers.
//!
//! [`guard`] sees to it that nothing is left behind, [`show`] does it, [`journal`] reads what the guest says meanwhile,
//! [`summary`] is the table at the end.

pub mod guard;
pub mod journal;
pub mod show;
pub mod summary;
