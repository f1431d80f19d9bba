//! Runtime handlers: other runtimes that make containers in our place, chosen by a pod's RuntimeClass.
//!
//! A handler is an OCI runtime by its command line (runc, crun, runsc, …), or a shim of containerd's kind (kata), for which the
//! shim's program is the command line. The pod's shim stays the parent of everything and
//! the writer of logs; where it would launch a container itself, it runs the runtime's `create` and `start`, and `exec` for
//! commands. What the container is to be is decided as for all others ([`crate::container::spec`]) and then said in the
//! runtime's words ([`oci_spec`]). Such a pod has a first container of its own, with our reaper in it ([`sandbox_container`]): runtimes
//! that put a whole pod into one sandbox begin with it.
//!
//! * [`Handlers`]: those that are configured, with what they say they can
//! * [`command`]: one command, with bounds

mod command;
mod oci_spec;
mod sandbox_container;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nodeagent_shim::protocol::OciRuntime;
use serde::Deserialize;

pub use command::CommandError;
pub(crate) use command::{finish as finish_command, run as run_command};
pub use oci_spec::{Inputs, OciSpecError, VERSION as OCI_VERSION, container, process, root_mounts};
pub use sandbox_container::{SandboxContainerError, start};

use crate::cgroup::Resources;
use crate::config::{RuntimeKind, RuntimeSection};
use crate::telemetry::chain;

/// How long a runtime may take for a command of which nobody waits for the outside.
const COMMAND: Duration = Duration::from_secs(30);

/// What a runtime can that not all can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Mounts that are read-only with all below them.
    pub recursive_read_only_mounts: bool,
}

/// A runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    name: String,
    program: PathBuf,
    options: Vec<String>,
    root: PathBuf,
    kind: RuntimeKind,
    systemd: bool,
    features: Features,
}

/// All runtimes, by the names that pods ask for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Handlers {
    all: Arc<BTreeMap<String, Handler>>,
    program_of_the_reaper: Arc<PathBuf>,
}

impl Handlers {
    /// Asks every configured runtime what it can. Those that are not installed are offered all the same: the pods that ask
    /// for them are told what is missing.
    pub async fn probe(
        configured: &BTreeMap<String, RuntimeSection>,
        state: &Path,
        shim: &Path,
        systemd: bool,
    ) -> Self {
        let mut all = BTreeMap::new();
        for (name, section) in configured {
            let mut handler = Handler::new(name, section, state, shim, systemd);
            handler.features = match handler.run(&["features"], None).await {
                Ok(text) => features(&text),
                Err(error) => {
                    log::info!(runtime = name.as_str(); "says of no features: {}", chain(&error));
                    Features::default()
                }
            };
            all.insert(name.clone(), handler);
        }
        Self { all: Arc::new(all), program_of_the_reaper: Arc::new(shim.to_owned()) }
    }

    /// The runtime of that name.
    pub fn find(&self, name: &str) -> Option<&Handler> {
        self.all.get(name)
    }

    /// Every runtime with its features, in the order of their names.
    pub fn features(&self) -> impl Iterator<Item = (&str, Features)> {
        self.all.values().map(|handler| (handler.name.as_str(), handler.features))
    }

    /// For an error: what could have been asked for.
    pub fn known(&self) -> String {
        match self.all.is_empty() {
            true => "none is configured".to_owned(),
            false => format!("known are {}", self.all.keys().cloned().collect::<Vec<_>>().join(", ")),
        }
    }

    /// What is executed as the first process of a pod.
    fn reaper(&self) -> &Path {
        &self.program_of_the_reaper
    }
}

impl Handler {
    fn new(name: &str, section: &RuntimeSection, state: &Path, shim: &Path, systemd: bool) -> Self {
        let root = section.root.clone().unwrap_or_else(|| state.join("runtimes").join(name));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut options = vec!["--root".to_owned(), text(&root)];
        if systemd {
            options.push("--systemd-cgroup".to_owned());
        }
        let program = match section.kind {
            RuntimeKind::Oci => section.path.clone(),
            RuntimeKind::ShimV2 => {
                options.extend(["--shim-v2".to_owned(), text(&section.path)]);
                if let Some(path) = &section.config_path {
                    options.extend(["--config-path".to_owned(), text(path)]);
                }
                shim.to_owned()
            }
        };
        options.extend(section.options.iter().cloned());
        let (name, kind, features) = (name.to_owned(), section.kind, Features::default());
        Self { name, program, options, root, kind, systemd, features }
    }

    /// Whether a shim of its own makes its containers, with a process of ours standing in for each.
    pub fn stands_in(&self) -> bool {
        self.kind == RuntimeKind::ShimV2
    }

    /// The first process of a container, where `known` may only stand in for it.
    pub fn process(&self, id: &str, known: i32) -> i32 {
        if !self.stands_in() {
            return known;
        }
        let text = std::fs::read_to_string(self.root.join(id).join("task.pid")).unwrap_or_default();
        text.trim().parse().ok().filter(|pid| *pid > 1).unwrap_or(known)
    }

    /// Whether its containers' cgroups are made by systemd, as it is told.
    pub fn by_systemd(&self) -> bool {
        self.systemd
    }

    /// What the shim is told of it.
    pub fn oci(&self, bundle: &Path) -> OciRuntime {
        OciRuntime {
            program: self.program.to_string_lossy().into_owned(),
            options: self.options.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            stand_in: self.stands_in(),
        }
    }

    /// Has it forget a container, whatever that does. One that it does not know is forgotten.
    pub async fn delete(&self, id: &str) -> Result<(), CommandError> {
        match self.run(&["delete", "--force", id], None).await {
            Err(error) if error.says_unknown() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Has it change the limits of a running container.
    pub async fn update(&self, id: &str, limits: &Resources) -> Result<(), CommandError> {
        let text = oci_spec::limits(limits).to_string();
        self.run(&["update", "--resources", "/dev/stdin", id], Some(text)).await.map(drop)
    }

    async fn run(&self, arguments: &[&str], input: Option<String>) -> Result<String, CommandError> {
        let all: Vec<&str> = self.options.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        command::run(&self.program, &all, input, COMMAND).await
    }
}

fn features(text: &str) -> Features {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Said {
        #[serde(default)]
        mount_options: Option<Vec<String>>,
    }
    let said: Option<Said> = serde_json::from_str(text).ok();
    let options = said.and_then(|said| said.mount_options).unwrap_or_default();
    Features { recursive_read_only_mounts: options.iter().any(|option| option == "rro") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(path: &str) -> RuntimeSection {
        RuntimeSection { path: path.into(), ..RuntimeSection::default() }
    }

    #[test]
    fn a_feature_is_there_when_the_runtime_says_so() {
        assert!(features(r#"{"mountOptions":["ro","rro"]}"#).recursive_read_only_mounts);
        for text in [r#"{"mountOptions":["ro"]}"#, r#"{"mountOptions":null}"#, "{}", "unknown command features"] {
            assert_eq!(features(text), Features::default(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_installed_has_no_features_and_is_known() {
        let configured =
            BTreeMap::from([("kata".to_owned(), section("/nowhere/kata")), ("b".to_owned(), section("/bin/false"))]);
        let handlers = Handlers::probe(&configured, Path::new("/run/n"), Path::new("/shim"), true).await;
        assert_eq!(handlers.known(), "known are b, kata");
        let all: Vec<_> = handlers.features().collect();
        assert_eq!(all, [("b", Features::default()), ("kata", Features::default())]);
        let oci = handlers.find("kata").unwrap().oci(Path::new("/bundle"));
        assert_eq!(oci.options, ["--root", "/run/n/runtimes/kata", "--systemd-cgroup"]);
        assert_eq!(Handlers::default().known(), "none is configured");
    }

    #[test]
    fn a_shim_is_spoken_to_by_our_own_program() {
        let directory = tempfile::tempdir().unwrap();
        let section = RuntimeSection {
            path: "/opt/containerd-shim-kata-v2".into(),
            kind: RuntimeKind::ShimV2,
            config_path: Some("/etc/kata.toml".into()),
            root: Some(directory.path().to_owned()),
            ..RuntimeSection::default()
        };
        let handler = Handler::new("kata", &section, Path::new("/run/n"), Path::new("/shim"), false);
        let oci = handler.oci(Path::new("/bundle"));
        let root = directory.path().to_str().unwrap();
        let options = ["--root", root, "--shim-v2", "/opt/containerd-shim-kata-v2", "--config-path", "/etc/kata.toml"];
        assert_eq!(oci.options, options);
        assert!(oci.program == "/shim" && oci.stand_in);
        assert_eq!(handler.process("c1", 7), 7);
        std::fs::create_dir(directory.path().join("c1")).unwrap();
        std::fs::write(directory.path().join("c1/task.pid"), "99").unwrap();
        assert_eq!(handler.process("c1", 7), 99);
    }
}
