//! One call of one plugin: its environment, its input, its answer.

use super::{
    conf::{ConfList, Plugin},
    error::PluginError,
    exec,
    inputs::Inputs,
    pod::{INTERFACE, PodNetwork},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// What plugins can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// Everything that is the same for all plugins of one pass through a list.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) verb: Verb,
    pub(super) list: &'a ConfList,
    /// absent for GC and STATUS
    pub(super) pod: Option<&'a PodNetwork>,
    /// the namespace is gone, so there is no path to give
    pub(super) without_netns: bool,
    /// keys that this verb adds to the configuration
    pub(super) extra: Map<String, Value>,
    pub(super) directories: &'a [PathBuf],
    pub(super) inputs: &'a Inputs,
}

impl Call<'_> {
    /// Runs one plugin; `previous` is the result so far. The answer is what it wrote.
    pub(super) async fn run(
        &self,
        plugin: &Plugin,
        previous: Option<&Value>,
        limit: Duration,
    ) -> Result<Vec<u8>, PluginError> {
        let program = find(&plugin.kind, self.directories)
            .ok_or_else(|| PluginError::Missing { directories: self.directories.to_vec() })?;
        let input = serde_json::to_vec(&self.input(plugin, previous)).map_err(PluginError::Encode)?;
        let input = match self.pod {
            Some(pod) => self.inputs.of(&pod.sandbox_id, &input),
            None => Inputs::of_nobody(&input),
        };
        let input = input.map_err(PluginError::Input)?;
        let output = exec::run(&program, &self.environment(), &input.file, limit).await?;
        if output.status.success() {
            if !output.stderr.is_empty() {
                log::debug!(plugin = plugin.kind.as_str(), verb = self.verb.as_str(), stderr = output.stderr.as_str(); "plugin said");
            }
            return Ok(output.stdout);
        }
        Err(failure(output))
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let directories: Vec<_> = self.directories.iter().map(|path| path.display().to_string()).collect();
        let mut environment = vec![("CNI_COMMAND", self.verb.as_str().to_owned()), ("CNI_PATH", directories.join(":"))];
        if let Some(pod) = self.pod {
            let netns = if self.without_netns { String::new() } else { pod.netns.display().to_string() };
            environment.extend([
                ("CNI_CONTAINERID", pod.sandbox_id.clone()),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", INTERFACE.to_owned()),
                ("CNI_ARGS", pod.arguments()),
            ]);
        }
        environment
    }

    /// The plugin's own configuration and what the specification adds to it.
    fn input(&self, plugin: &Plugin, previous: Option<&Value>) -> Map<String, Value> {
        let mut input = plugin.conf.clone();
        input.insert("name".to_owned(), self.list.name.as_str().into());
        input.insert("cniVersion".to_owned(), self.list.version.as_str().into());
        if let Some(pod) = self.pod {
            let runtime_config = pod.runtime_config(plugin);
            if !runtime_config.is_empty() {
                input.insert("runtimeConfig".to_owned(), Value::Object(runtime_config));
            }
        }
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        input.extend(self.extra.clone());
        input
    }
}

/// The first executable of that name.
pub(super) fn find(kind: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    let executable =
        |path: &Path| fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    directories.iter().map(|directory| directory.join(kind)).find(|path| executable(path))
}

fn failure(output: exec::Output) -> PluginError {
    #[derive(Deserialize)]
    struct Written {
        code: u32,
        #[serde(default)]
        msg: String,
        #[serde(default)]
        details: String,
    }
    if let Ok(written) = serde_json::from_slice::<Written>(&output.stdout) {
        let bounded = |text: String| text.chars().take(4096).collect::<String>();
        let message = if written.msg.is_empty() { output.stderr } else { written.msg };
        return PluginError::Reported {
            code: written.code,
            message: bounded(message),
            details: bounded(written.details),
        };
    }
    // killed plugins and shell scripts: whatever there is to read
    let stderr = if output.stderr.is_empty() {
        String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(500)]).trim().to_owned()
    } else {
        output.stderr
    };
    PluginError::Failed { status: output.status, stderr }
}
