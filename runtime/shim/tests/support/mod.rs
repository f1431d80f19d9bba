//! A real shim on a real socket, and an unpacked busybox to run in it.
// each test program uses a part of it; in helpers of tests a surprise may end the test as in the tests themselves
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod image;

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nodeagent_shim::protocol::*;
use serde::Serialize;

use self::image::busybox;
// not every test program uses all
#[allow(unused_imports)]
pub use self::image::{bind, default_devices, default_mounts, file_system};

/// Longest wait for anything; a machine under load needs some of it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Whether this can run here; says so when not.
pub fn root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "these tests must run in CI, which needs root");
    eprintln!("skipped: needs root");
    false
}

pub struct Connection {
    stream: UnixStream,
    seq: u64,
    events: VecDeque<Event>,
    replies: Vec<Reply>,
    pub hello: Hello,
}

impl Connection {
    pub fn open(path: &Path, sandbox: &str) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let hello = Hello { version: VERSION, sandbox: sandbox.into(), pid: 1, hooks: false };
        let mut this = Self { stream, seq: 0, events: VecDeque::new(), replies: Vec::new(), hello: hello.clone() };
        this.write(&hello);
        this.hello = serde_json::from_slice(&this.frame().unwrap()).unwrap();
        this
    }

    pub fn write<T: Serialize>(&mut self, value: &T) {
        let text = serde_json::to_vec(value).unwrap();
        self.write_raw(&text);
    }

    pub fn write_raw(&mut self, text: &[u8]) {
        let mut frame = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(text);
        self.stream.write_all(&frame).unwrap();
    }

    pub fn frame(&mut self) -> io::Result<Vec<u8>> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header)?;
        let mut frame = vec![0; u32::from_le_bytes(header) as usize];
        self.stream.read_exact(&mut frame)?;
        Ok(frame)
    }

    fn receive(&mut self) {
        match serde_json::from_slice(&self.frame().unwrap()).unwrap() {
            FromShim::Reply(reply) => self.replies.push(reply),
            FromShim::Event(event) => self.events.push_back(event),
        }
    }

    pub fn ask(&mut self, call: Call) -> u64 {
        self.seq += 1;
        let seq = self.seq;
        self.write(&Request { seq, call });
        seq
    }

    pub fn answer(&mut self, seq: u64) -> Answer {
        loop {
            if let Some(at) = self.replies.iter().position(|reply| reply.seq == seq) {
                return self.replies.remove(at).result;
            }
            self.receive();
        }
    }

    pub fn call(&mut self, call: Call) -> Answer {
        let seq = self.ask(call);
        self.answer(seq)
    }

    pub fn done(&mut self, call: Call) {
        match self.call(call) {
            Answer::Done => {}
            other => panic!("{other:?}"),
        }
    }

    pub fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            self.receive();
        }
    }

    pub fn exited(&mut self, id: &str) -> ContainerState {
        loop {
            let is_it = |event: &Event| matches!(event, Event::Exited { state } if state.container == id);
            if let Some(at) = self.events.iter().position(is_it)
                && let Some(Event::Exited { state }) = self.events.remove(at)
            {
                return state;
            }
            self.receive();
        }
    }

    pub fn start(&mut self, spec: &LaunchSpec) -> i32 {
        match self.call(Call::Start(Box::new(spec.clone()))) {
            Answer::Started { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    /// Starts what cannot be started.
    pub fn refused(&mut self, spec: &LaunchSpec) -> (ErrorKind, String) {
        match self.call(Call::Start(Box::new(spec.clone()))) {
            Answer::Error { kind, message } => (kind, message),
            other => panic!("{other:?}"),
        }
    }

    /// What an exec came to: exit code, both outputs, whether it was cut off at its time limit.
    pub fn executed(&mut self, seq: u64) -> (i32, String, String, bool) {
        match self.answer(seq) {
            Answer::Executed { exit_code, stdout, stderr, timed_out } => {
                (exit_code, decode(&stdout), decode(&stderr), timed_out)
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn run_exec(&mut self, exec: ExecSpec) -> (i32, String, String, bool) {
        let seq = self.ask(Call::Exec(Box::new(exec)));
        self.executed(seq)
    }

    pub fn list(&mut self) -> Vec<ContainerState> {
        match self.call(Call::List) {
            Answer::Containers { containers } => containers,
            other => panic!("{other:?}"),
        }
    }

    pub fn exec(&mut self, container: &str, script: &str) -> (i32, String, String) {
        match self.call(Call::Exec(Box::new(exec(container, script)))) {
            Answer::Executed { exit_code, stdout, stderr, timed_out: false } => {
                (exit_code, decode(&stdout), decode(&stderr))
            }
            other => panic!("{other:?}"),
        }
    }
}

pub fn decode(text: &str) -> String {
    String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
}

pub fn exec(container: &str, script: &str) -> ExecSpec {
    ExecSpec { container: container.into(), process: shell(script), timeout_ms: 0, output_limit: 16 << 20, oci: None }
}

pub fn shell(script: &str) -> ProcessSpec {
    ProcessSpec {
        args: vec!["sh".into(), "-c".into(), script.into()],
        env: vec![STANDARD.encode("PATH=/bin"), STANDARD.encode("HOME=/root")],
        cwd: "/".into(),
        capabilities: Capabilities {
            bounding: 0xa80425fb,
            effective: 0xa80425fb,
            permitted: 0xa80425fb,
            ..Capabilities::default()
        },
        ..ProcessSpec::default()
    }
}

pub struct Pod {
    pub dir: tempfile::TempDir,
    pub sandbox: String,
    pub child: Child,
    pub socket: PathBuf,
    pub daemon: Connection,
    cgroups: Vec<PathBuf>,
}

impl Pod {
    /// A shim with its pod set up.
    pub fn new() -> Self {
        Self::with(PodSetup { new_net: true, new_ipc: true, new_uts: true, ..PodSetup::default() })
    }

    pub fn with(setup: PodSetup) -> Self {
        let mut pod = Self::bare();
        pod.daemon.done(Call::Setup(setup));
        pod
    }

    /// A shim that has been asked for nothing yet.
    pub fn bare() -> Self {
        Self::of(Path::new(env!("CARGO_BIN_EXE_nodeagent-shim")))
    }

    /// A shim of that program.
    pub fn of(program: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("nodeagent-shim-test-").tempdir().unwrap();
        let sandbox = unique();
        let socket = dir.path().join("shim.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        // the shell moves the listener to where the shim expects it
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec \"$0\" --sandbox \"$1\" 3<&0 </dev/null"]);
        command.arg(program).arg(&sandbox);
        command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let daemon = Connection::open(&socket, &sandbox);
        busybox(&dir.path().join("image"));
        Self { dir, sandbox, child, socket, daemon, cgroups: Vec::new() }
    }

    pub fn reconnect(&self) -> Connection {
        Connection::open(&self.socket, &self.sandbox)
    }

    /// A container that runs a shell script, with the mounts that every container has.
    pub fn container(&self, script: &str) -> LaunchSpec {
        let id = unique();
        let home = self.dir.path().join(&id);
        for name in ["upper", "work", "rootfs"] {
            fs::create_dir_all(home.join(name)).unwrap();
        }
        let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
        LaunchSpec {
            rootfs: Rootfs {
                lower: vec![self.dir.path().join("image").to_str().unwrap().into()],
                upper: path("upper"),
                work: path("work"),
                target: path("rootfs"),
                context: None,
            },
            mounts: default_mounts(),
            devices: default_devices(),
            process: shell(script),
            log_path: Some(path("log/0.log")),
            container: id,
            ..LaunchSpec::default()
        }
    }

    pub fn log(&self, spec: &LaunchSpec) -> String {
        fs::read_to_string(spec.log_path.as_ref().unwrap()).unwrap()
    }

    /// Content of the log without times, streams and tags.
    pub fn output(&self, spec: &LaunchSpec) -> String {
        let text = self.log(spec);
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned() + "\n").collect()
    }

    /// Runs a container to its end.
    pub fn run(&mut self, spec: &LaunchSpec) -> ContainerState {
        self.daemon.start(spec);
        self.daemon.exited(&spec.container)
    }

    /// Makes a cgroup for the container in each of these v1 hierarchies and puts it into the spec.
    pub fn cgroup(&mut self, spec: &mut LaunchSpec, hierarchies: &[&str]) {
        for hierarchy in hierarchies {
            let path = Path::new("/sys/fs/cgroup").join(hierarchy).join(format!("crio-{}", spec.container));
            fs::create_dir(&path).unwrap();
            spec.cgroups.push(path.to_str().unwrap().into());
            self.cgroups.push(path);
        }
    }

    /// Stops the pod and ends the shim, the orderly way.
    pub fn end(mut self) {
        self.daemon.done(Call::StopPod);
        self.daemon.done(Call::Exit);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // after a failed test too: nothing may stay behind
        for cgroup in &self.cgroups {
            kill_all(cgroup);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for cgroup in &self.cgroups {
            let deadline = Instant::now() + DEADLINE;
            while remove_tree(cgroup).is_err() && Instant::now() < deadline {
                kill_all(cgroup);
                std::thread::yield_now();
            }
        }
    }
}

fn kill_all(cgroup: &Path) {
    for pid in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
        let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

fn remove_tree(cgroup: &Path) -> io::Result<()> {
    if let Ok(entries) = fs::read_dir(cgroup) {
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            kill_all(&entry.path());
            remove_tree(&entry.path())?;
        }
        fs::remove_dir(cgroup)?;
    }
    Ok(())
}

/// An id nobody else uses.
pub fn unique() -> String {
    let mut bytes = [0; 32];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits until it is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// Children of a process.
pub fn children(pid: u32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The shim as a static program, as it is delivered: what runs in an empty root finds no dynamic linker there.
pub fn static_shim() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let tested = PathBuf::from(env!("CARGO_BIN_EXE_nodeagent-shim"));
        if cfg!(target_env = "musl") {
            return tested;
        }
        let target = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target");
        let mut cargo = Command::new(std::env::var_os("CARGO").expect("run by cargo test"));
        cargo.args(["build", "--quiet", "--package", "nodeagent-shim", "--target", MUSL, "--target-dir", target]);
        let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(built.success(), "{cargo:?}: {built}");
        Path::new(target).join(MUSL).join("debug/nodeagent-shim")
    })
}

const MUSL: &str = "x86_64-unknown-linux-musl";
