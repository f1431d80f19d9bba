//! A container that another runtime makes: which of its commands is at work, and what it said when it failed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use crate::launch::pid_file;
use crate::launcher::Failure;
use crate::protocol::{ErrorKind, OciRuntime};
use crate::sys::Ended;

/// Of a log, the end that is looked at.
const TAIL: u64 = 64 << 10;

/// Longest message taken from a log, in characters.
const MESSAGE: usize = 2000;

/// Where a container of another runtime is between its two commands.
///
/// ```text
/// Creating ──end of `create`, number of the process──► Starting ──end of `start`──► Started
/// ```
#[derive(Debug)]
pub enum Stage {
    /// `create` is at work; it is the process of the container until there is one.
    Creating,
    /// `start` is at work. The program may have begun, and even have ended.
    Starting { command: i32, early: Option<Ended> },
    /// The runtime has done its part.
    Started,
}

/// What is known of it.
#[derive(Debug)]
pub struct State {
    /// The runtime.
    pub runtime: OciRuntime,
    /// Where it is.
    pub stage: Stage,
    /// Why it could not be started, while its process is still there.
    pub failure: Option<Failure>,
}

impl State {
    /// `create` has just been forked.
    pub fn new(runtime: OciRuntime) -> Self {
        Self { runtime, stage: Stage::Creating, failure: None }
    }

    /// Whether its process has ended before that could be told.
    pub fn is_reaped(&self) -> bool {
        matches!(self.stage, Stage::Starting { early: Some(_), .. })
    }

    /// The process that `create` has left.
    pub fn created(&self) -> Result<i32, Failure> {
        let path = pid_file(&self.runtime);
        let failure = |message: String| Failure { kind: ErrorKind::System, exit_code: 128, message };
        let text = std::fs::read_to_string(&path).map_err(|error| failure(format!("read {path}: {error}")))?;
        let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
        pid.ok_or_else(|| failure(format!("{path}: `{}` is no process", text.trim())))
    }

    /// Whether the one that stands in for it says that memory was short.
    pub fn oom(&self) -> bool {
        self.runtime.stand_in && std::path::Path::new(&self.runtime.bundle).join("oom").exists()
    }

    /// Why a command failed, in its own words.
    pub fn failure(&self, command: &str, code: i32) -> Failure {
        failure(&self.runtime, command, "runtime.log", code)
    }
}

/// Why a command failed, by the log that it was told to write.
pub fn failure(runtime: &OciRuntime, command: &str, log: &str, code: i32) -> Failure {
    let said = last_message(&format!("{}/{log}", runtime.bundle));
    let (kind, exit_code) = class(&said);
    let name = runtime.program.rsplit('/').next().unwrap_or_default();
    let how = if said.is_empty() { format!("ended with code {code} and said nothing") } else { said };
    Failure { kind, exit_code, message: format!("{name} {command}: {how}") }
}

/// A program that is not there or cannot be executed has its exit codes; runtimes tell of that in words only.
fn class(said: &str) -> (ErrorKind, i32) {
    let said = said.to_ascii_lowercase();
    let has = |words: &str| said.contains(words);
    match has("exec") || has("executable") {
        true if has("permission denied") => (ErrorKind::CannotExecute, 126),
        true if has("not found") || has("no such file or directory") => (ErrorKind::CannotExecute, 127),
        _ => (ErrorKind::System, 128),
    }
}

/// The last line of a runtime's log: as JSON, as `key="value"` pairs, or plain.
pub fn last_message(path: &str) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = tail().unwrap_or_default();
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    message_of(line).chars().take(MESSAGE).collect()
}

fn message_of(line: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Entry {
        msg: String,
    }
    if let Ok(entry) = serde_json::from_str::<Entry>(line) {
        return entry.msg;
    }
    if let Some((_, quoted)) = line.split_once("msg=\"")
        && let Some(end) = quoted.rfind('"')
    {
        return quoted[..end].replace("\\\"", "\"");
    }
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_log_says_why() {
        for (line, message) in [
            (r#"{"level":"error","msg":"exec: \"x\": not found","time":"2026"}"#, r#"exec: "x": not found"#),
            (
                r#"time="2026" level=error msg="runc create failed: exec: \"x\": not found""#,
                r#"runc create failed: exec: "x": not found"#,
            ),
            (
                "2026-01-01T00:00:00.0Z: executable file `x` not found",
                "2026-01-01T00:00:00.0Z: executable file `x` not found",
            ),
            ("", ""),
        ] {
            assert_eq!(message_of(line), message);
        }
        assert_eq!(last_message("/nowhere/at/all"), "");
    }

    #[test]
    fn programs_that_cannot_be_executed_are_told_by_the_words() {
        for (said, code) in [
            (r#"exec: "/nope": stat /nope: no such file or directory"#, 127),
            ("executable file `nope` not found in $PATH: No such file or directory", 127),
            (r#"exec: "/etc/passwd": permission denied"#, 126),
            ("cannot set up cgroup: permission denied", 128),
            ("", 128),
        ] {
            assert_eq!(class(said).1, code, "{said}");
        }
    }
}
