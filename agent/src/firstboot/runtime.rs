//! The proof that the runtime is up, before the first boot is called done.

use std::time::Instant;

use tokio::net::UnixStream;

use crate::config::settings::RuntimeSettings;
use crate::exit::Exit;
use crate::host::Host;
use crate::plan::{Action, ResourceId, UnitOp};
use crate::reconcile::report::ResourceReport;
use crate::reconcile::{Report, ResourceState};
use crate::telemetry::chain;

/// The unit behind the socket.
const UNIT: &str = "nodeagent-runtime.service";

/// Waits for the runtime and enters the result into the report.
///
/// What counts is a job that is done (the unit is `Type=notify` and says that it is ready when its `Version` answers) and a
/// socket that accepts. `Status` itself is not called: a gRPC client would be the largest part of the agent, to learn what
/// the kubelet reports a second later.
pub(super) async fn prove(host: &Host, settings: &RuntimeSettings, report: &mut Report) {
    let began = Instant::now();
    let patience = settings.ready_timeout.duration();
    let problem = match tokio::time::timeout(patience, answer(host, settings.socket.as_str())).await {
        Ok(Ok(())) => None,
        Ok(Err(problem)) => Some(problem),
        Err(_) => Some(format!("it did not answer on {} within {} s", settings.socket, patience.as_secs())),
    };
    let (state, detail) = match problem {
        None => (ResourceState::Converged, format!("answers on {}", settings.socket)),
        Some(problem) => (ResourceState::Failed, problem),
    };
    if state == ResourceState::Failed {
        log::error!("runtime/cri: {detail}");
        let worst = match report.exit() {
            exit @ (Exit::Undone | Exit::UndoFailed) => exit,
            _ => Exit::Degraded,
        };
        report.exit_code = Some(worst.code());
    }
    report.resources.push(ResourceReport {
        id: ResourceId::new("runtime", "cri"),
        state,
        detail,
        fix: (state == ResourceState::Failed).then(|| format!("look at: journalctl -u {UNIT}")),
        duration_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
    });
}

async fn answer(host: &Host, socket: &str) -> Result<(), String> {
    // starting what is started is a job that is done at once; one that is under way is waited for
    let start = Action::Unit { unit: UNIT.to_owned(), op: UnitOp::Start, wait: true };
    host.execute(&start).await.map_err(|error| chain(&error))?;
    let path = host.root.path().join(socket.trim_start_matches('/'));
    UnixStream::connect(&path).await.map_err(|error| format!("connect to {socket}: {error}"))?;
    Ok(())
}
