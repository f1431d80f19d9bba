//! `delete`: whatever a task does, in whatever state it and its shim are, nothing of it is left.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};

use super::client::{Client, Name};
use super::connection::milliseconds;
use super::error::TaskError;
use super::home::{Address, Home};
use super::{Runtime, program};
use crate::io::complain;
use crate::sys;

/// For the end of one that has been killed.
const KILLED: Duration = Duration::from_secs(8);

/// For the end of a shim that was asked to.
const SHUT_DOWN: Duration = Duration::from_secs(6);

/// Removes it. One that is not known is removed.
pub fn run(runtime: &Runtime, home: &Home) -> Result<(), TaskError> {
    if !home.path().exists() {
        return Ok(());
    }
    let address = home.address()?;
    let told = match &address {
        Some(address) => tell(home, address),
        // it was never reached; what has come of its start is not known
        None => Err(TaskError::Usage("its shim was never reached".to_owned())),
    };
    if let Err(error) = told {
        if !error.is_gone() {
            complain(&format!("{}: stepping over its shim: {}", home.id, crate::launch::chain(&error)));
        }
        if let Some(address) = address.as_ref().filter(|address| address.of_pod) {
            end_process(address);
        }
        if home.has("config.json") {
            program::delete(runtime, home)?;
        }
    }
    if let Some(address) = address.filter(|address| address.of_pod) {
        end_process(&address);
        remove_file(address.path()?)?;
    }
    // that of a container is nobody's
    remove_file(&home.events()?)?;
    home.remove()
}

/// By its shim, which goes with the first task of its pod.
fn tell(home: &Home, address: &Address) -> Result<(), TaskError> {
    let mut client = Client::connect(address)?;
    let name = Name::first(&home.id);
    match end(&mut client, name) {
        Err(error) if !error.is_unknown() => return Err(error),
        _ => {}
    }
    if address.of_pod {
        client.shut_down(&home.id)?;
        // its end shows in the connection
        let _ = poll(&mut [PollFd::new(client.as_fd(), PollFlags::POLLIN)], milliseconds(SHUT_DOWN));
    }
    Ok(())
}

fn end(client: &mut Client, name: Name<'_>) -> Result<(), TaskError> {
    if !client.has_ended(name.id)? {
        match client.kill(name, libc::SIGKILL, true) {
            Err(error) if !error.is_unknown() => return Err(error),
            _ => {}
        }
        let asked = client.ask_for_end(name)?;
        client.end(asked, KILLED)?;
    }
    client.delete(name)
}

/// Ends the shim's process, if it is still there.
fn end_process(address: &Address) {
    let Some(pid) = address.process() else { return };
    let held = sys::pidfd_open(pid);
    // looked at again while it is held: only then is the number surely its own
    if address.process().is_none() {
        return;
    }
    let _ = match &held {
        Ok(process) => sys::pidfd_signal(process, libc::SIGKILL),
        Err(_) => sys::send_signal(pid, libc::SIGKILL),
    };
    if let Ok(process) = &held {
        let _ = poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], milliseconds(SHUT_DOWN));
    }
}

fn remove_file(path: &std::path::Path) -> Result<(), TaskError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(TaskError::File { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
