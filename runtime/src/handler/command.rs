//! One command of a runtime: bounded in time and in what is taken of its output.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

/// What is read of each stream.
const OUTPUT: u64 = 1 << 20;

/// Of an error, what is told.
const MESSAGE: usize = 2000;

/// A command that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not there, or cannot be executed.
    #[error("execute {}", program.display())]
    Execute {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not end.
    #[error("{} {command}: no end within {} s", program.display(), after.as_secs())]
    Silent {
        /// The program.
        program: PathBuf,
        /// What it was told.
        command: String,
        /// The deadline.
        after: Duration,
    },
    /// It failed.
    #[error("{} {command}: {status}: {message}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// What it was told.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
}

impl CommandError {
    /// Whether it failed because there is no such container.
    pub fn says_unknown(&self) -> bool {
        let Self::Failed { message, .. } = self else { return false };
        ["does not exist", "No such file or directory", "not found"].iter().any(|words| message.contains(words))
    }
}

/// Runs a command and gives what it wrote to its standard output.
pub(crate) async fn run(
    program: &Path,
    arguments: &[&str],
    input: Option<String>,
    limit: Duration,
) -> Result<String, CommandError> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    finish(command, program, &arguments.join(" "), input, limit).await
}

/// Runs a command whose arguments and environment are set; `words` is what an error calls them.
pub(crate) async fn finish(
    mut command: Command,
    program: &Path,
    words: &str,
    input: Option<String>,
    limit: Duration,
) -> Result<String, CommandError> {
    let failed = |source| CommandError::Execute { program: program.to_owned(), source };
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    // a group of its own: with a command that takes too long ends what it has started
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let work = async {
        let feed = async {
            if let (Some(mut stdin), Some(text)) = (stdin, input) {
                // one that does not read says itself what it lacks
                let _ = stdin.write_all(text.as_bytes()).await;
            }
        };
        let ((), out, error, status) = tokio::join!(feed, take(stdout), take(stderr), child.wait());
        Ok::<_, io::Error>((status?, out, error))
    };
    let words = words.to_owned();
    let Ok(ended) = timeout(limit, work).await else {
        if let Some(group) = group {
            // not reaped yet, so the number is its own
            let _ = killpg(group, Signal::SIGKILL);
        }
        return Err(CommandError::Silent { program: program.to_owned(), command: words, after: limit });
    };
    let (status, out, error) = ended.map_err(failed)?;
    if status.success() {
        return Ok(out);
    }
    let message = error.trim().chars().take(MESSAGE).collect();
    Err(CommandError::Failed { program: program.to_owned(), command: words, status, message })
}

/// The beginning of a stream; the rest is read and forgotten, so that the writer does not stand still.
async fn take(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut bytes = Vec::new();
    // what could not be read is missing in a message at worst
    let _ = (&mut stream).take(OUTPUT).read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, input: Option<&str>) -> Result<String, CommandError> {
        run(Path::new("/bin/sh"), &["-c", script], input.map(str::to_owned), Duration::from_secs(20)).await
    }

    #[tokio::test]
    async fn output_and_errors_come_back_and_input_arrives() {
        assert_eq!(sh("cat; echo more", Some("given ")).await.unwrap(), "given more\n");
        let error = sh("echo container does not exist >&2; exit 3", None).await.unwrap_err();
        assert!(error.says_unknown() && error.to_string().contains("exit status: 3"), "{error}");
        assert!(!sh("echo no >&2; exit 1", None).await.unwrap_err().says_unknown());
        let missing = run(Path::new("/nowhere/runtime"), &["state"], None, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(missing.to_string(), "execute /nowhere/runtime");
    }

    #[tokio::test]
    async fn a_command_that_floods_or_hangs_is_bounded() {
        let text = sh("head -c 5000000 /dev/zero | tr '\\0' x", None).await.unwrap();
        assert_eq!(text.len() as u64, OUTPUT);
        let hanging = run(Path::new("/bin/sleep"), &["1000"], None, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(hanging, CommandError::Silent { .. }), "{hanging}");
    }
}
