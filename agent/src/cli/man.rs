//! `agent man`

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::Cli;
use super::failure::Failure;
use crate::exit::{self, Exit};

/// Write the man pages into a directory
#[derive(Debug, Args)]
pub struct Man {
    /// Existing directory, such as /usr/share/man/man1
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(Exit::Internal, format!("write man pages into {}: {error}", self.dir.display()))
        };
        clap_mangen::generate_to(Cli::command().after_help(None::<&str>), &self.dir).map_err(failed)?;
        // the main page gets the codes as a section of their own, which --help cannot have
        let page = clap_mangen::Man::new(Cli::command().after_help(None::<&str>));
        let mut text = Vec::new();
        page.render(&mut text).map_err(failed)?;
        text.extend_from_slice(exit_section().as_bytes());
        std::fs::write(self.dir.join("agent.1"), text).map_err(failed)?;
        Ok(Exit::Converged)
    }
}

fn exit_section() -> String {
    let mut text = ".SH \"EXIT STATUS\"\n".to_owned();
    for (exit, meaning) in exit::ALL {
        text.push_str(&format!(".TP\n.B {}\n{meaning}\n", exit.code()));
    }
    text
}
