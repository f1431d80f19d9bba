//! The process that stands in for a task: our shim's child, which gets the signals meant for the task and ends as it ends.
//!
//! ```text
//! create ── fork ──► stand-in: shim started or found, Create, Wait ──► `start` asks for it: Start ──► Wait answers: exit
//!                                   signals ──► Kill        the first of a pod: events and log of the shim besides
//! ```

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::bundle::Bundle;
use super::client::{Client, Name, Streams};
use super::connection::milliseconds;
use super::error::TaskError;
use super::events::{Events, OOM};
use super::home::{Address, Home, began};
use super::terminal::Terminal;
use super::{Runtime, program};
use crate::sys;

/// Exit code of a task whose shim is gone: nobody can know a better one.
const LOST: i32 = 255;

/// How long the last output may take: somebody whom the program has left behind may hold its end.
const OUTPUT: Duration = Duration::from_secs(2);

/// How long an asker may take to take its answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Pause between two attempts to kill.
const AGAIN: Duration = Duration::from_secs(1);

/// What a stand-in begins with.
#[derive(Debug)]
pub struct Plan<'a> {
    /// How it was called.
    pub runtime: &'a Runtime,
    /// The task.
    pub home: Home,
    /// What it is.
    pub bundle: Bundle,
    /// Where the daemon's bundle is.
    pub from: PathBuf,
    /// Where a terminal is to be handed to.
    pub console: Option<PathBuf>,
}

/// Becomes the stand-in. `report` is told when the task has been created, or why not.
pub fn run(plan: &Plan<'_>, mut report: UnixStream) -> i32 {
    let mut this = match StandIn::create(plan) {
        Ok(this) => this,
        Err(error) => {
            let _ = report.write_all(crate::launch::chain(&error).as_bytes());
            return 1;
        }
    };
    if report.write_all(super::CREATED).is_err() {
        // nobody will ever ask for it
        this.kill();
        let _ = this.wait.end(this.asked, AGAIN);
        let _ = this.client.delete(Name::first(&this.id));
        return LOST;
    }
    drop(report);
    this.serve(plan)
}

/// Where it listens for `start`, as seen from the directory's descriptor: the path may be longer than an address.
const CONTROL: &str = "control";

struct StandIn {
    home: Home,
    id: String,
    signals: SignalFd,
    client: Client,
    wait: Client,
    asked: u32,
    control: Option<UnixListener>,
    events: Option<Events>,
    terminal: Option<Terminal>,
    stdin: Option<OwnedFd>,
    outputs: Vec<OwnedFd>,
    killed: Option<Instant>,
}

impl StandIn {
    fn create(plan: &Plan<'_>) -> Result<Self, TaskError> {
        let Plan { runtime, home, bundle, .. } = plan;
        let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(TaskError::system("wait for signals"))?;
        let first = bundle.pod == home.id;
        let events = if first { Some(Events::listen(home)?) } else { None };
        let mut address = match first {
            true => program::start(runtime, home)?,
            false => {
                home.of(&bundle.pod)?.address()?.map(|address| Address { of_pod: false, ..address }).ok_or_else(
                    || TaskError::Usage(format!("the pod {} has no shim of {}", bundle.pod, runtime.shim)),
                )?
            }
        };
        home.note_address(&address)?;
        let mut client = Client::connect(&address)?;
        if first {
            note_process(&mut client, home, &mut address)?;
        }
        let mut terminal = None;
        if bundle.terminal {
            let console = plan.console.as_deref();
            let console = console.ok_or_else(|| TaskError::Usage("--console-socket is missing".to_owned()))?;
            terminal = Some(Terminal::make(console)?);
        }
        let streams = streams(terminal.as_ref());
        let options = program::options(runtime, home);
        let pid = client.create(&home.id, &home.text(), &bundle.root, &streams, options)?;
        home.write("task.pid", pid.to_string().as_bytes())?;
        if first && address.pid == 0 {
            // some know of themselves only with a task
            note_process(&mut client, home, &mut address)?;
        }
        let mut wait = Client::connect(&address)?;
        let asked = wait.ask_for_end(Name::first(&home.id))?;
        let stdin = if terminal.is_none() && !streams.stdin.is_empty() { duplicate(0) } else { None };
        let outputs = [(1, &streams.stdout), (2, &streams.stderr)];
        let outputs = outputs.into_iter().filter(|(_, path)| terminal.is_none() && !path.is_empty());
        let outputs = outputs.filter_map(|(number, _)| reader(number)).collect();
        let control = Some(listen(home)?);
        let id = home.id.clone();
        Ok(Self {
            home: home.clone(),
            id,
            signals,
            client,
            wait,
            asked,
            control,
            events,
            terminal,
            stdin,
            outputs,
            killed: None,
        })
    }

    /// Until the task has ended: its exit code.
    fn serve(&mut self, plan: &Plan<'_>) -> i32 {
        loop {
            let ready = self.wait_for_something();
            if ready.signals {
                self.take_signals();
            }
            if ready.control {
                self.start();
            }
            if ready.stdin {
                self.stdin = None;
                if let Err(error) = self.client.close_stdin(Name::first(&self.id)) {
                    self.home.note(&format!("close its input: {error}"));
                }
            }
            if let Some(terminal) = &mut self.terminal {
                terminal.serve();
            }
            for place in ready.events.into_iter().rev() {
                if let Some(events) = &mut self.events {
                    events.serve(place);
                }
            }
            if ready.end {
                let code = match self.wait.end(self.asked, ANSWER) {
                    Ok(code) => code,
                    Err(error) => {
                        self.home.note(&crate::launch::chain(&error));
                        lost(plan)
                    }
                };
                self.last_output();
                if plan.home.has(OOM) {
                    // where our shim looks for it
                    let _ = std::fs::write(plan.from.join(OOM), b"");
                }
                return code;
            }
        }
    }

    fn wait_for_something(&self) -> Ready {
        let mut polls = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wait.as_fd(), PollFlags::POLLIN),
        ];
        let control = self.control.as_ref().map(|control| {
            polls.push(PollFd::new(control.as_fd(), PollFlags::POLLIN));
            polls.len() - 1
        });
        let stdin = self.stdin.as_ref().map(|stdin| {
            // its end alone: what there is to read is not for us
            polls.push(PollFd::new(stdin.as_fd(), PollFlags::empty()));
            polls.len() - 1
        });
        for (source, what) in self.terminal.iter().flat_map(Terminal::sources) {
            polls.push(PollFd::new(source, what));
        }
        let first_event = polls.len();
        let sources = self.events.iter().flat_map(Events::sources);
        polls.extend(sources.map(|source| PollFd::new(source, PollFlags::POLLIN)));
        // what interrupts it is one of these
        let _ = poll(&mut polls, PollTimeout::NONE);
        let is = |place: usize| polls.get(place).and_then(PollFd::any) == Some(true);
        Ready {
            signals: is(0),
            end: is(1),
            control: control.is_some_and(is),
            stdin: stdin.is_some_and(is),
            events: (first_event..polls.len()).filter(|place| is(*place)).map(|place| place - first_event).collect(),
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(told)) = self.signals.read_signal() {
            let signal = i32::try_from(told.ssi_signo).unwrap_or_default();
            match signal {
                libc::SIGCHLD | libc::SIGPIPE => {}
                super::KILL => self.kill(),
                _ => match self.client.kill(Name::first(&self.id), signal, false) {
                    Err(error) if !error.is_unknown() => self.home.note(&format!("signal {signal}: {error}")),
                    _ => {}
                },
            }
        }
    }

    /// Has it killed. Our shim asks for it again and again until it is gone.
    fn kill(&mut self) {
        if self.killed.is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        if let Err(error) = self.client.kill(Name::first(&self.id), libc::SIGKILL, true)
            && !error.is_unknown()
        {
            self.home.note(&format!("kill it: {error}"));
        }
        self.killed = Some(Instant::now());
    }

    /// Somebody wants it started.
    fn start(&mut self) {
        let Some(Ok((mut asker, _))) = self.control.as_ref().map(UnixListener::accept) else { return };
        self.control = None;
        self.end_with_parent();
        let _ = asker.set_write_timeout(Some(ANSWER));
        let said = match self.client.start(Name::first(&self.id)) {
            Ok(_) => {
                self.opened();
                super::STARTED.to_vec()
            }
            Err(error) => crate::launch::chain(&error).into_bytes(),
        };
        // one that is gone has been killed together with what it asked for
        let _ = asker.write_all(&said);
    }

    /// By now our shim is the parent. Should it be killed, nobody would know of the task any more.
    fn end_with_parent(&mut self) {
        let parent = nix::unistd::getppid();
        if let Err(error) = sys::signal_at_end_of_parent(super::KILL) {
            self.home.note(&format!("end with the parent: {error}"));
        }
        if nix::unistd::getppid() != parent {
            self.kill();
        }
    }

    /// The other shim has its ends of all pipes: ours would hide when it has written everything.
    fn opened(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            terminal.opened();
        }
        if let Ok(null) = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()) {
            let _ = nix::unistd::dup2_stdin(&null);
            let _ = nix::unistd::dup2_stdout(&null);
            let _ = nix::unistd::dup2_stderr(&null);
        }
    }

    /// Waits until the other shim has passed on what the task wrote last.
    fn last_output(&mut self) {
        self.opened();
        let deadline = Instant::now() + OUTPUT;
        let left = || deadline.saturating_duration_since(Instant::now());
        for output in &self.outputs {
            // no events but the end: no writer is left
            let _ = poll(&mut [PollFd::new(output.as_fd(), PollFlags::empty())], milliseconds(left()));
        }
        while let Some(terminal) = self.terminal.as_mut().filter(|terminal| terminal.talks() && !left().is_zero()) {
            let mut polls: Vec<_> = terminal.sources().map(|(source, what)| PollFd::new(source, what)).collect();
            let _ = poll(&mut polls, milliseconds(left()));
            drop(polls);
            terminal.serve();
        }
    }
}

#[derive(Debug)]
struct Ready {
    signals: bool,
    end: bool,
    control: bool,
    stdin: bool,
    events: Vec<usize>,
}

/// Its shim is dead, or speaks nonsense: what is left of the task is removed by the shim's program.
fn lost(plan: &Plan<'_>) -> i32 {
    if let Err(error) = program::delete(plan.runtime, &plan.home) {
        plan.home.note(&crate::launch::chain(&error));
    }
    LOST
}

fn note_process(client: &mut Client, home: &Home, address: &mut Address) -> Result<(), TaskError> {
    match client.shim_pid(&home.id) {
        Ok(pid) if pid > 1 => {
            (address.pid, address.began) = (pid, began(pid).unwrap_or_default());
            home.note_address(address)
        }
        Ok(_) | Err(TaskError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Our pipes, by paths at which the other shim can open them as it opens named ones.
fn streams(terminal: Option<&Terminal>) -> Streams {
    if let Some(terminal) = terminal {
        let (stdin, stdout) = terminal.ends();
        return Streams { terminal: true, stdin: path(stdin), stdout: path(stdout), stderr: String::new() };
    }
    let [stdin, stdout, stderr] = super::pipes();
    Streams { terminal: false, stdin, stdout, stderr }
}

fn path(number: i32) -> String {
    format!("/proc/{}/fd/{number}", std::process::id())
}

/// Whether that standard stream is a pipe: its path, or nothing.
pub(super) fn pipe(number: i32) -> String {
    let stdio = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stream = match number {
        0 => stdio.0.as_fd(),
        1 => stdio.1.as_fd(),
        _ => stdio.2.as_fd(),
    };
    let is_pipe =
        fstat(stream).is_ok_and(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO);
    if is_pipe { path(number) } else { String::new() }
}

fn duplicate(number: i32) -> Option<OwnedFd> {
    (number == 0).then(|| std::io::stdin().as_fd().try_clone_to_owned().ok()).flatten()
}

/// The reading side of a pipe whose writing side is that descriptor: it shows when no writer is left.
fn reader(number: i32) -> Option<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(path(number).as_str(), flags, Mode::empty()).ok()
}

fn directory(home: &Home) -> Result<OwnedFd, TaskError> {
    let path = home.path();
    open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| TaskError::file("open", path)(error.into()))
}

fn control(directory: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{CONTROL}", directory.as_raw_fd())
}

fn listen(home: &Home) -> Result<UnixListener, TaskError> {
    let directory = directory(home)?;
    let path = control(&directory);
    // of a create that was cut off
    let _ = std::fs::remove_file(&path);
    UnixListener::bind(&path).map_err(TaskError::file("listen on", home.path().join(CONTROL)))
}

/// `start`: asks the stand-in of a task to let it begin.
pub fn ask(home: &Home, limit: Duration) -> Result<(), TaskError> {
    let at = home.path().join(CONTROL);
    let directory = directory(home)?;
    let mut socket = UnixStream::connect(control(&directory)).map_err(TaskError::file("connect to", &at))?;
    socket.set_read_timeout(Some(limit)).map_err(TaskError::file("read", &at))?;
    let mut said = Vec::new();
    (&mut socket).take(64 << 10).read_to_end(&mut said).map_err(TaskError::file("read", &at))?;
    match said.as_slice() {
        super::STARTED => Ok(()),
        [] => Err(TaskError::Reported("the process that stands in for it has ended".to_owned())),
        said => Err(TaskError::Reported(String::from_utf8_lossy(said).into_owned())),
    }
}
