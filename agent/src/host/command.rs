//! The one place that starts programs of the host.
//!
//! Absolute program, arguments as a list, cleared environment, a deadline, bounded output, and the end of stderr in the error:
//! whoever reads the journal sees what the program said. Under `--root` nothing is started, since the programs there belong
//! to a tree that is not trusted and may be of another architecture.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::ledger::Ledger;

/// What is kept of stdout and of stderr; the rest is read and dropped, so that the program does not stand still.
const KEEP_OUTPUT: usize = 1024 * 1024;

/// How much of stderr goes into an error.
const TAIL: usize = 1024;

/// After SIGTERM at the deadline a program has this long before SIGKILL: dnf must be able to close its database.
const GRACE: Duration = Duration::from_secs(10);

/// What a program sees. Nothing of the caller's environment gets in, or a run by hand would differ from one by systemd.
const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C.UTF-8")];

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Absolute path.
    pub program: String,
    /// Arguments, without the program's name.
    pub args: Vec<String>,
    /// Further variables (a proxy).
    pub env: Vec<(String, String)>,
    /// When it is ended.
    pub deadline: Duration,
    /// True when it only looks: it is not counted as a change of the host.
    pub reads_only: bool,
}

impl Command {
    /// A program that changes something.
    pub fn new(program: &str, deadline: Duration) -> Command {
        Command { program: program.to_owned(), args: Vec::new(), env: Vec::new(), deadline, reads_only: false }
    }

    /// A program that only looks.
    pub fn query(program: &str, deadline: Duration) -> Command {
        Command { reads_only: true, ..Command::new(program, deadline) }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Command {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Command {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The command as a person would type it. For messages only.
    pub fn line(&self) -> String {
        std::iter::once(&self.program).chain(&self.args).map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

/// What a program left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Bounded.
    pub stdout: String,
    /// Bounded.
    pub stderr: String,
}

impl Output {
    /// The output of a program that exited with 0.
    pub fn success(self, command: &Command) -> Result<Output, CommandError> {
        if self.code == Some(0) {
            return Ok(self);
        }
        let code = self.code.map_or_else(|| "killed by a signal".to_owned(), |code| format!("exit status {code}"));
        Err(CommandError::Failed { program: command.program.clone(), code, stderr: tail(&self.stderr) })
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No program is started under an offline root.
    #[error("run {program}: refused, nothing of an offline root is executed")]
    Offline {
        /// Its path.
        program: String,
    },
    /// It could not be started.
    #[error("start {program}")]
    Start {
        /// Its path.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Waiting for it failed.
    #[error("wait for {program}")]
    Wait {
        /// Its path.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It was ended at its deadline.
    #[error("{program} did not end within {} s: {stderr}", deadline.as_secs())]
    Deadline {
        /// Its path.
        program: String,
        /// The deadline.
        deadline: Duration,
        /// The end of what it said.
        stderr: String,
    },
    /// It ended with an error.
    #[error("{program}: {code}: {stderr}")]
    Failed {
        /// Its path.
        program: String,
        /// Exit status or signal, in words.
        code: String,
        /// The end of what it said.
        stderr: String,
    },
}

/// Runs programs of the host.
#[async_trait]
pub trait CommandRunner: Send + Sync {
    /// Runs it to its end. A program that ends with an error is an `Ok` with its code; see [`Output::success`].
    async fn run(&self, command: &Command) -> Result<Output, CommandError>;
}

/// For a root that is not running: refuses.
#[derive(Debug, Clone, Copy)]
pub struct NoCommands;

#[async_trait]
impl CommandRunner for NoCommands {
    async fn run(&self, command: &Command) -> Result<Output, CommandError> {
        Err(CommandError::Offline { program: command.program.clone() })
    }
}

/// The running system.
#[derive(Debug, Clone)]
pub struct Programs {
    ledger: Ledger,
}

impl Programs {
    /// Notes what changes the host in `ledger`.
    pub fn new(ledger: Ledger) -> Programs {
        Programs { ledger }
    }
}

#[async_trait]
impl CommandRunner for Programs {
    async fn run(&self, command: &Command) -> Result<Output, CommandError> {
        if !command.reads_only {
            self.ledger.note(format!("run {}", command.line()));
        }
        let mut child = tokio::process::Command::new(&command.program)
            .args(&command.args)
            .env_clear()
            .envs(ENVIRONMENT)
            .envs(command.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // a group of its own: what it started ends with it at the deadline
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| CommandError::Start { program: command.program.clone(), source })?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = {
            let work = async {
                // scriptlets may leave a daemon behind that keeps the pipes open: the program's own end is what counts
                let reading = async { tokio::join!(drain(stdout, &mut out), drain(stderr, &mut err)) };
                tokio::pin!(reading);
                tokio::select! {
                    status = child.wait() => {
                        let _ = tokio::time::timeout(Duration::from_millis(200), reading).await;
                        status
                    }
                    _ = &mut reading => child.wait().await,
                }
            };
            tokio::time::timeout(command.deadline, work).await
        };
        let status = match ended {
            Ok(status) => status.map_err(|source| CommandError::Wait { program: command.program.clone(), source })?,
            Err(_) => {
                signal_group(group, Signal::SIGTERM);
                let _ = tokio::time::timeout(GRACE, child.wait()).await;
                signal_group(group, Signal::SIGKILL);
                let _ = child.wait().await;
                let stderr = tail(&String::from_utf8_lossy(&err));
                return Err(CommandError::Deadline {
                    program: command.program.clone(),
                    deadline: command.deadline,
                    stderr,
                });
            }
        };
        Ok(output(status, &out, &err))
    }
}

fn output(status: ExitStatus, out: &[u8], err: &[u8]) -> Output {
    Output {
        code: status.code(),
        stdout: String::from_utf8_lossy(out).into_owned(),
        stderr: String::from_utf8_lossy(err).into_owned(),
    }
}

fn signal_group(group: Option<Pid>, signal: Signal) {
    let Some(group) = group else { return };
    match killpg(group, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => log::warn!("send {signal} to process group {group}: {errno}"),
    }
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = [0u8; 8192];
    // a read error on our own pipe is its end
    while let Ok(size @ 1..) = pipe.read(&mut buffer).await {
        let room = KEEP_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..size.min(room)]);
    }
}

/// The last lines, on one line each separated by `; `, cut to [`TAIL`] bytes.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut start = lines.len();
    let mut size = 0;
    while start > 0 && size + lines[start - 1].len() <= TAIL {
        start -= 1;
        size += lines[start].len() + 2;
    }
    if start == lines.len()
        && let Some(last) = lines.last()
    {
        // one line longer than all that is kept: its beginning says more than nothing
        return last.chars().take(TAIL).collect();
    }
    if lines.is_empty() { "no message".to_owned() } else { lines[start..].join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner() -> Programs {
        Programs::new(Ledger::default())
    }

    fn shell(script: &str, deadline: Duration) -> Command {
        Command::new("/bin/sh", deadline).arg("-c").arg(script)
    }

    #[tokio::test]
    async fn the_environment_is_ours_and_nobody_elses() {
        let output = runner().run(&Command::query("/usr/bin/env", Duration::from_secs(5))).await.unwrap();
        let mut names: Vec<_> = output.stdout.lines().map(|line| line.split('=').next().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[tokio::test]
    async fn a_failure_carries_code_and_the_end_of_stderr() {
        let command = shell("echo first >&2; echo 'no such repo' >&2; exit 7", Duration::from_secs(5));
        let error = runner().run(&command).await.unwrap().success(&command).unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh: exit status 7: first; no such repo");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_its_children() {
        let started = std::time::Instant::now();
        let command = shell("echo working >&2; sleep 1000 & sleep 1000; true", Duration::from_millis(300));
        let error = runner().run(&command).await.unwrap_err();
        assert!(matches!(&error, CommandError::Deadline { stderr, .. } if stderr == "working"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_daemon_left_behind_with_the_pipes_does_not_hold_us() {
        let started = std::time::Instant::now();
        let command = shell("sleep 20 & echo $!", Duration::from_secs(15));
        let output = runner().run(&command).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(5));
        let left: i32 = output.stdout.trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn output_without_end_is_cut_and_does_not_block_the_program() {
        let command = shell("head -c 5000000 /dev/zero | tr '\\0' x", Duration::from_secs(20));
        let output = runner().run(&command).await.unwrap();
        assert_eq!((output.code, output.stdout.len()), (Some(0), KEEP_OUTPUT));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = runner().run(&Command::new("/nonexistent/dnf", Duration::from_secs(1))).await.unwrap_err();
        assert_eq!(error.to_string(), "start /nonexistent/dnf");
    }

    #[test]
    fn the_tail_is_bounded() {
        assert_eq!(tail(""), "no message");
        assert!(tail(&"x".repeat(10_000)).len() <= TAIL);
        assert!(tail(&"line\n".repeat(10_000)).len() <= TAIL + 2);
    }
}
