//! Static pods: as much of a Pod as the test host's pods use. What is not known here is an error, not ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

/// A pod from `staticPodPath`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pod {
    /// `v1`.
    pub api_version: String,
    /// `Pod`.
    pub kind: String,
    /// Who it is.
    pub metadata: Metadata,
    /// What it runs.
    pub spec: Spec,
    /// Made of the file's content, as a kubelet does it for static pods.
    #[serde(skip)]
    pub uid: String,
}

/// Name, namespace, labels.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    pub name: String,
    #[serde(default = "default_namespace")]
    pub namespace: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    #[serde(default)]
    pub host_network: bool,
    pub containers: Vec<Container>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    pub image: String,
    #[serde(default)]
    pub image_pull_policy: PullPolicy,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<Env>,
    #[serde(default)]
    pub ports: Vec<Port>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Env {
    pub name: String,
    #[serde(default)]
    pub value: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Port {
    pub container_port: u16,
    #[serde(default)]
    pub host_port: u16,
}

/// All pods of the directory (or the one file) in lexical order; files that begin with a dot are none.
pub fn load(place: &Path) -> anyhow::Result<Vec<Pod>> {
    let mut files: Vec<PathBuf> = if place.is_dir() {
        std::fs::read_dir(place)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?
    } else if place.exists() {
        vec![place.to_owned()]
    } else {
        return Ok(Vec::new());
    };
    files.retain(|file| file.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")));
    files.sort();
    files.iter().map(|file| one(file).with_context(|| format!("static pod {}", file.display()))).collect()
}

fn one(file: &Path) -> anyhow::Result<Pod> {
    let text = std::fs::read_to_string(file)?;
    let mut pod: Pod = serde_saphyr::from_str(&text)?;
    if pod.api_version != "v1" || pod.kind != "Pod" {
        bail!("{} {} is no v1 Pod", pod.api_version, pod.kind);
    }
    pod.uid = uid(&text);
    Ok(pod)
}

/// FNV-1a over the text, twice with different starts: 32 hex digits that change with the manifest.
fn uid(text: &str) -> String {
    let hash =
        |start: u64| text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{:016x}{:016x}", hash(0xcbf2_9ce4_8422_2325), hash(0x6c62_272e_07bb_0142))
}
