//! Time, so that tests can set it.

use jiff::Timestamp;

/// Tells the time of day. Waits and deadlines use tokio's clock, which tests can pause.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;

    /// Somebody keeps it in step with the world's.
    fn is_synchronized(&self) -> bool;
}

/// The system's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn is_synchronized(&self) -> bool {
        super::sys::clock_synchronized()
    }
}
