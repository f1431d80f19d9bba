//! Manifests, indexes and configs, OCI and Docker schema 2, which agree in everything that matters here.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::model::ImageConfig;
use super::platform::Platform;
use crate::content::Digest;

/// What to ask a registry for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Why a document is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the expected shape.
    #[error("cannot be parsed")]
    Json(#[from] serde_json::Error),
    /// The format that Docker gave up in 2017.
    #[error("is of the obsolete schema 1")]
    Schema1,
    /// One document that different readers take for different things.
    #[error("claims to be a manifest and an index at once")]
    Ambiguous,
    /// Neither layers nor manifests.
    #[error("is neither a manifest nor an index")]
    Unknown,
    /// An index in an index in an index.
    #[error("is an index within too many others")]
    Nested,
    /// Something other than a container image, such as a chart or a signature, where only images will do.
    #[error("is an artifact of type {0:?}, not a container image")]
    Artifact(String),
    /// A file of an artifact whose name cannot be one.
    #[error("has a file {0:?}, whose name cannot be used")]
    Title(String),
    /// The config does not describe the layers.
    #[error("has {layers} layers, but its config describes {diff_ids}")]
    Layers {
        /// As in the manifest.
        layers: usize,
        /// As in the config.
        diff_ids: usize,
    },
    /// More layers than fit on each other.
    #[error("has {0} layers")]
    TooManyLayers(usize),
    /// More bytes than a number can hold.
    #[error("has impossible sizes")]
    Size,
}

/// A pointer to content.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

/// `null` where nothing is meant.
fn or_default<'de, T: Deserialize<'de> + Default, D: serde::Deserializer<'de>>(input: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// Config and layers of one build.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    /// The type of an artifact; none for a container image.
    #[serde(skip)]
    pub artifact: Option<String>,
}

/// What a registry gives for a reference.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    /// Builds for several platforms.
    Index(Vec<Descriptor>),
}

/// Parses by shape: the type in the HTTP header is often wrong and the one in the document optional.
pub(crate) fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    let value: Value = serde_json::from_slice(bytes)?;
    let has = |key| value.get(key).is_some_and(|value| !value.is_null());
    if value.get("schemaVersion").and_then(Value::as_u64) == Some(1) || has("fsLayers") {
        return Err(ManifestError::Schema1);
    }
    match (has("manifests"), has("layers") || has("config")) {
        (true, true) => Err(ManifestError::Ambiguous),
        (true, false) => Ok(Document::Index(Vec::deserialize(&value["manifests"])?)),
        (false, true) => {
            let mut manifest = Manifest::deserialize(&value)?;
            let kind = value.get("artifactType").and_then(Value::as_str).unwrap_or(&manifest.config.media_type);
            let kind = kind.chars().take(100).collect::<String>();
            match manifest.config.media_type.as_str() {
                "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" | "" => {}
                // written by some builders, and an image config all the same
                "application/octet-stream" => {}
                _ => manifest.artifact = Some(kind),
            }
            Ok(Document::Manifest(manifest))
        }
        (false, false) => Err(ManifestError::Unknown),
    }
}

/// The build that suits the host best; the first one of equals, as the publisher ordered them.
pub(crate) fn choose<'a>(manifests: &'a [Descriptor], host: &Platform) -> Option<&'a Descriptor> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for descriptor in manifests {
        // without a platform it is for everybody, but less so than one that says it fits
        let rank = match &descriptor.platform {
            Some(platform) => host.rank(platform).map(|rank| rank + 1),
            None => Some(0),
        };
        if let Some(rank) = rank
            && best.is_none_or(|(other, _)| rank > other)
        {
            best = Some((rank, descriptor));
        }
    }
    best.map(|(_, descriptor)| descriptor)
}

/// The platforms of an index, for the error when none fits. Attestations call themselves `unknown/unknown`.
pub(crate) fn offered(manifests: &[Descriptor]) -> Vec<String> {
    let mut names: Vec<String> = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .map(|platform| platform.to_string().chars().take(60).collect())
        .collect();
    names.dedup();
    names.truncate(32);
    names
}

/// What the config blob says.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub platform: Platform,
    pub created: Option<String>,
    pub diff_ids: Vec<Digest>,
    pub config: ImageConfig,
}

impl Config {
    /// For an artifact, which has none.
    pub(crate) fn of_files(files: Vec<Digest>) -> Config {
        Config { platform: Platform::default(), created: None, diff_ids: files, config: ImageConfig::default() }
    }
}

/// Parses a config blob. Docker writes `null` where it means nothing.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<Config, ManifestError> {
    #[derive(Deserialize)]
    struct Raw {
        #[serde(flatten)]
        platform: Platform,
        created: Option<String>,
        rootfs: RawRootfs,
        config: Option<RawConfig>,
    }
    #[derive(Deserialize)]
    struct RawRootfs {
        diff_ids: Option<Vec<Digest>>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "PascalCase")]
    struct RawConfig {
        user: Option<String>,
        env: Option<Vec<String>>,
        entrypoint: Option<Vec<String>>,
        cmd: Option<Vec<String>>,
        working_dir: Option<String>,
        stop_signal: Option<String>,
        volumes: Option<BTreeMap<String, Value>>,
        labels: Option<BTreeMap<String, String>>,
        exposed_ports: Option<BTreeMap<String, Value>>,
    }
    let raw: Raw = serde_json::from_slice(bytes)?;
    let config = raw.config.unwrap_or_default();
    Ok(Config {
        platform: raw.platform,
        created: raw.created,
        diff_ids: raw.rootfs.diff_ids.unwrap_or_default(),
        config: ImageConfig {
            user: config.user.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: config.volumes.unwrap_or_default().into_keys().collect(),
            labels: config.labels.unwrap_or_default(),
            exposed: config.exposed_ports.unwrap_or_default().into_keys().collect(),
        },
    })
}

/// Whether a layer of this type is a tar archive that we can unpack. How it is compressed shows in its first bytes.
pub(crate) fn is_layer(media_type: &str) -> bool {
    let kind = media_type.split(';').next().unwrap_or_default();
    let kind = ["+gzip", ".gzip", "+zstd", ".zstd"].iter().find_map(|end| kind.strip_suffix(end)).unwrap_or(kind);
    matches!(
        kind,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/octet-stream"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let manifests: Vec<Value> = platforms
            .iter()
            .enumerate()
            .map(|(size, platform)| {
                let mut parts = platform.split('/');
                serde_json::json!({ "digest": DIGEST, "size": size, "platform": {
                    "os": parts.next(), "architecture": parts.next(), "variant": parts.next() } })
            })
            .collect();
        match parse(serde_json::json!({ "schemaVersion": 2, "manifests": manifests }).to_string().as_bytes()) {
            Ok(Document::Index(manifests)) => manifests,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_best_build_for_the_host_is_chosen_and_the_others_are_named() {
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: Some("v3".into()) };
        let manifests =
            index(&["linux/arm64/v8", "linux/amd64", "linux/amd64/v2", "linux/amd64/v4", "unknown/unknown"]);
        assert_eq!(choose(&manifests, &host).unwrap().size, 2);
        let manifests = index(&["linux/arm64/v8", "windows/amd64", "unknown/unknown"]);
        assert!(choose(&manifests, &host).is_none());
        assert_eq!(offered(&manifests), ["linux/arm64/v8", "windows/amd64"]);
    }

    #[test]
    fn documents_that_are_no_images_say_so() {
        let parse = |value: Value| parse(value.to_string().as_bytes());
        let config =
            serde_json::json!({ "mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": DIGEST, "size": 1 });
        assert!(matches!(parse(serde_json::json!({ "schemaVersion": 1 })), Err(ManifestError::Schema1)));
        assert!(matches!(parse(serde_json::json!({ "manifests": [], "layers": [] })), Err(ManifestError::Ambiguous)));
        assert!(matches!(parse(serde_json::json!({})), Err(ManifestError::Unknown)));
        match parse(serde_json::json!({ "config": config, "layers": [], "annotations": null })) {
            Ok(Document::Manifest(chart)) => {
                assert_eq!(chart.artifact.as_deref(), Some("application/vnd.cncf.helm.config.v1+json"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(parse(serde_json::json!({ "config": {}, "layers": [] })), Err(ManifestError::Json(_))));
    }

    #[test]
    fn a_config_full_of_nulls_is_fine() {
        let config = parse_config(
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},
                "config":{"User":"1002","Env":null,"Cmd":["sh"],"Volumes":{"/data":{}},"Labels":null,"StopSignal":""}}"#,
        )
        .unwrap();
        assert_eq!(config.config.user, "1002");
        assert_eq!(config.config.volumes, ["/data"]);
        assert_eq!(config.config.stop_signal, None);
        assert!(parse_config(br#"{"rootfs":{}}"#).unwrap().config.cmd.is_empty());
        assert!(parse_config(b"{}").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_document_is_parsed_or_refused(text in "\\PC{0,200}") {
            let _ = (parse(text.as_bytes()), parse_config(text.as_bytes()));
        }
    }
}
