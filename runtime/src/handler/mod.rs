//! Runtime handlers: other runtimes that make containers in our place, chosen by a pod's RuntimeClass.
//!
//! A handler is an OCI runtime by its command line (runc, crun, runsc, …). The pod's shim stays the parent of everything and
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
pub use oci_spec::{Inputs, OciSpecError, container, process};
pub use sandbox_container::{SandboxContainerError, start};

use crate::cgroup::Resources;
use crate::config::RuntimeSection;
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
            let mut handler = Handler::new(name, section, state, systemd);
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
    fn new(name: &str, section: &RuntimeSection, state: &Path, systemd: bool) -> Self {
        let root = section.root.clone().unwrap_or_else(|| state.join("runtimes").join(name));
        let mut options = vec!["--root".to_owned(), root.to_string_lossy().into_owned()];
        if systemd {
            options.push("--systemd-cgroup".to_owned());
        }
        options.extend(section.options.iter().cloned());
        Self { name: name.to_owned(), program: section.path.clone(), options, systemd, features: Features::default() }
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
}
