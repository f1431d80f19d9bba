//! This program as the command line of runtimes that have none: shims of containerd's kind (`containerd-shim-…-v2`), which are
//! told by ttrpc what to do. The pod's own shim, and the daemon, so know one kind of foreign runtime only.
//!
//! ```text
//! nodeagent-shim (of the pod) ── create, start, exec ──► nodeagent-shim --shim-v2 … ── ttrpc ──► containerd-shim-…-v2
//!    ▲    parent, logs                                          │                                     one per pod
//!    └──────────── signals, exit code ──── stand-in ◄── forked ─┘ ◄──────────── events, log ──────────────┘
//! ```
//! What a container writes goes from the other shim straight into our shim's pipes: it opens them where it would open named
//! ones. The shim of a pod is started with the pod's first container, in a mount namespace of its own, so that nothing that it
//! mounts is left on the host; later containers of the pod find it by what is kept in [`home`].
//!
//! * [`stand_in`]: one process per container, which is to our shim what the container's first process is otherwise
//! * [`exec`], [`remove`]: the other commands
//! * [`client`], [`connection`], [`wire`]: calls, frames, messages; [`events`]: the service that the other shim calls

mod bundle;
mod client;
mod connection;
mod error;
mod events;
mod exec;
mod home;
mod program;
mod remove;
mod stand_in;
mod terminal;
mod wire;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::setsid;

use self::client::Client;
use self::error::TaskError;
use self::home::{Address, Home};
use self::stand_in::Plan;
use self::wire::any;
use crate::sys;

/// The signal by which a stand-in is told to have its task killed: SIGKILL would reach the stand-in alone.
pub const KILL: i32 = 64;

/// What a stand-in reports when the task has been created.
const CREATED: &[u8] = b"created";

/// What a stand-in answers when the task has been started.
const STARTED: &[u8] = b"started";

/// For all of a create, with the start of a shim before it.
const CREATE: Duration = Duration::from_secs(240);

const START: Duration = Duration::from_secs(90);

/// Longest text that is read from standard input.
const MAX_INPUT: u64 = 1 << 20;

/// Kinds of documents inside messages.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// How this program was called.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    shim: String,
    root: PathBuf,
    systemd_cgroup: bool,
    config_path: Option<String>,
    log: Option<PathBuf>,
    bundle: PathBuf,
    pid_file: PathBuf,
    console: Option<PathBuf>,
    process: PathBuf,
    command: String,
    id: String,
}

const COMMANDS: [&str; 6] = ["create", "start", "exec", "update", "delete", "features"];

/// Carries out a command, if this program was called for one.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let arguments: Vec<String> = arguments.skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    if arguments.iter().any(|argument| argument == "--shim-v2") {
        return Some(command(&arguments));
    }
    // as shims call their `-publish-binary`
    let [address, at, publish, rest @ ..] = arguments.as_slice() else { return None };
    (address == "--address" && publish == "publish").then(|| {
        let value = |name: &str| rest.iter().skip_while(|word| *word != name).nth(1).cloned().unwrap_or_default();
        ended(events::publish(at, &value("--topic"), &value("--namespace")).map(|()| 0), None)
    })
}

fn command(arguments: &[String]) -> ExitCode {
    match parse(arguments) {
        Ok(runtime) => ended(carry_out(&runtime), runtime.log.as_deref()),
        Err(error) => ended(Err(error), None),
    }
}

fn ended(result: Result<i32, TaskError>, log: Option<&Path>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(error) => {
            let message = crate::launch::chain(&error);
            let line = serde_json::json!({"level": "error", "msg": message}).to_string() + "\n";
            match log.map(|log| std::fs::OpenOptions::new().create(true).append(true).open(log)) {
                Some(Ok(mut file)) => drop(file.write_all(line.as_bytes())),
                _ => drop(writeln!(std::io::stderr(), "{message}")),
            }
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Result<Runtime, TaskError> {
    let mut runtime = Runtime::default();
    let mut words = arguments.iter();
    let usage = |what: String| TaskError::Usage(what);
    while let Some(word) = words.next() {
        let mut value = || words.next().cloned().ok_or_else(|| usage(format!("{word} needs a value")));
        match word.as_str() {
            "--shim-v2" => runtime.shim = value()?,
            "--root" => runtime.root = value()?.into(),
            "--config-path" => runtime.config_path = Some(value()?),
            "--log" => runtime.log = Some(value()?.into()),
            "--bundle" => runtime.bundle = value()?.into(),
            "--pid-file" => runtime.pid_file = value()?.into(),
            "--console-socket" => runtime.console = Some(value()?.into()),
            "--process" => runtime.process = value()?.into(),
            // there is one form of each
            "--log-format" | "--resources" => drop(value()?),
            "--systemd-cgroup" => runtime.systemd_cgroup = true,
            "--force" => {}
            _ if word.starts_with('-') => return Err(usage(format!("{word}: no such option"))),
            _ if runtime.command.is_empty() => runtime.command.clone_from(word),
            _ if runtime.id.is_empty() => runtime.id.clone_from(word),
            _ => return Err(usage(format!("{word}: too many words"))),
        }
    }
    if !COMMANDS.contains(&runtime.command.as_str()) {
        return Err(usage(format!("`{}` is no command; known are {}", runtime.command, COMMANDS.join(", "))));
    }
    Ok(runtime)
}

fn carry_out(runtime: &Runtime) -> Result<i32, TaskError> {
    if runtime.command == "features" {
        let text = program::features(runtime)?;
        std::io::stdout().write_all(&text).map_err(TaskError::file("write", "/dev/stdout"))?;
        return Ok(0);
    }
    let home = Home::new(&runtime.root, &runtime.id)?;
    match runtime.command.as_str() {
        "create" => create(runtime, &home).map(|()| 0),
        "start" => stand_in::ask(&home, START).map(|()| 0),
        "exec" => exec::run(&home, &runtime.process, &runtime.pid_file),
        "update" => update(&home).map(|()| 0),
        _ => remove::run(runtime, &home).map(|()| 0),
    }
}

/// `create`: leaves the stand-in of a task, and its number in the file.
fn create(runtime: &Runtime, home: &Home) -> Result<(), TaskError> {
    umask(Mode::from_bits_truncate(0o022));
    home.make()?;
    let bundle = bundle::take_over(&runtime.bundle, home)?;
    let (mut ours, theirs) = UnixStream::pair().map_err(TaskError::file("make", "a pair of sockets"))?;
    // before there is a stand-in: no signal may pass it by
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).map_err(TaskError::system("block signals"))?;
    let Some(pid) = sys::clone_process(0, None).map_err(TaskError::system("make a process"))? else {
        drop(ours);
        let _ = setsid();
        let console = runtime.console.clone();
        let plan = Plan { runtime, home: home.clone(), bundle, from: runtime.bundle.clone(), console };
        sys::end_now(stand_in::run(&plan, theirs));
    };
    drop(theirs);
    let mut said = Vec::new();
    let read = ours.set_read_timeout(Some(CREATE)).and_then(|()| (&mut ours).take(64 << 10).read_to_end(&mut said));
    read.map_err(TaskError::file("read", "what the stand-in says"))?;
    match said.as_slice() {
        CREATED => home::write(&runtime.pid_file, pid.to_string().as_bytes()),
        [] => Err(TaskError::Reported("the process that stands in for it has ended".to_owned())),
        said => Err(TaskError::Reported(String::from_utf8_lossy(said).into_owned())),
    }
}

fn update(home: &Home) -> Result<(), TaskError> {
    let mut text = Vec::new();
    let read = std::io::stdin().lock().take(MAX_INPUT).read_to_end(&mut text);
    read.map_err(TaskError::file("read", "/dev/stdin"))?;
    Client::connect(&required(home)?)?.update(&home.id, any(RESOURCES, &text))
}

fn required(home: &Home) -> Result<Address, TaskError> {
    home.address()?.ok_or_else(|| TaskError::Usage(format!("{} does not exist", home.id)))
}

/// The standard streams that are pipes, by paths at which others can open them.
fn pipes() -> [String; 3] {
    [0, 1, 2].map(stand_in::pipe)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
