//! `make run`, `make shell`, `make stop`.

use std::process::ExitCode;
use std::thread;

use anyhow::Result;
use clap::{Parser, Subcommand};
use nodeagent_tests::demo::{guard, show};
use nodeagent_tests::terminal;
use nodeagent_tests::vm::Suite;

/// Shows a host become a Kubernetes node at its first boot.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boots the test host and waits until its pod answers, then keeps it running.
    Run {
        /// Which Debian, and so which EL.
        #[arg(long, value_enum, default_value = "bookworm")]
        suite: Suite,
        /// Ends when the pod has answered.
        #[arg(long)]
        once: bool,
    },
    /// A root shell in the machine of a `run` elsewhere.
    Shell,
    /// Ends a `run` elsewhere.
    Stop,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\n{error}");
            error.chain().skip(1).for_each(|cause| eprintln!("because: {cause}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run { suite, once } => match guard::folder() {
            None => return guard::watch(),
            Some(folder) => {
                guard::enter()?;
                let node = show::run(suite, &folder, &show::Progress::start())?;
                if !once {
                    show::explain(&node.machine)?;
                    // until the guard ends it
                    loop {
                        thread::park();
                    }
                }
            }
        },
        Command::Shell => terminal::attach(&guard::running()?.1.join(guard::SHELL))?,
        Command::Stop => guard::stop()?,
    }
    Ok(ExitCode::SUCCESS)
}
