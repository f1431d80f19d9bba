//! Completions and man pages, from the command line as it is parsed.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn completions(mut command: clap::Command, shell: clap_complete::Shell) -> ExitCode {
    let mut text = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut text);
    match std::io::stdout().write_all(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot print completions: {error}")),
    }
}

pub(super) fn man(command: clap::Command, dir: &Path) -> ExitCode {
    match clap_mangen::generate_to(command, dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write man pages into {}: {error}", dir.display())),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("nodeagent-runtime: {message}");
    ExitCode::FAILURE
}
