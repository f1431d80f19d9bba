//! The agent's part of `make bench`.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nodeagent_tests::agent_bench::{FIGURES, Host, Values, Way, figures};
use nodeagent_tests::bench;
use nodeagent_tests::bench::report::{self, Column};
use nodeagent_tests::{daemon, place};

/// Measures what a run of the agent costs, beside the same steps as shell commands: on a host in namespaces of its own, with
/// systemd as process 1. Run as root, on a quiet machine. Ends with 1 when a target is missed.
#[derive(Debug, Parser)]
struct Arguments {
    /// Runs that find nothing to do
    #[arg(long, default_value_t = 40)]
    runs: usize,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Which way the process in the namespaces goes, and where it leaves its figures.
const WAY: &str = "NODEAGENT_BENCH_WAY";
const RESULT: &str = "NODEAGENT_BENCH_RESULT";

fn main() -> ExitCode {
    bench::ended(run())
}

fn run() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if env::var_os(WAY).is_some() {
        return match place::enter_with_systemd()? {
            Some(code) => Ok(code),
            None => measure(&arguments),
        };
    }
    let mut columns = Vec::new();
    for (way, subject) in [("agent", "agent"), ("by-hand", "shell commands")] {
        let result = tempfile::NamedTempFile::new()?;
        eprintln!("measuring {subject}");
        // namespaces of its own for each: what the first one has done, the second one has still to do
        let status = std::process::Command::new(env::current_exe()?)
            .args(env::args_os().skip(1))
            .env(WAY, way)
            .env(RESULT, result.path())
            .status()?;
        ensure!(status.success(), "{subject}: {status}");
        let values: Values = serde_json::from_slice(&std::fs::read(result.path())?)?;
        columns.push(Column { subject: subject.to_owned(), figures: figures(values) });
    }
    if arguments.json {
        println!("{}", report::json(&columns));
    } else {
        print!("{}", report::table(&columns));
    }
    let mut code = ExitCode::SUCCESS;
    for (figure, (name, unit, most)) in columns.iter().take(1).flat_map(|column| &column.figures).zip(FIGURES) {
        if most.is_some_and(|most| figure.value > most) {
            eprintln!("{name}: {:.1} {unit} is over {:.1}", figure.value, most.unwrap_or_default());
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

fn measure(arguments: &Arguments) -> Result<ExitCode> {
    let way = if env::var(WAY)? == "agent" { Way::Agent } else { Way::ByHand };
    let result = PathBuf::from(env::var_os(RESULT).context("no place for the result")?);
    let values = Host::new(&daemon::binaries()?)?.measure(way, arguments.runs)?;
    std::fs::write(result, serde_json::to_vec(&values)?)?;
    Ok(ExitCode::SUCCESS)
}
