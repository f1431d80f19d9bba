//! A further process of a task: this process waits for it and ends as it ends. Should this one be killed, another one sees to
//! it that the further process is killed too, wherever that runs.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, pipe2, read, setsid, write};

use super::client::{Client, Name, Streams};
use super::error::TaskError;
use super::home::{Address, Home};
use super::wire::any;
use super::{PROCESS, home, required};
use crate::sys;

/// For the end of one that has been killed.
const KILLED: Duration = Duration::from_secs(10);

/// A command may take as long as it wants: whoever runs it has the clock.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs the process that is described at `process`: its exit code.
pub fn run(home: &Home, process: &Path, pid_file: &Path) -> Result<i32, TaskError> {
    let document = home::read(process).map_err(TaskError::file("read", process))?;
    let address = required(home)?;
    let exec = format!("exec-{}-{}", std::process::id(), home::began(std::process::id().cast_signed()).unwrap_or(0));
    let name = Name { id: &home.id, exec: &exec };
    let (watched, held) = pipe2(OFlag::O_CLOEXEC).map_err(TaskError::system("make a pipe"))?;
    if sys::clone_process(0, None).map_err(TaskError::system("make a process"))?.is_none() {
        drop(held);
        guard(&address, name, &watched);
        sys::end_now(0);
    }
    drop(watched);
    let ended = execute(home, &address, name, &document, pid_file);
    // the guard may go; without having heard it, it looks for itself
    let _ = write(&held, b"-");
    ended
}

fn execute(home: &Home, address: &Address, name: Name<'_>, document: &[u8], pid_file: &Path) -> Result<i32, TaskError> {
    let mut client = Client::connect(address)?;
    let [_, stdout, stderr] = super::pipes();
    let streams = Streams { terminal: false, stdin: String::new(), stdout, stderr };
    client.exec(name, &streams, any(PROCESS, document))?;
    let pid = match client.start(name) {
        Ok(pid) => pid,
        Err(error) => {
            let _ = client.delete(name);
            return Err(error);
        }
    };
    if is_of(pid, &home.id) {
        home::write(pid_file, pid.to_string().as_bytes())?;
    }
    let asked = client.ask_for_end(name)?;
    let code = client.end(asked, FOREVER);
    // from now on the number may be another one's
    let _ = fs::remove_file(pid_file);
    let code = code?;
    // with that the last of its output has come
    client.delete(name)?;
    Ok(code)
}

/// Whether a number is that of a process on this host that belongs to the container: shims of machines give any.
fn is_of(pid: i32, id: &str) -> bool {
    pid > 1 && fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id))
}

/// Waits until the other process has ended; ends what it ran unless it said that this has ended.
fn guard(address: &Address, name: Name<'_>, watched: &OwnedFd) {
    // out of the group that is killed, and away from the streams, whose end others wait for
    let _ = setsid();
    if let Ok(null) = open("/dev/null", OFlag::O_RDWR, Mode::empty()) {
        let _ = dup2_stdin(&null);
        let _ = dup2_stdout(&null);
        let _ = dup2_stderr(&null);
    }
    let mut said = [0];
    loop {
        match read(watched, &mut said) {
            Ok(0) => break,
            Err(nix::errno::Errno::EINTR) => {}
            _ => return,
        }
    }
    // each may be refused, for example because the shim never heard of it
    let Ok(mut client) = Client::connect(address) else { return };
    let _ = client.kill(name, libc::SIGKILL, false);
    if let Ok(asked) = client.ask_for_end(name) {
        let _ = client.end(asked, KILLED);
    }
    let _ = client.delete(name);
}
