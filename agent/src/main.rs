//! The `agent` command: parse, log, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use nix::sys::stat::{Mode, umask};
use nodeagent::cli::Cli;
use nodeagent::exit::Exit;
use nodeagent::telemetry;

fn main() -> ExitCode {
    // what is written is private unless it says otherwise
    umask(Mode::from_bits_truncate(0o077));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // help and version are no errors; a wrong argument is a precondition that is not met, with nothing touched
            drop(error.print());
            return if error.use_stderr() { Exit::Precondition.into() } else { Exit::Converged.into() };
        }
    };
    telemetry::start(cli.log_level());
    // one thread is enough for a program that mostly waits, and starts faster
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli.run()).into(),
        Err(error) => {
            log::error!("start the async runtime: {error}");
            Exit::Internal.into()
        }
    }
}
