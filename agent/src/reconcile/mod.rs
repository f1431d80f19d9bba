//! Brings a host to the state of its settings, and can say what it did.
//!
//! ```text
//! lock → recover → observe → plan → journal { intent, act, done } → verify → state → end
//! ```
//!
//! - [`graph`]: what comes before what
//! - [`planned`]: the plan of a run
//! - [`engine`]: the resources in their order, looked at
//! - `run`, `apply`, `drive`: one run, from what was found to what is remembered
//! - [`execute`]: one step, journaled; and taking steps back
//! - [`notifications`]: reloads and restarts, collapsed
//! - [`journal`], [`transaction`]: what was done, written and read
//! - [`recover`]: what a crash left
//! - [`confirm`], `probation`: changes that are taken back unless somebody confirms them
//! - [`foreign`], [`adopt`]: what somebody else has changed, and whether it is to stay
//! - [`flap`], [`rivals`]: against repairing the same thing for ever, and who else is at it
//! - [`rollback`]: taking a finished transaction back
//! - [`reset`]: making a node a plain host again
//! - [`origin`], [`leftover`]: what was there before us, and what has left the config
//! - [`state`], [`report`], [`lock`]

pub mod adopt;
mod apply;
pub mod confirm;
mod drive;
pub mod engine;
mod error;
pub mod execute;
pub mod flap;
pub mod foreign;
pub mod graph;
pub mod journal;
pub mod leftover;
pub mod lock;
pub mod notifications;
mod options;
pub mod origin;
pub mod planned;
mod probation;
mod recover;
pub mod report;
pub mod reset;
mod rivals;
pub mod rollback;
mod run;
pub mod state;
pub mod transaction;

pub use engine::Engine;
pub use error::EngineError;
pub use options::Options;
pub use planned::{Finding, Plan, Planned};
pub use report::{Report, ResourceState};

/// What the agent keeps across boots; not readable for others.
pub const STATE_DIR: &str = "/var/lib/nodeagent";
/// The journals.
pub const TRANSACTION_DIR: &str = "/var/lib/nodeagent/txn";
/// What a reboot may forget.
pub const RUN_DIR: &str = "/run/nodeagent";
