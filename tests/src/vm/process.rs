//! Programs that end with this one, however it ends.

use std::ffi::OsStr;
use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result, anyhow};

type Request = (Command, Sender<io::Result<Child>>);

/// A command that becomes `program` after asking the kernel to kill it when the thread that started it ends.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Starts a [`tied`] command from a thread that lives as long as this process.
pub fn spawn(command: Command) -> Result<Child> {
    static STARTER: OnceLock<Sender<Request>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, receiver) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in receiver {
                // who asked may have gone
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = channel();
    starter.send((command, answer)).map_err(|_| anyhow!("the thread that starts programs is gone"))?;
    child.recv().context("the thread that starts programs is gone")?.context("start setpriv (package util-linux)")
}
