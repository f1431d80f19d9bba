//! Descriptions of devices, version 0.3 to 1.0, in JSON or YAML.

use std::path::Path;

use serde::Deserialize;

use super::hook::{Hook, Stage};

/// How a description is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Yaml,
}

impl Format {
    /// By the end of its name; other files are none.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "json" => Some(Format::Json),
            "yaml" | "yml" => Some(Format::Yaml),
            _ => None,
        }
    }

    pub fn parse(self, text: &str) -> Result<Description, String> {
        match self {
            Format::Json => serde_json::from_str(text).map_err(|error| error.to_string()),
            Format::Yaml => serde_saphyr::from_str(text).map_err(|error| error.to_string()),
        }
    }
}

/// A file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Description {
    /// `vendor.com/class`
    pub kind: String,
    pub devices: Vec<Named>,
    #[serde(default)]
    pub container_edits: Part,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Named {
    pub name: String,
    #[serde(default)]
    pub container_edits: Part,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Part {
    env: Vec<String>,
    device_nodes: Vec<Device>,
    mounts: Vec<Mount>,
    additional_gids: Vec<u32>,
    hooks: Vec<Program>,
    intel_rdt: Option<serde_json::Value>,
    net_devices: Vec<serde_json::Value>,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Device {
    /// Path inside.
    pub path: String,
    /// Path on the host, where it is another.
    host_path: String,
    /// Some of `r`, `w` and `m`; empty for all.
    pub permissions: String,
    /// Permission bits, if not those of the host's.
    pub file_mode: Option<u32>,
    /// Owner, if not that of the host's.
    pub uid: Option<u32>,
    /// Group, if not that of the host's.
    pub gid: Option<u32>,
}

impl Device {
    /// Path on the host.
    pub fn host(&self) -> &str {
        if self.host_path.is_empty() { &self.path } else { &self.host_path }
    }
}

/// A bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Mount {
    /// Path on the host.
    pub host_path: String,
    /// Path inside.
    pub container_path: String,
    /// As of mount(8).
    pub options: Vec<String>,
}

/// A program that is run for the device, as it is described.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Program {
    hook_name: String,
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<u64>,
}

impl Program {
    fn checked(&self) -> Result<Hook, String> {
        let stage = Stage::ALL.into_iter().find(|stage| stage.name() == self.hook_name).ok_or_else(|| {
            let known: Vec<&str> = Stage::ALL.into_iter().map(Stage::name).collect();
            format!("hooks called `{}` (there are {})", self.hook_name, known.join(", "))
        })?;
        if !Path::new(&self.path).is_absolute() {
            return Err(format!("hooks without an absolute path, as `{}`,", self.path));
        }
        let (path, args, env) = (self.path.clone(), self.args.clone(), self.env.clone());
        // 0 is none: nothing ends before it begins
        Ok(Hook { stage, path, args, env, timeout: self.timeout.filter(|seconds| *seconds > 0) })
    }
}

/// What is added to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// `NAME=value`
    pub env: Vec<String>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// Bind mounts.
    pub mounts: Vec<Mount>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Programs to run.
    pub hooks: Vec<Hook>,
}

impl Edits {
    /// Adds a part; what is not offered is an error, because a device without it may not work, or not be safe.
    pub(super) fn add(&mut self, part: &Part) -> Result<(), String> {
        if part.intel_rdt.is_some() {
            return Err("classes of Intel RDT".to_owned());
        }
        if !part.net_devices.is_empty() {
            return Err("network devices".to_owned());
        }
        self.env.extend(part.env.iter().cloned());
        self.devices.extend(part.device_nodes.iter().cloned());
        self.mounts.extend(part.mounts.iter().cloned());
        for program in &part.hooks {
            self.hooks.push(program.checked()?);
        }
        // 0 means none here
        self.groups.extend(part.additional_gids.iter().copied().filter(|gid| *gid != 0));
        Ok(())
    }
}
