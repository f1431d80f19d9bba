//! The one call here that the compiler cannot check.
#![allow(unsafe_code)]

use std::{io, os::fd::OwnedFd};
use tokio::io::{Interest, unix::AsyncFd};

/// Lets the runtime watch a descriptor for input.
pub(super) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor has to stay open and the same while it is registered: an `OwnedFd` always returns the one
    // that it owns, and the `AsyncFd` keeps it until it has been deregistered
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.map_err(io::Error::from)
}
