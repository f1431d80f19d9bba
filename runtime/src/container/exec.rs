//! What is done inside a running container.

use std::time::Duration;

use nodeagent_shim::protocol::{ErrorKind, ExecSpec};

use super::{ContainerError, Phase, SpecError};
use crate::handler;
use crate::sandbox::{Executed, PodHandle, Shim, ShimError};

/// Bytes kept of each stream.
const OUTPUT_LIMIT: u64 = 16 << 20;

/// Runs a command in a container and collects its output. `timeout` in seconds, 0 for none.
pub async fn exec(pod: &PodHandle, id: &str, command: &[String], timeout: i64) -> Result<Executed, ContainerError> {
    if command.is_empty() {
        return Err(ContainerError::Invalid("no command".to_owned()));
    }
    let seconds =
        u64::try_from(timeout).map_err(|_| ContainerError::Invalid(format!("timeout: {timeout} is negative")))?;
    let view = pod.view();
    let shim = running(pod, id, "run a command in")?;
    let container = view.container(id).ok_or_else(|| ContainerError::NotFound { id: id.to_owned() })?;
    let mut process = container.spec.process.clone();
    process.args = command.to_vec();
    process.terminal = false;
    let timeout_ms = u64::try_from(Duration::from_secs(seconds).as_millis()).unwrap_or(u64::MAX);
    let oci = match &container.spec.oci {
        Some(_) => Some(handler::process(&process).map_err(SpecError::Handler)?.to_string()),
        None => None,
    };
    let spec = ExecSpec { container: id.to_owned(), process, timeout_ms, output_limit: OUTPUT_LIMIT, oci };
    let executed = shim.exec(spec).await.map_err(|source| refused(source, id, "run a command in"))?;
    if executed.timed_out {
        return Err(ContainerError::ExecTimeout { id: id.to_owned(), seconds: timeout });
    }
    Ok(executed)
}

/// Opens the log of a running container anew; the file is there when this returns.
pub async fn reopen_log(pod: &PodHandle, id: &str) -> Result<(), ContainerError> {
    let shim = running(pod, id, "reopen the log of")?;
    shim.reopen_log(id).await.map_err(|source| refused(source, id, "reopen the log of"))
}

fn running(pod: &PodHandle, id: &str, action: &'static str) -> Result<Shim, ContainerError> {
    let view = pod.view();
    let phase = view.phase(id).ok_or_else(|| ContainerError::NotFound { id: id.to_owned() })?;
    if phase != Phase::Running {
        return Err(ContainerError::WrongPhase { id: id.to_owned(), phase, action });
    }
    view.shim.clone().ok_or(ContainerError::Shim { action, id: id.to_owned(), source: ShimError::Gone })
}

/// It may have ended since it was looked at.
fn refused(source: ShimError, id: &str, action: &'static str) -> ContainerError {
    match source.kind() {
        Some(ErrorKind::WrongState | ErrorKind::NotFound) => {
            ContainerError::WrongPhase { id: id.to_owned(), phase: Phase::Exited, action }
        }
        _ => ContainerError::Shim { action, id: id.to_owned(), source },
    }
}
