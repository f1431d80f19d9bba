//! placeholder
pub mod content;
pub mod image;
pub mod server;
pub mod snapshot;
