//! Starting programs: a container's own and those run beside it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::unistd::pipe2;

use super::{Pod, Refusal};
use crate::cgroup::Cgroup;
use crate::container::{Container, Held};
use crate::context::Caller;
use crate::exec::Exec;
use crate::io::pipe_to_read;
use crate::launch::{self, Join, Place, Streams};
use crate::launcher::{Birth, Launcher};
use crate::log::LogFile;
use crate::oci;
use crate::output::{Output, Which};
use crate::protocol::{ErrorKind, ExecSpec, LaunchSpec, OciRuntime, PidNamespace, Placement};

/// Containers of one pod, running or remembered.
const MAX_CONTAINERS: usize = 1024;

/// Execs at a time in one pod.
const MAX_EXECS: usize = 256;

/// Bytes kept of each stream of an exec: both must fit into one frame, as base64.
const MAX_OUTPUT: usize = 16 << 20;

/// Longest id taken.
const MAX_ID: usize = 128;

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorKind::Invalid, message)
}

impl Pod {
    /// The next number.
    pub(super) fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn check(&self, spec: &LaunchSpec) -> Result<(), Refusal> {
        let id = &spec.container;
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(invalid(format!("{id:?} is no container id")));
        }
        if self.stopped {
            return Err(Refusal::new(ErrorKind::WrongState, "the pod has been stopped"));
        }
        if self.containers.iter().any(|container| container.state.container == *id) {
            return Err(Refusal::new(ErrorKind::WrongState, format!("container {id} has been started before")));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(Refusal::new(ErrorKind::WrongState, format!("there are {MAX_CONTAINERS} containers")));
        }
        if let Some(path) = &spec.log_path
            && !path.starts_with('/')
        {
            return Err(invalid(format!("log path {path} is not absolute")));
        }
        Ok(())
    }

    /// Forks the launcher of a container; the answer comes when it has executed the program or failed to.
    pub(super) fn start(&mut self, caller: Caller, spec: &LaunchSpec) -> Result<(), Refusal> {
        if let Some(container) = self.containers.iter_mut().find(|one| one.state.container == spec.container)
            && container.started_by(caller, &mut self.outbox)
        {
            // asked again, by a daemon that does not know how far its predecessor came
            return Ok(());
        }
        self.check(spec)?;
        let cgroup = Cgroup::new(&spec.cgroups, &spec.container).map_err(invalid)?;
        let log = match &spec.log_path {
            None => None,
            Some(path) => Some(
                LogFile::open(path)
                    .map_err(|error| Refusal::new(ErrorKind::System, format!("open log {path}: {error}")))?,
            ),
        };
        let join_pid = match &spec.pid_namespace {
            _ if spec.oci.is_some() => None,
            PidNamespace::New | PidNamespace::Host => None,
            PidNamespace::Container(other) => Some(self.pid_namespace_of(other)?),
            PidNamespace::Pod => Some(namespace(self.reaper_pid()?, "pid")?),
        };
        let user = match (spec.user_namespace, self.namespaces.user()) {
            (true, None) => return Err(Refusal::new(ErrorKind::WrongState, "the pod has no user namespace")),
            _ => spec.user_namespace,
        };
        let number = self.number();
        let mut output = Output::log(log);
        let mut streams = Streams::default();
        let mut stdin = None;
        // with a terminal the launcher sends its master side; without a log nobody reads
        if !spec.process.terminal {
            if spec.log_path.is_some() {
                streams.stdout = Some(self.read_from(&mut output, number, Which::Stdout)?);
                streams.stderr = Some(self.read_from(&mut output, number, Which::Stderr)?);
            }
            if spec.stdin {
                let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
                (streams.stdin, stdin) = (Some(read), Some(write));
            }
        }
        let birthplace = if spec.placement == Placement::Attach { cgroup.birthplace() } else { None };
        let birth = Birth {
            new_pid: spec.pid_namespace == PidNamespace::New,
            join_pid: join_pid.as_ref().map(AsFd::as_fd),
            cgroup: birthplace.as_ref().map(AsFd::as_fd),
        };
        let birth = if spec.oci.is_some() { Birth::default() } else { birth };
        let launcher = Launcher::fork(&self.poller, number, &birth, |status, placed| match &spec.oci {
            Some(oci) => launch::oci_create(spec, oci, &streams, status),
            None => launch::container(spec, self.namespaces.user().filter(|_| user), &streams, status, placed),
        })?;
        let held = (spec.placement == Placement::Wait).then_some(Held::Placement);
        let mut container = Container::new(number, spec.container.clone(), cgroup, launcher, output, held);
        container.oom_score_adj = spec.process.oom_score_adj;
        container.user_namespace = user;
        container.alone = spec.pid_namespace == PidNamespace::New && spec.oci.is_none();
        container.oci = spec.oci.clone().map(oci::State::new);
        container.hold_stdin(stdin);
        container.started_by(caller, &mut self.outbox);
        self.containers.push(container);
        Ok(())
    }

    /// Makes a pipe into `output`; returns the end for the program.
    fn read_from(&self, output: &mut Output, number: u32, which: Which) -> Result<OwnedFd, Refusal> {
        let (read, write) = pipe_to_read()?;
        output.attach(&self.poller, number, which, read)?;
        Ok(write)
    }

    fn running(&mut self, id: &str) -> Result<i32, Refusal> {
        let container = self.find(id)?;
        match container.process() {
            Some(pid) if container.running() => Ok(pid),
            _ => Err(Refusal::new(ErrorKind::WrongState, format!("container {id} does not run"))),
        }
    }

    fn pid_namespace_of(&mut self, id: &str) -> Result<OwnedFd, Refusal> {
        let pid = self.running(id)?;
        namespace(pid, "pid")
    }

    /// Forks the launcher of an exec; the answer comes at its end.
    pub(super) fn exec(&mut self, caller: Caller, spec: &ExecSpec) -> Result<(), Refusal> {
        let pid = self.running(&spec.container)?;
        if self.execs.len() >= MAX_EXECS {
            return Err(Refusal::new(ErrorKind::WrongState, format!("there are {MAX_EXECS} execs already")));
        }
        let number = self.number();
        if let Some(state) = &self.find(&spec.container)?.oci {
            let runtime = state.runtime.clone();
            return self.exec_by_oci(caller, spec, number, &runtime);
        }
        let container = self.find(&spec.container)?;
        let (owner, user) = (container.number, container.user_namespace);
        let mut process = spec.process.clone();
        process.oom_score_adj = process.oom_score_adj.or(container.oom_score_adj).or(Some(0));
        // the process is our child and not reaped: its number, and so these files, are its own
        let join_pid = namespace(pid, "pid")?;
        let join = [
            Join { fd: namespace(pid, "cgroup")?, kind: CloneFlags::CLONE_NEWCGROUP, name: "cgroup" },
            Join { fd: namespace(pid, "mnt")?, kind: CloneFlags::CLONE_NEWNS, name: "mount" },
        ];
        let first = container.cgroup.of_process(pid).and_then(|path| path.to_str().map(Into::into));
        let (cgroups, own) = match container.cgroup.make_below(&format!("exec-{number}")) {
            Ok(Some((all, own))) => (all, Some(own)),
            Ok(None) => (container.cgroup.paths(), None),
            Err(error) => {
                let message = format!("make a cgroup for an exec in {}: {error}", spec.container);
                return Err(Refusal::new(ErrorKind::System, message));
            }
        };
        let cgroups: Vec<String> = cgroups.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let place = Place { cgroups, first, join };
        // beside other hierarchies it would be in one of its cgroups only
        let birthplace = own.as_ref().filter(|_| place.cgroups.len() == 1).and_then(Cgroup::birthplace);
        let user = self.namespaces.user().filter(|_| user);
        let birth = Birth {
            join_pid: Some(join_pid.as_fd()),
            cgroup: birthplace.as_ref().map(AsFd::as_fd),
            ..Birth::default()
        };
        let forked = self.fork_exec(caller, spec, number, &birth, |streams, status, placed| {
            launch::exec(&process, user, &place, streams, status, placed)
        });
        match forked {
            Ok(mut exec) => {
                (exec.container, exec.cgroup) = (owner, own);
                self.execs.push(exec);
                Ok(())
            }
            Err(refusal) => {
                self.lingering.extend(own);
                Err(refusal)
            }
        }
    }

    /// Has another runtime run a further process in a container that it has made.
    fn exec_by_oci(
        &mut self,
        caller: Caller,
        spec: &ExecSpec,
        number: u32,
        runtime: &OciRuntime,
    ) -> Result<(), Refusal> {
        let process = spec.oci.as_deref().ok_or_else(|| invalid("an exec without its process in OCI's words"))?;
        let owner = self.find(&spec.container)?.number;
        let name = format!("exec-{number}");
        let mut exec = self.fork_exec(caller, spec, number, &Birth::default(), |streams, status, _| {
            launch::oci_exec(&spec.container, runtime, process, &name, streams, status)
        })?;
        exec.container = owner;
        exec.oci = Some((runtime.clone(), name.clone()));
        self.execs.push(exec);
        Ok(())
    }

    fn fork_exec(
        &self,
        caller: Caller,
        spec: &ExecSpec,
        number: u32,
        birth: &Birth<'_>,
        child: impl Fn(&Streams, &OwnedFd, bool),
    ) -> Result<Exec, Refusal> {
        let mut output = Output::keep(usize::try_from(spec.output_limit).unwrap_or(MAX_OUTPUT).min(MAX_OUTPUT));
        let streams = Streams {
            stdin: None,
            stdout: Some(self.read_from(&mut output, number, Which::Stdout)?),
            stderr: Some(self.read_from(&mut output, number, Which::Stderr)?),
        };
        let launcher = Launcher::fork(&self.poller, number, birth, |status, placed| child(&streams, status, placed))?;
        let timeout = (spec.timeout_ms > 0).then(|| Duration::from_millis(spec.timeout_ms));
        Ok(Exec::new(number, launcher, output, caller, timeout))
    }
}

fn namespace(pid: i32, kind: &str) -> Result<OwnedFd, Refusal> {
    let path = format!("/proc/{pid}/ns/{kind}");
    match File::open(&path) {
        Ok(file) => Ok(file.into()),
        // it has ended and waits to be reaped
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Refusal::new(ErrorKind::WrongState, "the container has just ended"))
        }
        Err(error) => Err(Refusal::new(ErrorKind::System, format!("open {path}: {error}"))),
    }
}
