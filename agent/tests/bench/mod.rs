//! A fresh fake host that runs are made on.
// each test crate uses a part of it
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nodeagent::config;
use nodeagent::host::fake::{FakeHost, FakeUnit};
use nodeagent::reconcile::{Engine, EngineError, Options, Report, ResourceState};
use nodeagent::resource::registry;
use tempfile::TempDir;

pub struct Bench {
    pub dir: TempDir,
    pub fake: FakeHost,
    /// The runtime's socket accepts as long as this lives.
    _socket: UnixListener,
}

impl Bench {
    /// With the runtime's unit and these, none of them running.
    pub fn new(units: &[&str]) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeHost::new(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join("run/nodeagent")).unwrap();
        let socket = UnixListener::bind(dir.path().join("run/nodeagent/cri.sock")).unwrap();
        for unit in ["nodeagent-runtime.service"].iter().chain(units) {
            fake.systemd.set(unit, FakeUnit::disabled());
        }
        Bench { dir, fake, _socket: socket }
    }

    pub async fn apply(&self, config: &str) -> Report {
        self.run(config, Options::new("apply")).await.unwrap()
    }

    pub async fn reconcile(&self, config: &str) -> Report {
        self.run(config, Options { obey_policy: true, ..Options::new("reconcile") }).await.unwrap()
    }

    pub async fn run(&self, config: &str, options: Options) -> Result<Report, EngineError> {
        let settings = config::from_text(config).unwrap_or_else(|errors| panic!("{errors}"));
        let platform = self.fake.platform();
        let resources = registry(&settings, &platform).unwrap();
        Engine::new(&self.fake.host, &platform, &settings.reconcile, resources).unwrap().run(&options).await
    }

    pub fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.dir.path().join(path.trim_start_matches('/'))).ok()
    }

    /// Writes since the last call, without the report for people.
    pub fn writes(&self) -> Vec<String> {
        self.fake.writes().into_iter().filter(|write| !write.contains("/run/nodeagent")).collect()
    }

    /// Every file but the agent's own records, without what follows a value in /proc.
    pub fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(self.dir.path(), self.dir.path(), &mut files);
        files.retain(|path, _| !path.starts_with("var/lib/nodeagent") && !path.starts_with("run"));
        for (_, value) in files.iter_mut().filter(|(path, _)| path.starts_with("proc") || path.starts_with("sys")) {
            *value = value.trim_ascii_end().to_vec();
        }
        files
    }
}

fn collect(top: &Path, dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        let name = path.strip_prefix(top).unwrap().to_owned();
        if kind.is_dir() {
            collect(top, &path, files);
        } else if kind.is_file() {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
}

pub fn state_of(report: &Report, id: &str) -> Option<ResourceState> {
    report.resources.iter().find(|entry| entry.id.as_str() == id).map(|entry| entry.state)
}
