//! The proof that the runtime is up, before the first boot is called done.

use std::time::Instant;

use tokio::net::UnixStream;

use crate::config::settings::RuntimeSettings;
use crate::exit::Exit;
use crate::host::Host;
use crate::host::watch::Watch;
use crate::plan::ResourceId;
use crate::reconcile::report::ResourceReport;
use crate::reconcile::{Report, ResourceState};
use crate::telemetry::chain;

/// Waits until the runtime's socket accepts a connection, and enters the result into the report.
///
/// The unit is `Type=notify` and says that it is ready when its API answers, so a socket that accepts belongs to a runtime
/// that serves. `Status` itself is not called: a gRPC client would be the largest part of the agent, to learn what the
/// kubelet reports a second later.
pub(super) async fn prove(host: &Host, settings: &RuntimeSettings, report: &mut Report) {
    let began = Instant::now();
    let patience = settings.ready_timeout.duration();
    let (state, detail) = match tokio::time::timeout(patience, answer(host, settings.socket.as_str())).await {
        Ok(Ok(())) => (ResourceState::Converged, format!("answers on {}", settings.socket)),
        Ok(Err(problem)) => (ResourceState::Failed, problem),
        Err(_) => {
            let problem = format!("it did not answer on {} within {} s", settings.socket, patience.as_secs());
            (ResourceState::Failed, problem)
        }
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
        fix: (state == ResourceState::Failed).then(|| format!("look at: journalctl -u {}", settings.kind.unit())),
        duration_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
    });
}

async fn answer(host: &Host, socket: &str) -> Result<(), String> {
    let path = host.root.path().join(socket.trim_start_matches('/'));
    let dir = socket.rsplit_once('/').map_or("/", |(dir, _)| dir);
    loop {
        // the watch comes before the attempt: a socket that appears after the attempt is an event
        let mut watch = Watch::on(host, dir).map_err(|error| chain(&error))?;
        if UnixStream::connect(&path).await.is_ok() {
            return Ok(());
        }
        watch.changed().await.map_err(|error| chain(&error))?;
    }
}
