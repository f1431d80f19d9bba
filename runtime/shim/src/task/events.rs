//! The events of a pod's shim: it tells them to whoever started it. What counts of them is that memory has become short: inside
//! a machine of its own nobody else sees that.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::connection::{Connection, NAMESPACE};
use super::error::TaskError;
use super::home::Home;
use super::wire::{Message, Writer};

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
const FORWARD: &str = "Forward";

/// A shim has one connection; each of its commands makes another.
const MAX_CONNECTIONS: usize = 32;

/// One that says half of something is not listened to for longer.
const LIMIT: Duration = Duration::from_secs(2);

/// Of a shim's own log, what is kept.
const MAX_LOG: usize = 256 << 10;

/// Longest event that is handed on by `publish`.
const MAX_EVENT: u64 = 1 << 20;

/// The name of the file that says that memory was short.
pub const OOM: &str = "oom";

/// Who listens to a shim.
#[derive(Debug)]
pub struct Events {
    home: Home,
    listener: UnixListener,
    connections: Vec<Connection>,
    log: OwnedFd,
    logged: usize,
}

impl Events {
    /// Listens for the shim of the pod with that home, and to its log.
    pub fn listen(home: &Home) -> Result<Self, TaskError> {
        let path = home.events()?;
        let parent = path.parent().unwrap_or(&path);
        fs::create_dir_all(parent).map_err(TaskError::file("make", parent))?;
        // of a start that was cut off
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(TaskError::file("listen on", &path))?;
        listener.set_nonblocking(true).map_err(TaskError::file("listen on", &path))?;
        let log = home.path().join("log");
        let _ = fs::remove_file(&log);
        let failed = |error: nix::errno::Errno| TaskError::file("make", &log)(error.into());
        mkfifo(&log, Mode::from_bits_truncate(0o600)).map_err(failed)?;
        // for both, or it would be at its end whenever nobody writes
        let log = open(&log, OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
        Ok(Self { home: home.clone(), listener, connections: Vec::new(), log, logged: 0 })
    }

    /// What is to be waited for.
    pub fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.listener.as_fd(), self.log.as_fd()].into_iter().chain(self.connections.iter().map(AsFd::as_fd))
    }

    /// Takes what came from one of [`Self::sources`], by its place.
    pub fn serve(&mut self, place: usize) {
        match place {
            0 => self.accept(),
            1 => self.read_log(),
            _ => {
                let place = place - 2;
                if self.connections.get_mut(place).is_some_and(|connection| !answer(connection, &self.home)) {
                    self.connections.swap_remove(place);
                }
            }
        }
    }

    fn accept(&mut self) {
        // one that is gone again is nobody
        let Ok((socket, _)) = self.listener.accept() else { return };
        if self.connections.len() < MAX_CONNECTIONS
            && let Ok(connection) = Connection::new(socket)
        {
            self.connections.push(connection);
        }
    }

    fn read_log(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = nix::unistd::read(&self.log, &mut buffer) {
            let room = MAX_LOG.saturating_sub(self.logged).min(count);
            self.logged += room;
            let path = self.home.path().join("shim.log");
            if room > 0
                && let Ok(mut file) = fs::OpenOptions::new().append(true).create(true).open(path)
            {
                // for people; without it they have less to go by
                let _ = std::io::Write::write_all(&mut file, &buffer[..room]);
            }
        }
    }
}

/// Takes one event. False when the connection is to be closed.
fn answer(connection: &mut Connection, home: &Home) -> bool {
    let request = match connection.request(LIMIT) {
        Ok(Some(request)) => request,
        Ok(None) => return true,
        Err(_) => return false,
    };
    let answer = if request.method == format!("{SERVICE}/{FORWARD}") {
        take(&request.payload, home);
        Ok(&[][..])
    } else {
        Err("only events are taken here")
    };
    connection.respond(request.stream, answer, LIMIT).is_ok()
}

fn take(payload: &[u8], home: &Home) -> Option<()> {
    let envelope = Message::parse(payload).ok()?.message(1).ok()?;
    if envelope.text(3) != "/tasks/oom" {
        return None;
    }
    let event = envelope.message(4).ok()?;
    let event = Message::parse(event.bytes(2)).ok()?;
    let task = home.of(&event.text(1)).ok()?;
    if task.path().is_dir() {
        // said again at the next such event
        let _ = task.write(OOM, b"");
    }
    Some(())
}

/// `publish`: hands an event on that is on the standard input, for shims that do not speak for themselves.
pub fn publish(address: &str, topic: &str, namespace: &str) -> Result<(), TaskError> {
    let mut event = Vec::new();
    std::io::stdin().lock().take(MAX_EVENT).read_to_end(&mut event).map_err(TaskError::file("read", "/dev/stdin"))?;
    let failed = |source| TaskError::Connect { address: address.to_owned(), source };
    let mut connection = UnixStream::connect(address).and_then(Connection::new).map_err(failed)?;
    connection.call(SERVICE, FORWARD, &forward(topic, namespace, &event), LIMIT).map(drop)
}

fn forward(topic: &str, namespace: &str, event: &[u8]) -> Vec<u8> {
    let namespace = if namespace.is_empty() { NAMESPACE } else { namespace };
    let envelope = Writer::default().text(2, namespace).text(3, topic).bytes(4, event);
    Writer::default().message(1, envelope).done()
}

#[cfg(test)]
mod tests {
    use super::super::wire::any;
    use super::*;

    #[test]
    fn that_memory_was_short_is_noted_and_everything_else_is_heard_out() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(directory.path(), "p1").unwrap();
        let task = home.of("c1").unwrap();
        home.make().unwrap();
        task.make().unwrap();
        let mut events = Events::listen(&home).unwrap();
        let path = home.events().unwrap();
        let teller = std::thread::spawn(move || {
            let tell = |topic: &str, id: &str| {
                let event = any("containerd.events.Task", &Writer::default().text(1, id).done()).done();
                let mut connection = Connection::new(UnixStream::connect(&path).unwrap()).unwrap();
                connection.call(SERVICE, FORWARD, &forward(topic, "", &event), LIMIT * 10).unwrap();
                connection.call("another", "Call", b"", LIMIT * 10).unwrap_err().to_string()
            };
            tell("/tasks/exit", "c1");
            tell("/tasks/oom", "../p1");
            tell("/tasks/oom", "unknown");
            tell("/tasks/oom", "c1")
        });
        while !teller.is_finished() {
            let mut ready: Vec<_> =
                events.sources().map(|source| nix::poll::PollFd::new(source, nix::poll::PollFlags::POLLIN)).collect();
            nix::poll::poll(&mut ready, 20_u8).unwrap();
            let places: Vec<usize> = (0..ready.len()).filter(|place| ready[*place].any() == Some(true)).collect();
            drop(ready);
            for place in places.into_iter().rev() {
                events.serve(place);
            }
        }
        assert_eq!(teller.join().unwrap(), "only events are taken here");
        assert!(task.has(OOM) && !home.has(OOM));
        assert!(!directory.path().join("unknown").exists());
    }
}
