//! The shim's side of a launch: forking the launcher and hearing from it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::epoll::EpollFlags;

use crate::launch::report::{self, Received, Report};
use crate::poll::{Number, Poller, Token, Watched};
use crate::protocol::ErrorKind;
use crate::sys;

/// How a launch failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Class.
    pub kind: ErrorKind,
    /// Exit code to record.
    pub exit_code: i32,
    /// For people.
    pub message: String,
}

/// A launcher, from fork to exec.
#[derive(Debug)]
pub struct Launcher {
    /// Its process id, later that of the program.
    pub pid: i32,
    /// Not watched any more once it has ended: it would report that for ever.
    socket: Option<Watched>,
    ready: bool,
    /// It waits, with everything mounted.
    pub made: bool,
    /// What it gave up.
    pub warnings: Vec<String>,
    /// Why it ended.
    pub failure: Option<Failure>,
    /// Master side of the terminal.
    pub terminal: Option<OwnedFd>,
}

/// The namespaces and the cgroup that a process is born into.
#[derive(Debug, Default)]
pub struct Birth<'a> {
    /// Make a PID namespace.
    pub new_pid: bool,
    /// Be born into that PID namespace.
    pub join_pid: Option<BorrowedFd<'a>>,
    /// Be born into that v2 cgroup.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl Launcher {
    /// Forks a launcher that runs `child`, which gets its socket and whether it was born into its cgroup.
    pub fn fork(
        poller: &Rc<Poller>,
        number: Number,
        birth: &Birth<'_>,
        child: impl Fn(&OwnedFd, bool),
    ) -> nix::Result<Self> {
        let (ours, theirs) = report::channel()?;
        let socket = poller.watch(ours, Token::Launch(number), EpollFlags::EPOLLIN)?;
        let home = match birth.join_pid {
            Some(namespace) => {
                let home =
                    File::open("/proc/self/ns/pid").map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
                // concerns children only; undone below
                setns(namespace, CloneFlags::CLONE_NEWPID)?;
                Some(home)
            }
            None => None,
        };
        let flags = if birth.new_pid { libc::CLONE_NEWPID } else { 0 };
        let mut placed = birth.cgroup.is_some();
        let mut forked = sys::clone_process(flags, birth.cgroup);
        if placed
            && matches!(forked, Err(Errno::ENOSYS | Errno::E2BIG | Errno::EINVAL | Errno::EBUSY | Errno::EOPNOTSUPP))
        {
            placed = false;
            forked = sys::clone_process(flags, None);
        }
        if matches!(forked, Ok(None)) {
            child(&theirs, placed);
            sys::end_now(128);
        }
        if let Some(home) = home
            && let Err(error) = setns(home, CloneFlags::CLONE_NEWPID)
        {
            if let Ok(Some(pid)) = forked {
                // nobody would know of it
                let _ = sys::send_signal(pid, libc::SIGKILL);
            }
            return Err(error);
        }
        let pid = forked?.unwrap_or_default();
        Ok(Self {
            pid,
            socket: Some(socket),
            ready: false,
            made: false,
            warnings: Vec::new(),
            failure: None,
            terminal: None,
        })
    }

    /// Lets it go on that was held.
    pub fn release(&self) -> nix::Result<()> {
        self.socket.as_ref().map_or(Err(Errno::EPIPE), report::release)
    }

    /// Hears what it has to say. True when it has come to its end, by exec or by death.
    pub fn hear(&mut self) -> bool {
        while let Some(socket) = &self.socket {
            match report::receive(socket.as_fd()) {
                Received::Nothing => return false,
                Received::End => self.socket = None,
                Received::Report(Report::Warning { message }, _) => {
                    // a launcher says a handful; the bound is for one gone mad
                    if self.warnings.len() < 64 {
                        self.warnings.push(message);
                    }
                }
                Received::Report(Report::Terminal, fd) => self.terminal = fd,
                Received::Report(Report::Made, _) => self.made = true,
                Received::Report(Report::Ready, _) => self.ready = true,
                Received::Report(Report::Failed { kind, exit_code, message }, _) => {
                    self.failure = Some(Failure { kind, exit_code, message });
                }
            }
        }
        true
    }

    /// Whether its end was the exec.
    pub fn executed(&self) -> bool {
        self.ready && self.failure.is_none()
    }

    /// The failure of one that died with exit code `code` before its exec.
    pub fn failure(self, code: i32) -> Failure {
        self.failure.unwrap_or_else(|| {
            let how = if code > 128 { format!("by signal {}", code - 128) } else { format!("with code {code}") };
            Failure { kind: ErrorKind::System, exit_code: code, message: format!("the launcher was ended {how}") }
        })
    }
}
