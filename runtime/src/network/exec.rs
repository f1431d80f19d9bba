//! Running somebody else's program with a deadline and bounds: it may hang, crash, flood us, or leave children behind.

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::timeout,
};

/// Most that a plugin may answer.
pub(super) const MAX_OUTPUT: usize = 1024 * 1024;
/// How much of the end of its messages is kept for errors.
const MESSAGE_TAIL: usize = 4 * 1024;
/// Time for what is still in the pipes after the plugin itself has ended; children it left behind may hold them open.
const GRACE: Duration = Duration::from_millis(500);
/// Waits for an executable that is being replaced in place (`ETXTBSY`).
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(25);
/// Plugins look for iptables, ip and others here.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program did.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    /// the end of its standard error
    pub(super) stderr: String,
}

/// Why it could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// it did not start
    #[error("start {program}")]
    Start {
        /// the executable
        program: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// it could not be waited for, or read from
    #[error("follow {program}")]
    Follow {
        /// the executable
        program: PathBuf,
        /// the system's answer
        #[source]
        source: io::Error,
    },
    /// it was killed, with all processes of its group
    #[error("{program} did not finish within {} ms and was killed{}", after.as_millis(), with_messages(.stderr))]
    TimedOut {
        /// the executable
        program: PathBuf,
        /// the time it had
        after: Duration,
        /// the end of its standard error
        stderr: String,
    },
    /// it was killed because it would not stop writing
    #[error("{program} wrote more than {MAX_OUTPUT} bytes and was killed")]
    TooMuchOutput {
        /// the executable
        program: PathBuf,
    },
}

pub(super) fn with_messages(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

/// Runs `program` with nothing but `environment` and a search path, in a process group of its own, so that a deadline
/// takes its children along. Dropping the future kills the group, too.
pub(super) async fn run(
    program: &Path,
    environment: &[(&'static str, String)],
    input: &File,
    limit: Duration,
) -> Result<Output, ExecError> {
    let mut child = start(program, environment, input).await?;
    let group = Group::of(&child);
    let mut stdout = Vec::new();
    let mut stderr = Vec::new();
    let follow = follow(&mut child, &mut stdout, &mut stderr);
    let outcome = timeout(limit, follow).await;
    let follow_error = |source| ExecError::Follow { program: program.to_owned(), source };
    match outcome {
        Ok(Ok(Some(status))) => {
            group.ended();
            Ok(Output { status, stdout, stderr: tail(&stderr) })
        }
        Ok(Ok(None)) => {
            group.kill_and_reap(child).await;
            Err(ExecError::TooMuchOutput { program: program.to_owned() })
        }
        Ok(Err(error)) => {
            group.kill_and_reap(child).await;
            Err(follow_error(error))
        }
        Err(_) => {
            group.kill_and_reap(child).await;
            Err(ExecError::TimedOut { program: program.to_owned(), after: limit, stderr: tail(&stderr) })
        }
    }
}

async fn start(program: &Path, environment: &[(&'static str, String)], input: &File) -> Result<Child, ExecError> {
    let mut attempt = 0;
    let start_error = |source| ExecError::Start { program: program.to_owned(), source };
    loop {
        let started = Command::new(program)
            .env_clear()
            .env("PATH", PATH)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(input.try_clone().map_err(start_error)?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        match started {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && attempt < BUSY_RETRIES => {
                attempt += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(source) => return Err(start_error(source)),
            Ok(child) => return Ok(child),
        }
    }
}

/// Reads until the program has ended; `None` when it writes too much.
async fn follow(child: &mut Child, stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) -> io::Result<Option<ExitStatus>> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut pipes = pin!(async { tokio::try_join!(read_bounded(out, stdout), read_tail(err, stderr)) });
    // cancel safety: both futures are kept and polled again below; wait() is cancel safe by its documentation
    let first = tokio::select! {
        read = &mut pipes => Err(read),
        status = child.wait() => Ok(status),
    };
    match first {
        Err(read) => {
            let (within_bounds, ()) = read?;
            if within_bounds { child.wait().await.map(Some) } else { Ok(None) }
        }
        Ok(status) => {
            let status = status?;
            match timeout(GRACE, pipes).await {
                Ok(read) => Ok(read?.0.then_some(status)),
                Err(_) => Ok(Some(status)),
            }
        }
    }
}

/// Reads to the end, or until there is more than [`MAX_OUTPUT`]: then `false`.
async fn read_bounded(pipe: Option<impl AsyncRead + Unpin>, output: &mut Vec<u8>) -> io::Result<bool> {
    if let Some(pipe) = pipe {
        pipe.take(MAX_OUTPUT as u64 + 1).read_to_end(output).await?;
    }
    Ok(output.len() <= MAX_OUTPUT)
}

/// Reads to the end and keeps the last few kilobytes.
async fn read_tail(pipe: Option<impl AsyncRead + Unpin>, output: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    while pipe.read_buf(output).await? != 0 {
        if output.len() > 2 * MESSAGE_TAIL {
            output.drain(..output.len() - MESSAGE_TAIL);
        }
    }
    Ok(())
}

fn tail(stderr: &[u8]) -> String {
    String::from_utf8_lossy(&stderr[stderr.len().saturating_sub(MESSAGE_TAIL)..]).trim().to_owned()
}

/// The process group of a program that has not been waited for: its number cannot belong to anyone else.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    /// The leader was waited for: from here on the number may be given to others.
    fn ended(mut self) {
        self.0 = None;
    }

    async fn kill_and_reap(self, mut child: Child) {
        drop(self);
        // SIGKILL works at once but for a process in uninterruptible sleep; tokio reaps that one when it is done
        let _ = timeout(GRACE, child.wait()).await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.take()
            && let Err(errno) = killpg(group, Signal::SIGKILL)
        {
            log::debug!(group = group.as_raw(), error = errno.to_string().as_str(); "cannot kill a plugin's processes");
        }
    }
}
