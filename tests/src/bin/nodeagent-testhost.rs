//! The test host by hand: build its image, run commands in it, look around in it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use nodeagent_tests::terminal;
use nodeagent_tests::vm::{Hardware, Image, Machine, Saved, Suite};

/// A virtual machine that looks like CentOS Stream, made of Debian packages.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Builds the image and boots it once, so that later runs start in a second.
    Build {
        /// Which Debian, and so which EL.
        #[arg(long, value_enum, default_value = "bookworm")]
        suite: Suite,
        /// Leaves out the boot.
        #[arg(long)]
        only_image: bool,
    },
    /// Runs a command as root in a throwaway copy; its exit status is ours (124: it took too long).
    Run {
        #[command(flatten)]
        machine: MachineArguments,
        /// For the command.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout: u64,
        /// One word: a script for bash. More: a program and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// A root shell in a throwaway copy; Ctrl-] leaves it.
    Shell {
        #[command(flatten)]
        machine: MachineArguments,
    },
}

#[derive(Debug, Args)]
struct MachineArguments {
    /// Which Debian, and so which EL.
    #[arg(long, value_enum, default_value = "bookworm")]
    suite: Suite,
    /// A folder that is /share in the guest.
    #[arg(long, value_name = "FOLDER")]
    share: Option<PathBuf>,
    /// Boots, with a disk that keeps what is written to it: again with the same file is the host's next boot.
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Boots, with cloud-init and these NoCloud files (user-data, meta-data).
    #[arg(long, value_name = "FOLDER")]
    seed: Option<PathBuf>,
    /// Boots, with more words on the kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Boots instead of going on from the saved state.
    #[arg(long)]
    cold: bool,
}

impl MachineArguments {
    fn start(&self) -> Result<Machine> {
        let image = Image::ready(self.suite, &mut say)?;
        let find = |path: &PathBuf| path.canonicalize().with_context(|| format!("find {}", path.display()));
        let hardware = Hardware {
            share: self.share.as_ref().map(find).transpose()?,
            seed: self.seed.as_ref().map(find).transpose()?,
            append: self.append.clone(),
            ..Hardware::default()
        };
        match &self.disk {
            Some(disk) => Machine::boot_disk(&image, &hardware, disk),
            None if self.cold || self.seed.is_some() || !self.append.is_empty() => Machine::boot(&image, &hardware),
            None => Saved::booted(&image, &Hardware::default(), &mut say)?.resume(&image, &hardware),
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nodeagent-testhost: {error}");
            error.chain().skip(1).for_each(|cause| eprintln!("because: {cause}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Build { suite, only_image } => {
            let image = Image::ready(suite, &mut say)?;
            if !only_image {
                Saved::booted(&image, &Hardware::default(), &mut say)?;
            }
            println!("{}", image.file("").display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Run { machine, timeout, command } => {
            let script = if let [script] = command.as_slice() { script.clone() } else { quote(&command) };
            let mut output = std::io::stdout();
            let status = machine.start()?.run_into(&script, Duration::from_secs(timeout), &mut |piece| {
                // a reader that has gone away is no reason to stop the command
                let _ = output.write_all(piece).and_then(|()| output.flush());
            })?;
            Ok(u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from))
        }
        Command::Shell { machine } => {
            let machine = machine.start()?;
            terminal::attach(&machine.shell())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn say(text: &str) {
    eprintln!("nodeagent-testhost: {text}");
}

/// Words as one line that a shell reads as the same words.
fn quote(words: &[String]) -> String {
    words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ")
}
