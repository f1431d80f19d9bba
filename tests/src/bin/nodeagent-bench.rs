//! `make bench`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use nodeagent_tests::bench::report::{self, Column};
use nodeagent_tests::bench::subject::Subject;
use nodeagent_tests::bench::workload::{Plan, Workload};
use nodeagent_tests::bench::{self, launcher};
use nodeagent_tests::image::Image;
use nodeagent_tests::registry::{Access, Registry};
use nodeagent_tests::{leaks, place};
use tokio::runtime::Runtime;

/// Measures what pods cost, beside Debian's containerd where it is installed. Run as root, on a quiet machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pods one after the other
    #[arg(long, default_value_t = 50)]
    alone: usize,
    /// Pods one a second
    #[arg(long, default_value_t = 10)]
    apart: usize,
    /// Pods of the load
    #[arg(long, default_value_t = 105)]
    pods: usize,
    /// Of these, at a time
    #[arg(long, default_value_t = 10)]
    parallel: usize,
    /// Seconds of idling under load
    #[arg(long, default_value_t = 20)]
    idle: u64,
    /// Pods that come and go in rounds at the end
    #[arg(long, default_value_t = 250)]
    crowd: usize,
    /// How often; fewer than two leave that out
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Leave out the peer
    #[arg(long)]
    alone_in_this: bool,
    /// Ours alone, by the systemd cgroup driver, with a systemd of its own on cgroup v2
    #[arg(long)]
    systemd: bool,
    /// For scripts
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    bench::ended(run())
}

fn run() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let entered = if arguments.systemd { place::enter_with_systemd()? } else { place::enter()? };
    if let Some(code) = entered {
        return Ok(code);
    }
    let plan = Plan {
        alone: arguments.alone,
        apart: arguments.apart,
        pods: arguments.pods,
        parallel: arguments.parallel,
        idle: Duration::from_secs(arguments.idle),
        rounds: 0,
        crowd: arguments.crowd,
    };
    let registry = Registry::start(Access::Open)?;
    Image::busybox()?.push(&registry, "library/busybox", "1")?;
    let pause = Image::busybox()?.set("Entrypoint", serde_json::json!(["sleep", "86399"]));
    pause.set("Cmd", serde_json::json!([])).push(&registry, "pause", "1")?;
    let runtime = Runtime::new().context("start the asynchronous runtime")?;
    let mut columns = Vec::new();
    let mut measure = |subject: Subject, rounds: usize| -> Result<()> {
        let plan = Plan { rounds, ..plan };
        eprintln!("measuring {}", subject.name);
        let cri = subject.client(&runtime)?;
        let logs = tempfile::tempdir()?;
        let run = std::env::var(place::RUN).unwrap_or_default();
        let parent =
            if arguments.systemd { format!("/nodeagentbench{run}.slice") } else { format!("/nodeagent-bench{run}") };
        let figures = runtime.block_on(async {
            let work = Workload::new(cri, &registry.reference("library/busybox:1"), logs.path(), &parent).await?;
            work.measure(plan, subject.pid, registry.pid().as_slice()).await
        })?;
        columns.push(Column { subject: subject.name.clone(), figures });
        drop(subject);
        // slices go with the systemd that made them
        if arguments.systemd { Ok(()) } else { leaks::remove_cgroup_tree(&parent) }
    };
    let mut code = ExitCode::SUCCESS;
    if arguments.systemd {
        measure(Subject::ours_by_systemd()?, 0)?;
    } else {
        measure(Subject::ours(true)?, arguments.rounds)?;
        measure(Subject::ours(false)?, 0)?;
    }
    if !arguments.alone_in_this && !arguments.systemd {
        match Subject::containerd(&registry.reference("pause:1"))? {
            Some(peer) => {
                let name = peer.name.clone();
                // what was measured of us is told all the same, and that there is nothing to compare it with
                if let Err(error) = measure(peer, 0) {
                    eprintln!("{name} gave up: {error:#}");
                    code = ExitCode::FAILURE;
                }
            }
            None => eprintln!("containerd is not installed: no peer in this run"),
        }
        let parent = format!("/nodeagent-bench{}", std::env::var(place::RUN).unwrap_or_default());
        let made = launcher::crun(arguments.alone, &parent);
        leaks::remove_cgroup_tree(&parent)?;
        match made {
            Ok(Some(column)) => columns.push(column),
            Ok(None) => eprintln!("crun is not installed"),
            Err(error) => {
                eprintln!("crun gave up: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if arguments.json {
        println!("{}", report::json(&columns));
    } else {
        print!("{}", report::table(&columns));
    }
    Ok(code)
}
