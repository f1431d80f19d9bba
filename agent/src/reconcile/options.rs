//! How a run is to be made.

use super::confirm::Probation;
use super::lock::Patience;
use crate::plan::Stage;

/// How a run is to be made.
#[derive(Debug, Clone)]
pub struct Options {
    /// For reports: apply, reconcile, bake.
    pub command: &'static str,
    /// Which resources take part.
    pub stage: Stage,
    /// Undo everything when anything fails.
    pub atomic: bool,
    /// Obey drift policies and the limit on repairs.
    pub obey_policy: bool,
    /// The run is part of the boot: it must not wait for units that are ordered after it.
    pub in_boot: bool,
    /// For which other run to wait.
    pub patience: Patience,
    /// Run though the boot and the timer may not, and leave it so.
    pub keep_hold: bool,
    /// Take the changes back unless somebody confirms them.
    pub probation: Option<Probation>,
    /// Where a test wants a crash.
    #[cfg(any(test, feature = "testing"))]
    pub crash: super::journal::CrashPoint,
}

impl Options {
    /// All resources, at once, for a person.
    pub fn new(command: &'static str) -> Options {
        Options {
            command,
            stage: Stage::Activate,
            atomic: false,
            obey_policy: false,
            in_boot: false,
            patience: Patience::None,
            keep_hold: false,
            probation: None,
            #[cfg(any(test, feature = "testing"))]
            crash: super::journal::CrashPoint::default(),
        }
    }
}
