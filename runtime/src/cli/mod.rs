//! The command line beside the daemon: images, completions, man pages.

mod image;
mod page;

use std::process::ExitCode;

use clap::Subcommand;

use crate::config::Config;

/// What to do instead of serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Look at, pull, import, export and remove images, through the daemon or, when none runs, in its store
    Image(image::ImageArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    Man {
        /// Existing directory, such as /usr/share/man/man8
        dir: std::path::PathBuf,
    },
}

impl Command {
    /// Runs it. `whole` is the command line as such, `settings` what the configuration says.
    pub fn run(self, whole: clap::Command, settings: impl FnOnce() -> Result<Config, ExitCode>) -> ExitCode {
        match self {
            Command::Image(image) => match settings() {
                Ok(config) => image.run(&config),
                Err(code) => code,
            },
            Command::Completions { shell } => page::completions(whole, shell),
            Command::Man { dir } => page::man(whole, &dir),
        }
    }
}
