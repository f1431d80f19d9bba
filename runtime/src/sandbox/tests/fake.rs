//! Stand-ins at the seams: a shim that speaks the real protocol on a real socket, a network and images that count.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nodeagent_shim::protocol::{
    Answer, Call, ContainerState, ErrorKind, Event, FromShim, Hello, Reply, Request, VERSION,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::cgroup::{Cgroups, Driver, Layout};
use crate::container::ImageSource;
use crate::container::spec::HostFacts;
use crate::events::Events;
use crate::image::{Image, ImageConfig, ImageError, Rootfs};
use crate::kernel::Kernel;
use crate::sandbox::shim::frame;
use crate::sandbox::{Environment, NetworkFailure, Paths, PodNetworks, Pods, SandboxRecord, ShimError, ShimLauncher};
use crate::seccomp::Filters;
use crate::state::Store;

/// Everything the stand-ins know; shared by daemons that follow each other.
#[derive(Clone, Default)]
pub struct Fakes {
    pub shims: Arc<Shims>,
    pub network: Arc<Net>,
    pub images: Arc<Layers>,
}

/// A node in a directory, without its daemon.
pub struct Ground {
    pub dir: tempfile::TempDir,
    pub fakes: Fakes,
}

impl Ground {
    pub fn new() -> Self {
        let shims = Shims { host: Some(Handle::current()), ..Shims::default() };
        let fakes = Fakes { shims: Arc::new(shims), ..Fakes::default() };
        Ground { dir: tempfile::tempdir().unwrap(), fakes }
    }

    /// A daemon that can be killed: what it does ends with its own runtime.
    pub async fn mortal(&self, boot: &str) -> Mortal {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (environment, recovered) = (self.environment(boot), runtime.handle().clone());
        let pods = recovered.spawn(async move {
            let pods = Pods::new(Arc::new(environment));
            pods.recover().await.unwrap();
            pods
        });
        Mortal { pods: pods.await.unwrap(), runtime }
    }

    /// A daemon that starts on it, having met what an earlier one left.
    pub async fn daemon(&self, boot: &str) -> Pods {
        let pods = Pods::new(Arc::new(self.environment(boot)));
        pods.recover().await.unwrap();
        pods
    }

    fn environment(&self, boot: &str) -> Environment {
        let paths = Paths::new(&self.dir.path().join("state"), &self.dir.path().join("netns"));
        for path in [&paths.pods, &paths.shims] {
            std::fs::create_dir_all(path).unwrap();
        }
        Environment {
            paths,
            store: Store::open(&self.dir.path().join("root"), boot).unwrap(),
            cgroups: Cgroups::new(Layout::V1 { hierarchies: Vec::new() }, Driver::Cgroupfs),
            shims: Box::new(Arc::clone(&self.fakes.shims)),
            network: Box::new(Arc::clone(&self.fakes.network)),
            images: Box::new(Arc::clone(&self.fakes.images)),
            events: Events::default(),
            host: HostFacts {
                bounding: u64::MAX >> 23,
                capabilities: Vec::new(),
                rlimits: Vec::new(),
                pids_limit: 0,
                kernel: Kernel::from_release("6.12.0"),
                seccomp: Filters::new(Kernel::from_release("6.12.0").version),
                cdi_dirs: Vec::new(),
                handlers: crate::handler::Handlers::default(),
                selinux: None,
            },
        }
    }

    /// Files below the directory, for tests that want none to be left.
    pub fn files(&self) -> Vec<PathBuf> {
        fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => collect(&path, found),
                    path => found.push(path),
                }
            }
        }
        let mut found = Vec::new();
        collect(self.dir.path(), &mut found);
        found
    }
}

/// A daemon with a runtime of its own.
pub struct Mortal {
    pub pods: Pods,
    runtime: Runtime,
}

impl Mortal {
    /// Does something as that daemon.
    pub async fn does<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.spawn(work).await.unwrap()
    }

    /// As kill -9: nothing is finished.
    pub async fn kill(self) {
        let runtime = self.runtime;
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10))).await.unwrap();
    }
}

/// Shims by the id of their pod.
#[derive(Default)]
pub struct Shims {
    pub launched: AtomicUsize,
    running: Mutex<HashMap<String, Arc<FakeShim>>>,
    /// Where they run: not with the daemon, whose end they outlive.
    host: Option<Handle>,
    /// Programs do not end on SIGTERM.
    pub stubborn: AtomicBool,
    /// Programs are not there.
    pub broken: AtomicBool,
}

impl Shims {
    pub fn of(&self, sandbox: &str) -> Arc<FakeShim> {
        Arc::clone(&self.running.lock().unwrap()[sandbox])
    }
}

#[async_trait::async_trait]
impl ShimLauncher for Arc<Shims> {
    async fn launch(&self, sandbox: &str, socket: &Path) -> Result<i32, ShimError> {
        self.launched.fetch_add(1, Ordering::SeqCst);
        let host = self.host.clone().unwrap();
        let listener = {
            let _inside = host.enter();
            UnixListener::bind(socket).unwrap()
        };
        let shim = Arc::new(FakeShim {
            sandbox: sandbox.to_owned(),
            shims: Arc::clone(self),
            containers: Mutex::default(),
            events: broadcast::channel(16).0,
            dead: CancellationToken::new(),
        });
        self.running.lock().unwrap().insert(sandbox.to_owned(), Arc::clone(&shim));
        host.spawn(Arc::clone(&shim).serve(listener));
        Ok(4711)
    }
}

pub struct FakeShim {
    sandbox: String,
    shims: Arc<Shims>,
    containers: Mutex<Vec<ContainerState>>,
    events: broadcast::Sender<Event>,
    dead: CancellationToken,
}

impl FakeShim {
    async fn serve(self: Arc<Self>, listener: UnixListener) {
        let accepting = async {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = Arc::clone(&self).talk(stream);
                tokio::spawn(self.dead.clone().run_until_cancelled_owned(connection));
            }
        };
        self.dead.run_until_cancelled(accepting).await;
    }

    async fn talk(self: Arc<Self>, stream: UnixStream) {
        let (mut reader, mut writer) = stream.into_split();
        let mut events = self.events.subscribe();
        let hello = Hello { version: VERSION, sandbox: self.sandbox.clone(), pid: 4711, hooks: true };
        frame::write(&mut writer, &hello).await.unwrap();
        let _: Option<Hello> = frame::read(&mut reader).await.unwrap();
        let (sender, mut requests) = tokio::sync::mpsc::channel::<Request>(16);
        tokio::spawn(async move {
            while let Ok(Some(request)) = frame::read(&mut reader).await {
                if sender.send(request).await.is_err() {
                    return;
                }
            }
        });
        loop {
            let message = tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => FromShim::Reply(Reply { seq: request.seq, result: self.answer(request.call) }),
                    None => return,
                },
                event = events.recv() => match event {
                    Ok(event) => FromShim::Event(event),
                    Err(_) => return,
                },
            };
            if frame::write(&mut writer, &message).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, call: Call) -> Answer {
        match call {
            Call::Start(spec) => {
                let broken = self.shims.broken.load(Ordering::SeqCst);
                let started_at = if broken { 0 } else { 5 };
                self.containers.lock().unwrap().push(ContainerState {
                    container: spec.container.clone(),
                    pid: Some(77).filter(|_| !broken),
                    started_at,
                    finished_at: 0,
                    exit_code: None,
                    oom_killed: false,
                    message: String::new(),
                });
                if broken {
                    self.end(&spec.container, 127, false);
                    let message = "\"/entry\": not found".to_owned();
                    return Answer::Error { kind: ErrorKind::CannotExecute, message };
                }
                Answer::Started { pid: 77, started_at, warnings: Vec::new() }
            }
            Call::Signal { container, signal, all } => {
                if signal == 9 || !self.shims.stubborn.load(Ordering::SeqCst) {
                    self.end(&container, 128 + signal, false);
                }
                let _ = all;
                Answer::Done
            }
            Call::StopPod => {
                let all: Vec<String> = self.containers.lock().unwrap().iter().map(|c| c.container.clone()).collect();
                all.iter().for_each(|container| self.end(container, 137, false));
                Answer::Done
            }
            Call::List => Answer::Containers { containers: self.containers.lock().unwrap().clone() },
            Call::Forget { container } => {
                self.containers.lock().unwrap().retain(|state| state.container != container);
                Answer::Done
            }
            Call::Exit => {
                self.die();
                Answer::Done
            }
            _ => Answer::Done,
        }
    }

    /// A container ends; a second end is none.
    pub fn end(&self, container: &str, code: i32, oom_killed: bool) {
        let mut containers = self.containers.lock().unwrap();
        let found = containers.iter_mut().find(|state| state.container == container && state.exit_code.is_none());
        let Some(state) = found else { return };
        (state.pid, state.exit_code, state.finished_at, state.oom_killed) = (None, Some(code), 9, oom_killed);
        let _ = self.events.send(Event::Exited { state: state.clone() });
    }

    /// Gone, with everything in it.
    pub fn die(&self) {
        self.dead.cancel();
    }

    pub fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }
}

#[derive(Default)]
pub struct Net {
    pub attached: AtomicUsize,
    pub detached: AtomicUsize,
    pub refuse_attach: AtomicBool,
    pub refuse_detach: AtomicBool,
}

#[async_trait::async_trait]
impl PodNetworks for Arc<Net> {
    async fn attach(&self, _: &SandboxRecord) -> Result<Vec<IpAddr>, NetworkFailure> {
        self.attached.fetch_add(1, Ordering::SeqCst);
        match self.refuse_attach.load(Ordering::SeqCst) {
            true => Err("no address left".into()),
            false => Ok(vec![IpAddr::from([10, 1, 2, 3])]),
        }
    }

    async fn detach(&self, _: &SandboxRecord) -> Result<(), NetworkFailure> {
        self.detached.fetch_add(1, Ordering::SeqCst);
        match self.refuse_detach.load(Ordering::SeqCst) {
            true => Err("plugin on strike".into()),
            false => Ok(()),
        }
    }

    async fn sweep(&self, _: &[String]) -> Result<(), NetworkFailure> {
        Ok(())
    }
}

/// One image, and writable layers in a directory of their own.
pub struct Layers {
    dir: tempfile::TempDir,
    holders: Mutex<Vec<String>>,
}

impl Default for Layers {
    fn default() -> Self {
        Layers { dir: tempfile::tempdir().unwrap(), holders: Mutex::default() }
    }
}

pub const IMAGE: &str = "sha256:1111";

#[async_trait::async_trait]
impl ImageSource for Arc<Layers> {
    fn find(&self, name: &str) -> Option<Arc<Image>> {
        let config = ImageConfig { entrypoint: vec!["/entry".into()], ..ImageConfig::default() };
        let image = Image {
            id: IMAGE.to_owned(),
            tags: Vec::new(),
            digests: vec!["r/x@sha256:22".to_owned()],
            size: 1,
            config,
            chain_ids: Vec::new(),
            created: None,
            platform: String::new(),
            artifact: None,
        };
        (name == IMAGE).then(|| Arc::new(image))
    }

    async fn prepare(&self, _: &str, container: &str) -> Result<Rootfs, ImageError> {
        self.holders.lock().unwrap().push(container.to_owned());
        let container_dir = self.dir.path().join(container);
        let rootfs = Rootfs {
            lower: vec![container_dir.join("lower")],
            upper: container_dir.join("upper"),
            work: container_dir.join("work"),
            container_dir,
        };
        for dir in [&rootfs.lower[0], &rootfs.upper] {
            std::fs::create_dir_all(dir).unwrap();
        }
        Ok(rootfs)
    }

    async fn release(&self, container: &str) -> Result<(), ImageError> {
        self.holders.lock().unwrap().retain(|holder| holder != container);
        Ok(())
    }

    fn holders(&self) -> Vec<String> {
        self.holders.lock().unwrap().clone()
    }
}
