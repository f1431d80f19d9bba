//! The shim's own program: `start` makes one that serves, `delete` tidies up after one that is dead, `-info` says what it can.

use std::ffi::CString;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve};

use super::connection::{NAMESPACE, milliseconds};
use super::error::TaskError;
use super::home::{Address, Home};
use super::wire::{Message, Writer, any};
use super::{Runtime, bundle};
use crate::io::pipe_to_read;
use crate::sys;

const START: Duration = Duration::from_secs(60);
const DELETE: Duration = Duration::from_secs(15);
const INFO: Duration = Duration::from_secs(10);

/// What is kept of each stream.
const OUTPUT: usize = 1 << 20;

/// Of what it complains about, what is told: the end.
const MESSAGE: usize = 2000;

/// Starts a shim for a pod, whose bundle is in `home`; where it listens.
pub fn start(runtime: &Runtime, home: &Home) -> Result<Address, TaskError> {
    let options = options(runtime, home).map(Writer::done).unwrap_or_default();
    let said = run(runtime, home, "start", &options, START)?;
    parse_start(&runtime.shim, &said)
}

/// Has it tidy up after a dead shim: the task's exit code.
pub fn delete(runtime: &Runtime, home: &Home) -> Result<i32, TaskError> {
    let said = run(runtime, home, "delete", &[], DELETE)?;
    let method = "delete";
    let response = Message::parse(&said).map_err(|source| TaskError::Malformed { method, source })?;
    Ok(i32::try_from(response.number(2) & 0xff).unwrap_or(255))
}

/// What the runtime says that it can, as its own document; older ones cannot say it.
pub fn features(runtime: &Runtime) -> Result<Vec<u8>, TaskError> {
    let said = execute(&runtime.shim, &["-info".to_owned()], &surroundings(), Path::new("/"), &[], INFO)?;
    let method = "-info";
    let malformed = |source| TaskError::Malformed { method, source };
    let info = Message::parse(&said).map_err(malformed)?;
    let features = info.message(4).map_err(malformed)?;
    Ok(features.bytes(2).to_vec())
}

/// What the runtime is told besides: runc's shim of the cgroup driver, others of their configuration.
pub fn options(runtime: &Runtime, home: &Home) -> Option<Writer> {
    let name = runtime.shim.rsplit('/').next().unwrap_or_default();
    if let Some(path) = &runtime.config_path {
        let options = Writer::default().text(2, path).done();
        return Some(any("runtimeoptions.v1.Options", &options));
    }
    name.starts_with("containerd-shim-runc-").then(|| {
        let options = Writer::default().text(7, &home.runc_root()).number(9, runtime.systemd_cgroup.into());
        any("containerd.runc.v1.Options", &options.done())
    })
}

fn run(runtime: &Runtime, home: &Home, action: &str, input: &[u8], limit: Duration) -> Result<Vec<u8>, TaskError> {
    let events = home.of(&bundle::pod_of(home)?)?.events()?.to_string_lossy().into_owned();
    let own = std::fs::read_link("/proc/self/exe").map_err(TaskError::file("read", "/proc/self/exe"))?;
    let own = own.to_string_lossy().into_owned();
    let mut arguments: Vec<String> =
        ["-namespace", NAMESPACE, "-address", &events, "-publish-binary", &own, "-id", &home.id]
            .map(str::to_owned)
            .into();
    if action == "delete" {
        arguments.extend(["-bundle".to_owned(), home.text()]);
    }
    arguments.push(action.to_owned());
    let mut environment = surroundings();
    environment.extend([
        format!("TTRPC_ADDRESS={events}"),
        format!("GRPC_ADDRESS={events}"),
        format!("NAMESPACE={NAMESPACE}"),
        "MAX_SHIM_VERSION=3".to_owned(),
    ]);
    execute(&runtime.shim, &arguments, &environment, &home.path(), input, limit)
}

/// What every program is told.
fn surroundings() -> Vec<String> {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    // those that are written in Go need no more threads than that
    [path, "HOME=/root", "GOMAXPROCS=2"].map(str::to_owned).into()
}

/// The address alone, or since containerd 1.7 a document.
fn parse_start(program: &str, said: &[u8]) -> Result<Address, TaskError> {
    let wrong = |said: String| TaskError::Program { program: program.to_owned(), action: "start".to_owned(), said };
    let text = String::from_utf8_lossy(said);
    let text = text.trim();
    let (version, address) = if text.starts_with('{') {
        let document: serde_json::Value =
            serde_json::from_str(text).map_err(|error| wrong(format!("an answer that is none: {error}")))?;
        let version = match document["version"].as_u64() {
            Some(2) => 2,
            Some(3) => 3,
            _ => {
                let said = &document["version"];
                return Err(wrong(format!("version {said} of the task service; known are 2 and 3")));
            }
        };
        let protocol = document["protocol"].as_str().unwrap_or_default();
        if !protocol.is_empty() && !protocol.eq_ignore_ascii_case("ttrpc") {
            return Err(wrong(format!("protocol `{protocol}`; known is `ttrpc`")));
        }
        (version, document["address"].as_str().unwrap_or_default().to_owned())
    } else {
        (2, text.to_owned())
    };
    let address = Address { address, version, pid: 0, began: 0, of_pod: true };
    match address.path() {
        Ok(_) => Ok(address),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// Runs a program to its end and gives what it wrote to its standard output.
fn execute(
    program: &str,
    arguments: &[String],
    environment: &[String],
    directory: &Path,
    input: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, TaskError> {
    let action = arguments.last().cloned().unwrap_or_default();
    let failed = |said: String| TaskError::Program { program: program.to_owned(), action: action.clone(), said };
    let system = |what| TaskError::system(what);
    if let Err(error) = std::fs::metadata(program).map(|found| found.mode()) {
        return Err(failed(error.to_string()));
    }
    let text = |text: &str| CString::new(text).map_err(|_| TaskError::Usage("a zero byte in an argument".to_owned()));
    let path = text(program)?;
    let mut all = vec![path.clone()];
    for argument in arguments {
        all.push(text(argument)?);
    }
    let environment = environment.iter().map(|entry| text(entry)).collect::<Result<Vec<_>, _>>()?;
    let stdin = memfd_create(c"input", MFdFlags::MFD_CLOEXEC).map_err(system("make a file in memory"))?;
    let mut stdin = std::fs::File::from(stdin);
    stdin.write_all(input).and_then(|()| stdin.rewind()).map_err(TaskError::file("write", "a file in memory"))?;
    let (stdout, out) = pipe_to_read().map_err(system("make a pipe"))?;
    let (stderr, err) = pipe_to_read().map_err(system("make a pipe"))?;
    let told = SigSet::from(Signal::SIGCHLD);
    told.thread_block().map_err(system("block signals"))?;
    let signals = SignalFd::with_flags(&told, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(system("wait for signals"))?;
    let Some(pid) = sys::clone_process(0, None).map_err(system("make a process"))? else {
        let begun = || -> nix::Result<()> {
            dup2_stdin(&stdin)?;
            dup2_stdout(&out)?;
            dup2_stderr(&err)?;
            chdir(directory)?;
            sys::default_signals();
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            sys::cloexec_from(3);
            execve(&path, &all, &environment).map(drop)
        };
        let error = begun().err().unwrap_or(Errno::EIO);
        let _ = writeln!(std::io::stderr(), "execute: {error}");
        sys::end_now(127);
    };
    drop((out, err));
    let mut kept = [Kept::new(stdout), Kept::new(stderr)];
    let ended = wait(Pid::from_raw(pid), &signals, &mut kept, limit);
    let [out, err] = kept.map(|kept| kept.bytes);
    let said = String::from_utf8_lossy(&err).trim().to_owned();
    let tail: String = said.chars().skip(said.chars().count().saturating_sub(MESSAGE)).collect();
    match ended {
        Some(0) => Ok(out),
        Some(code) => Err(failed(format!("ended with code {code}: {tail}"))),
        None => Err(failed(format!("no end within {} s: {tail}", limit.as_secs()))),
    }
}

/// A stream, of which the beginning is kept and all is read.
struct Kept {
    from: OwnedFd,
    bytes: Vec<u8>,
    open: bool,
}

impl Kept {
    fn new(from: OwnedFd) -> Self {
        Self { from, bytes: Vec::new(), open: true }
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match nix::unistd::read(&self.from, &mut buffer) {
                Ok(0) => {
                    self.open = false;
                    return;
                }
                Ok(count) => {
                    let room = OUTPUT.saturating_sub(self.bytes.len()).min(count);
                    self.bytes.extend_from_slice(&buffer[..room]);
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// Until it ends, or is killed for being late: what it started may go on, and may keep its streams.
fn wait(pid: Pid, signals: &SignalFd, kept: &mut [Kept; 2], limit: Duration) -> Option<i32> {
    let deadline = Instant::now() + limit;
    let mut late = false;
    // before 5.3 there is the signal alone, which is for a process that has no other thread to take it
    let end = sys::pidfd_open(pid.as_raw()).ok();
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(status) => {
                kept.iter_mut().for_each(Kept::read);
                return match status {
                    WaitStatus::Exited(_, code) if !late => Some(code),
                    WaitStatus::Signaled(_, signal, _) if !late => Some(128 + signal as i32),
                    _ => None,
                };
            }
            Err(_) => return None,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() && !late {
            late = true;
            // not waited for yet: the number is its own
            let _ = sys::send_signal(pid.as_raw(), libc::SIGKILL);
        }
        let pause = if late { Duration::from_secs(1) } else { left };
        let mut ready = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        ready.extend(end.iter().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN)));
        ready.extend(kept.iter().filter(|one| one.open).map(|one| PollFd::new(one.from.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut ready, milliseconds(pause));
        drop(ready);
        while let Ok(Some(_)) = signals.read_signal() {}
        kept.iter_mut().filter(|one| one.open).for_each(Kept::read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: &[u8], limit: Duration) -> Result<Vec<u8>, TaskError> {
        execute("/bin/sh", &["-c".to_owned(), script.to_owned()], &[], Path::new("/"), input, limit)
    }

    #[test]
    fn where_a_shim_listens_is_said_in_two_ways() {
        let parse =
            |text: &str| parse_start("/usr/bin/shim", text.as_bytes()).map(|found| (found.address, found.version));
        assert_eq!(parse("unix:///run/s\n").unwrap(), ("unix:///run/s".to_owned(), 2));
        let document = r#"{"version":3,"address":"unix:///run/s","protocol":"ttrpc"}"#;
        assert_eq!(parse(document).unwrap(), ("unix:///run/s".to_owned(), 3));
        assert_eq!(parse(r#"{"version":2,"address":"unix:///s"}"#).unwrap().1, 2);
        for (text, why) in [
            (r#"{"version":4,"address":"unix:///s"}"#, "known are 2 and 3"),
            (r#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#, "protocol `grpc`; known is `ttrpc`"),
            (r#"{"version":3}"#, "only `unix://`"),
            ("", "only `unix://`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("/usr/bin/shim start: ") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_a_runtime_can_is_taken_out_of_what_its_shim_says() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shim");
        let program = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            features(&Runtime { shim: path.to_str().unwrap().to_owned(), ..Runtime::default() })
        };
        let document = r#"{"mountOptions":["rro"]}"#;
        let info = Writer::default().text(1, "runc").message(4, any("Features", document.as_bytes())).done();
        std::fs::write(directory.path().join("info"), info).unwrap();
        let info = directory.path().join("info");
        let said = program(&format!("#!/bin/sh\n[ \"$1\" = -info ] && cat {}\n", info.display()));
        assert_eq!(said.unwrap(), document.as_bytes());
        let error = program("#!/bin/sh\necho flag provided but not defined: $1 >&2; exit 2\n").unwrap_err().to_string();
        assert!(error.ends_with("-info: ended with code 2: flag provided but not defined: -info"), "{error}");
        assert!(matches!(program("#!/bin/sh\necho what?\n"), Err(TaskError::Malformed { .. })));
    }

    #[test]
    fn a_program_gets_its_input_and_says_why_it_failed() {
        let limit = Duration::from_secs(20);
        assert_eq!(sh("cat; pwd", b"given ", limit).unwrap(), b"given /\n");
        let error = sh("echo no >&2; exit 3", b"", limit).unwrap_err().to_string();
        assert!(error.ends_with("ended with code 3: no"), "{error}");
        let error = execute("/nowhere/shim", &["start".into()], &[], Path::new("/"), b"", limit).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/shim start: No such file or directory (os error 2)");
    }

    #[test]
    fn a_program_that_hangs_floods_or_leaves_somebody_behind_is_bounded() {
        let error = sh("exec sleep 1000", b"", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("no end within"), "{error}");
        let limit = Duration::from_secs(20);
        let flood = sh("head -c 3000000 /dev/zero", b"", limit).unwrap();
        assert_eq!(flood.len(), OUTPUT);
        let began = Instant::now();
        assert_eq!(sh("sleep 25 & echo started", b"", limit).unwrap(), b"started\n");
        assert!(began.elapsed() < limit, "it waited for what was left behind");
    }
}
