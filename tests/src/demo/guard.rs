//! Runs the demonstration as a process group of its own, and clears away what is left of it, whatever ends it.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, ExitStatus};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::{Pid, getpid};

use crate::outside::repository;
use crate::vm::process;

/// In the environment of the demonstration: its folder for everything that it makes.
pub const FOLDER: &str = "NODEAGENT_RUN_FOLDER";

/// The socket of the machine's shell, in the folder.
pub const SHELL: &str = "shell";

/// Tells the waiting thread that the demonstration is over.
const OVER: Signal = Signal::SIGUSR1;

/// The folder of the demonstration, inside of it; none outside.
pub fn folder() -> Option<PathBuf> {
    env::var_os(FOLDER).map(PathBuf::from)
}

/// Inside: signals have been held back for the outside.
pub fn enter() -> Result<()> {
    signals().thread_unblock().context("take signals")
}

/// Outside: starts this program again with the same arguments and waits for its end, or for a signal.
pub fn watch() -> Result<ExitCode> {
    // before there is a second thread, which would take them
    signals().thread_block().context("hold back signals")?;
    let mut register = register()?.context("it runs already; `make stop` ends it")?;
    let folder = tempfile::Builder::new().prefix("nodeagent-run-").tempdir().context("create a temporary folder")?;
    register.set_len(0)?;
    register.rewind()?;
    writeln!(register, "{} {}", getpid(), folder.path().display()).context("note that it runs")?;

    let mut command = process::tied(env::current_exe().context("find this program")?);
    command.args(env::args_os().skip(1)).env(FOLDER, folder.path()).env("TMPDIR", folder.path()).process_group(0);
    let child = process::spawn(command)?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let ended = wait_in_background(child);
    let signal = signals().wait().context("wait for a signal")?;
    // its helpers are in the group; all of it is throwaway
    match killpg(group, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => bail!("end process group {group}: {error}"),
    }
    let status = ended.join().map_err(|_| anyhow::anyhow!("the waiting thread failed"))??;
    register.set_len(0)?;
    if signal == OVER {
        return Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from));
    }
    println!("\nstopped; nothing is left of it");
    Ok(ExitCode::SUCCESS)
}

/// The folder of the demonstration that runs now.
pub fn running() -> Result<(Pid, PathBuf)> {
    if register()?.is_some() {
        bail!("it does not run; `make run` starts it");
    }
    let mut text = String::new();
    let path = register_path();
    File::open(&path)
        .and_then(|mut file| file.read_to_string(&mut text))
        .with_context(|| format!("read {}", path.display()))?;
    let (pid, folder) = text.trim().split_once(' ').context("it is just starting, or ending")?;
    Ok((Pid::from_raw(pid.parse().context("no process id is noted")?), folder.into()))
}

/// Ends the demonstration that runs now, and waits until it is gone.
pub fn stop() -> Result<()> {
    let (pid, _) = running()?;
    kill(pid, Signal::SIGTERM).with_context(|| format!("end process {pid}"))?;
    let file = File::open(register_path()).context("open the register")?;
    // held as long as it runs
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("wait for its end")?;
    Ok(())
}

fn wait_in_background(mut child: Child) -> thread::JoinHandle<Result<ExitStatus>> {
    let waiter = getpid();
    thread::spawn(move || {
        let status = child.wait().context("wait for the demonstration")?;
        kill(waiter, OVER).context("say that it is over")?;
        Ok(status)
    })
}

fn signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, OVER].into_iter().collect()
}

/// The lock that says that one runs; none when it is taken.
fn register() -> Result<Option<Flock<File>>> {
    let path = register_path();
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
    }
}

fn register_path() -> PathBuf {
    repository().join("target/run.lock")
}

/// The machine's shell socket has to exist before anybody can be told about it.
pub fn offer_shell(socket: &Path) -> Result<()> {
    let folder = folder().context("not in a demonstration")?;
    ensure!(socket.exists(), "{} is not there", socket.display());
    std::os::unix::fs::symlink(socket, folder.join(SHELL)).context("offer the shell")
}
