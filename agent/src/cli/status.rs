//! `agent status`

use std::time::Duration;

use clap::Args;

use super::failure::Failure;
use super::{Global, output, render, session};
use crate::config::value::Span;
use crate::exit::Exit;
use crate::host::Host;
use crate::host::watch::Watch;
use crate::reconcile::report::{Phase, STATUS_PATH};
use crate::reconcile::{RUN_DIR, Report};

/// Show how the host stood after the last run
///
/// Reads /run/nodeagent/status.json, for which no privileges are needed. Exits as that run did.
#[derive(Debug, Args)]
pub struct Status {
    /// Wait until the first boot is done on this system
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "SPAN", default_value = "30m", requires = "wait")]
    timeout: Span,
}

impl Status {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let host = session::open_host(global)?;
        let report = if self.wait { wait(&host, self.timeout.duration()).await? } else { read(&host)? };
        let Some(report) = report else {
            return Err(Failure::precondition(format!("no run has ended in this boot: {STATUS_PATH} does not exist")));
        };
        if global.json {
            output::json(&report);
        } else {
            output::say(&table(&report, global.color.resolve()));
        }
        Ok(report.exit())
    }
}

fn read(host: &Host) -> Result<Option<Report>, Failure> {
    let Some(bytes) = host.root.read(STATUS_PATH)? else { return Ok(None) };
    let report = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(Exit::Internal, format!("read {STATUS_PATH}: {error}")))?;
    Ok(Some(report))
}

/// Follows the directory; the report is replaced by rename, so each change is an event.
async fn wait(host: &Host, patience: Duration) -> Result<Option<Report>, Failure> {
    let done = async {
        loop {
            // the watch comes before the look: what changes after the look is an event
            let mut watch = Watch::on(host, RUN_DIR)?;
            match read(host)? {
                Some(report) if report.first_boot_done && report.phase == Phase::Done => return Ok(Some(report)),
                _ => watch.changed().await?,
            }
        }
    };
    match tokio::time::timeout(patience, done).await {
        Ok(result) => result,
        Err(_) => {
            let last = read(host)?.map_or("no run has ended".to_owned(), |report| report.summary());
            let problem = format!("the first boot is not done after {} s: {last}", patience.as_secs());
            Err(Failure::precondition(problem))
        }
    }
}

/// Every resource with its state and time.
fn table(report: &Report, color: bool) -> String {
    let width = report.resources.iter().map(|entry| entry.id.as_str().len()).max().unwrap_or(0);
    let mut text = String::new();
    for entry in report.resources.iter().filter(|entry| entry.state == crate::reconcile::ResourceState::Converged) {
        text.push_str(&format!("{:>12}  {:width$}  {}\n", entry.state.word(), entry.id, entry.detail));
    }
    let first_boot = if report.first_boot_done { "done" } else { "not done" };
    let when = report.finished.as_deref().map_or_else(|| "running".to_owned(), seconds);
    let stage = report.stage.word();
    format!(
        "{text}{}\nlast run: {}, stage {stage}, {when}; first boot {first_boot}",
        render::report(report, color),
        report.command
    )
}

/// A time as people read it: in UTC, without what comes behind the seconds.
fn seconds(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Stage;

    #[test]
    fn the_last_line_says_what_ran_and_when_in_words_of_people() {
        let mut report = Report::begin("reconcile", Stage::Activate, "2026-01-02T03:04:00Z".parse().unwrap());
        let last = |report: &Report| table(report, false).lines().last().unwrap().to_owned();
        assert_eq!(last(&report), "last run: reconcile, stage activate, running; first boot not done");
        report.finished = Some("2026-01-02T03:04:05.85162618Z".to_owned());
        report.first_boot_done = true;
        assert_eq!(last(&report), "last run: reconcile, stage activate, 2026-01-02T03:04:05Z; first boot done");
        report.finished = Some("2026-01-02T03:04:05Z".to_owned());
        assert!(last(&report).contains("03:04:05Z;"));
    }
}
