//! A directory with configurations and with plugins that are shell scripts.

use nodeagent_runtime::network::{Network, NetworkConfig, PodNetwork};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Time after which a test has failed, far above what it needs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// An answer that any version accepts.
pub const ANSWER: &str =
    r#"{"ips":[{"address":"10.9.0.2/24","interface":0}],"interfaces":[{"name":"eth0","sandbox":"/n"}]}"#;

pub struct Scripts {
    directory: tempfile::TempDir,
}

/// One recorded call of a plugin.
#[derive(Debug)]
pub struct Call {
    /// `plugin VERB`
    pub name: String,
    pub input: Value,
    pub environment: Vec<String>,
    /// what the plugin's descriptors lead to
    pub descriptors: Vec<String>,
}

impl Call {
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

impl Scripts {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["net.d", "bin", "calls"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A plugin that records its call and then does what `body` says; `$input` is its input, `$dir` the directory.
    pub fn plugin(&self, name: &str, body: &str) {
        let dir = self.directory.path().display();
        self.raw_plugin(
            name,
            &format!(
                r#"dir={dir}
input=$(cat)
call=$dir/calls/$(ls $dir/calls | wc -l | xargs printf %04d)-{name}-$CNI_COMMAND
mkdir $call
printf %s "$input" > $call/input
env > $call/environment
descriptors=$(ls -l /proc/$$/fd)
echo "$descriptors" > $call/descriptors
{body}
"#
            ),
        );
    }

    /// A plugin that only does what `body` says.
    pub fn raw_plugin(&self, name: &str, body: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A plugin that records and answers [`ANSWER`] to everything.
    pub fn recording(&self, name: &str) {
        self.plugin(name, &format!("echo '{ANSWER}'"));
    }

    pub fn conf(&self, file: &str, text: &str) {
        fs::write(self.path("net.d").join(file), text).unwrap();
    }

    /// A list of plugins without settings.
    pub fn list(&self, version: &str, plugins: &[&str]) {
        let plugins: Vec<_> = plugins.iter().map(|name| format!(r#"{{"type":"{name}"}}"#)).collect();
        let plugins = plugins.join(",");
        self.conf("10-test.conflist", &format!(r#"{{"cniVersion":"{version}","name":"test","plugins":[{plugins}]}}"#));
    }

    pub fn config(&self) -> NetworkConfig {
        NetworkConfig {
            conf_dir: self.path("net.d"),
            plugin_dirs: vec![self.path("missing"), self.path("bin")],
            cache_dir: self.path("cache"),
            ..NetworkConfig::default()
        }
    }

    pub fn network(&self) -> Network {
        Network::new(self.config())
    }

    /// Calls so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        let mut paths: Vec<_> = fs::read_dir(self.path("calls")).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| read_call(path)).collect()
    }

    pub fn call_names(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.name).collect()
    }

    /// How many calls have begun; they may still be writing down what they see.
    pub fn calls_begun(&self) -> usize {
        fs::read_dir(self.path("calls")).unwrap().count()
    }

    pub fn forget_calls(&self) {
        fs::remove_dir_all(self.path("calls")).unwrap();
        fs::create_dir(self.path("calls")).unwrap();
    }

    pub fn records(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("cache")).into_iter().flatten();
        // the folder in it is of calls, not of pods
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
    }
}

fn read_call(path: &Path) -> Call {
    let name = path.file_name().unwrap().to_str().unwrap();
    let lines =
        |file: &str| fs::read_to_string(path.join(file)).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    let mut environment = lines("environment");
    environment.sort();
    let descriptors = lines("descriptors");
    let target = |line: &String| line.split_once(" -> ").map(|(_, target)| target.to_owned());
    Call {
        name: name[5..].replace('-', " "),
        input: serde_json::from_str(&fs::read_to_string(path.join("input")).unwrap()).unwrap(),
        environment,
        descriptors: descriptors.iter().filter_map(target).collect(),
    }
}

/// A pod whose namespace does not exist.
pub fn pod(id: &str) -> PodNetwork {
    PodNetwork {
        sandbox_id: id.into(),
        namespace: "default".into(),
        name: format!("pod-{id}"),
        uid: format!("uid-{id}"),
        netns: format!("/run/netns/nodeagent-test-without-{id}").into(),
        ..PodNetwork::default()
    }
}

/// An error with all its causes.
pub fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
