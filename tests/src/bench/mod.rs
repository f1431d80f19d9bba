//! `make bench`: what pods cost, ours and a peer's in the same run on the same machine.
//!
//! [`subject`] starts a runtime, [`workload`] makes its pods, [`figures`] are taken from the calls' durations and from
//! [`processes`], [`growth`] looks at what is left, [`launcher`] makes containers without a runtime, [`report`] prints all side
//! by side.

use std::process::ExitCode;

pub mod figures;
pub mod growth;
pub mod launcher;
pub mod processes;
pub mod report;
pub mod subject;
pub mod workload;

/// How a bench ends; what went wrong is told.
pub fn ended(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::FAILURE
    })
}
