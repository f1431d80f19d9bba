//! The calls of a task service, as far as they are needed.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::connection::Connection;
use super::error::TaskError;
use super::home::Address;
use super::wire::{Message, Writer};

/// A container may have to wait for a whole machine.
const CREATE: Duration = Duration::from_secs(120);
const START: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(10);

/// The task service of a shim.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    service: String,
}

/// What a task or one of its further processes is called: `exec` is empty for the first.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    /// The container.
    pub id: &'a str,
    /// The further process.
    pub exec: &'a str,
}

impl<'a> Name<'a> {
    /// The first process.
    pub fn first(id: &'a str) -> Self {
        Self { id, exec: "" }
    }

    fn write(self) -> Writer {
        Writer::default().text(1, self.id).text(2, self.exec)
    }
}

/// Where a process reads and writes: paths of pipes, empty for nothing.
#[derive(Debug, Default)]
pub struct Streams {
    /// Whether it gets a terminal of its own.
    pub terminal: bool,
    /// To read from.
    pub stdin: String,
    /// To write to.
    pub stdout: String,
    /// To write to.
    pub stderr: String,
}

impl Streams {
    fn write(&self, message: Writer, first: u32) -> Writer {
        let message = message.number(first, self.terminal.into());
        message.text(first + 1, &self.stdin).text(first + 2, &self.stdout).text(first + 3, &self.stderr)
    }
}

/// What the shim mounts as a container's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootMount {
    /// Of the file system.
    pub kind: String,
    /// Of what.
    pub source: String,
    /// How.
    pub options: Vec<String>,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Client {
    /// Connects to a shim.
    pub fn connect(address: &Address) -> Result<Self, TaskError> {
        let failed = |source| TaskError::Connect { address: address.address.clone(), source };
        let socket = UnixStream::connect(address.path()?).and_then(Connection::new).map_err(failed)?;
        Ok(Self { connection: socket, service: format!("containerd.task.v{}.Task", address.version) })
    }

    fn call(&mut self, method: &'static str, message: Writer, limit: Duration) -> Result<Vec<u8>, TaskError> {
        self.connection.call(&self.service, method, &message.done(), limit)
    }

    fn number(&mut self, method: &'static str, message: Writer, field: u32, limit: Duration) -> Result<u64, TaskError> {
        let answer = self.call(method, message, limit)?;
        let answer = Message::parse(&answer).map_err(|source| TaskError::Malformed { method, source })?;
        Ok(answer.number(field))
    }

    /// The shim's own process; `id` names a task of it that may not be there yet.
    pub fn shim_pid(&mut self, id: &str) -> Result<i32, TaskError> {
        let pid = self.number("Connect", Writer::default().text(1, id), 1, SHORT)?;
        Ok(i32::try_from(pid).unwrap_or_default())
    }

    /// Makes a task of a bundle; its process, as far as the host has one.
    pub fn create(
        &mut self,
        id: &str,
        bundle: &str,
        root: &[RootMount],
        streams: &Streams,
        options: Option<Writer>,
    ) -> Result<i32, TaskError> {
        let mut message = Writer::default().text(1, id).text(2, bundle);
        for mount in root {
            let mut one = Writer::default().text(1, &mount.kind).text(2, &mount.source);
            for option in &mount.options {
                one = one.text(4, option);
            }
            message = message.message(3, one);
        }
        message = streams.write(message, 4);
        if let Some(options) = options {
            message = message.message(10, options);
        }
        Ok(i32::try_from(self.number("Create", message, 1, CREATE)?).unwrap_or_default())
    }

    /// Lets it begin; its process.
    pub fn start(&mut self, name: Name<'_>) -> Result<i32, TaskError> {
        Ok(i32::try_from(self.number("Start", name.write(), 1, START)?).unwrap_or_default())
    }

    /// Makes a further process.
    pub fn exec(&mut self, name: Name<'_>, streams: &Streams, process: Writer) -> Result<(), TaskError> {
        let message = streams.write(name.write(), 3).message(7, process);
        self.call("Exec", message, START).map(drop)
    }

    /// Sends a signal, to all of the task or to one process.
    pub fn kill(&mut self, name: Name<'_>, signal: i32, all: bool) -> Result<(), TaskError> {
        let message = name.write().number(3, u64::from(signal.unsigned_abs())).number(4, all.into());
        self.call("Kill", message, SHORT).map(drop)
    }

    /// Asks to be told of its end.
    pub fn ask_for_end(&mut self, name: Name<'_>) -> Result<u32, TaskError> {
        self.connection.send(&self.service, "Wait", &name.write().done(), SHORT)
    }

    /// Its exit code, when that is being told.
    pub fn end(&mut self, asked: u32, limit: Duration) -> Result<i32, TaskError> {
        let method = "Wait";
        let answer = self.connection.receive(asked, method, limit)?;
        let answer = Message::parse(&answer).map_err(|source| TaskError::Malformed { method, source })?;
        Ok(i32::try_from(answer.number(1) & 0xff).unwrap_or(255))
    }

    /// Tells that nothing more will be written to it.
    pub fn close_stdin(&mut self, name: Name<'_>) -> Result<(), TaskError> {
        self.call("CloseIO", name.write().number(3, 1), SHORT).map(drop)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self, id: &str) -> Result<bool, TaskError> {
        const STOPPED: u64 = 3;
        Ok(self.number("State", Name::first(id).write(), 4, SHORT)? == STOPPED)
    }

    /// Changes limits.
    pub fn update(&mut self, id: &str, resources: Writer) -> Result<(), TaskError> {
        self.call("Update", Writer::default().text(1, id).message(2, resources), SHORT).map(drop)
    }

    /// Has it forget one that has ended; all that it wrote has been handed on then.
    pub fn delete(&mut self, name: Name<'_>) -> Result<(), TaskError> {
        self.call("Delete", name.write(), SHORT).map(drop)
    }

    /// Ends the shim, if it has no tasks.
    pub fn shut_down(&mut self, id: &str) -> Result<(), TaskError> {
        self.call("Shutdown", Writer::default().text(1, id), SHORT).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Answers each of these calls, in this order, with a message.
    fn scripted(version: u32, script: Vec<(&'static str, Writer)>) -> (Client, std::thread::JoinHandle<Vec<Vec<u8>>>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let served = std::thread::spawn(move || {
            let mut connection = Connection::new(listener.accept().unwrap().0).unwrap();
            let answers = script.into_iter().map(|(method, answer)| {
                let request = connection.request(LIMIT).unwrap().unwrap();
                assert_eq!(request.method, format!("containerd.task.v{version}.Task/{method}"));
                connection.respond(request.stream, Ok(&answer.done()), LIMIT).unwrap();
                request.payload
            });
            answers.collect()
        });
        let address = format!("unix://{}", path.display());
        let address = Address { address, version, pid: 0, began: 0, of_pod: true };
        let client = Client::connect(&address).unwrap();
        assert!(Client::connect(&Address { address: "unix:///nowhere/s".into(), ..address }).unwrap_err().is_gone());
        (client, served)
    }

    #[test]
    fn a_task_is_made_of_what_it_was_asked_for() {
        let pid = Writer::default().number(1, 77);
        let (mut client, served) =
            scripted(2, vec![("Create", pid.clone()), ("Start", pid), ("Exec", Writer::default())]);
        let options = ["lowerdir=/a:/b", "upperdir=/u"].map(str::to_owned).to_vec();
        let root = RootMount { kind: "overlay".into(), source: "overlay".into(), options };
        let streams = Streams { terminal: true, stdin: "/in".into(), stdout: "/out".into(), stderr: String::new() };
        assert_eq!(client.create("c1", "/b/c1", &[root], &streams, Some(Writer::default().text(1, "T"))).unwrap(), 77);
        assert_eq!(client.start(Name::first("c1")).unwrap(), 77);
        client.exec(Name { id: "c1", exec: "e1" }, &streams, Writer::default().text(1, "P")).unwrap();
        let payloads = served.join().unwrap();
        let create = Message::parse(&payloads[0]).unwrap();
        let texts = [1, 2, 5, 6, 7].map(|field| create.text(field));
        assert_eq!(texts, ["c1", "/b/c1", "/in", "/out", ""]);
        assert_eq!((create.number(4), create.message(10).unwrap().text(1).as_str()), (1, "T"));
        let mount = create.message(3).unwrap();
        assert_eq!([1, 2, 4].map(|field| mount.text(field)), ["overlay", "overlay", "upperdir=/u"]);
        let exec = Message::parse(&payloads[2]).unwrap();
        assert_eq!([1, 2, 4, 5].map(|field| exec.text(field)), ["c1", "e1", "/in", "/out"]);
        assert_eq!((exec.number(3), exec.message(7).unwrap().text(1).as_str()), (1, "P"));
    }

    #[test]
    fn its_end_is_told_when_it_comes_and_other_calls_go_on_besides() {
        let number = |field, value| Writer::default().number(field, value);
        let script =
            vec![("Kill", number(1, 0)), ("State", number(4, 3)), ("State", number(4, 2)), ("Wait", number(1, 137))];
        let (mut client, served) = scripted(3, script);
        client.kill(Name { id: "c1", exec: "e1" }, 15, true).unwrap();
        assert!(client.has_ended("c1").unwrap() && !client.has_ended("c1").unwrap());
        let asked = client.ask_for_end(Name::first("c1")).unwrap();
        assert_eq!(client.end(asked, LIMIT).unwrap(), 137);
        let kill =
            Message::parse(&served.join().unwrap()[0]).map(|kill| (kill.text(2), kill.number(3), kill.number(4)));
        assert_eq!(kill, Ok(("e1".to_owned(), 15, 1)));
        // its other end is closed
        assert!(client.has_ended("c1").unwrap_err().is_gone());
    }
}
