//! Network configurations as administrators and CNI installers write them.

use super::version::{CniVersion, UnknownVersion};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Most plugins in one list. Real ones have two to five.
const MAX_PLUGINS: usize = 32;

/// A validated list of plugins: one network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfList {
    /// the network's name, by which plugins keep their state
    pub name: String,
    /// the version all plugins of the list are spoken to in
    pub version: CniVersion,
    /// CHECK is not to be used
    pub disable_check: bool,
    /// GC is not to be used
    pub disable_gc: bool,
    /// in the order of ADD
    pub plugins: Vec<Plugin>,
    /// the file it came from
    pub source: PathBuf,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// name of the executable
    #[serde(rename = "type")]
    pub kind: String,
    /// the plugin's configuration, with all keys that only it understands
    pub conf: Map<String, Value>,
}

impl Plugin {
    /// Whether the plugin asks for this piece of runtime configuration.
    pub fn wants(&self, capability: &str) -> bool {
        self.conf.get("capabilities").and_then(|all| all.get(capability)).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// Why a file is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// not JSON, not an object, or a key with a value of another type
    #[error("not a JSON object of the CNI form")]
    Json(#[source] serde_json::Error),
    /// the version is missing
    #[error("cniVersion is missing")]
    NoVersion,
    /// the version is not one we speak
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    /// `name` is missing or could not be used in file names
    #[error("name {0:?} is not a network name (letters, digits, '_', '.', '-')")]
    Name(String),
    /// a list without plugins
    #[error("plugins is missing or empty")]
    NoPlugins,
    /// a list that is too long
    #[error("{0} plugins, but at most {MAX_PLUGINS} are accepted")]
    TooManyPlugins(usize),
    /// an entry of the list without a usable `type`
    #[error("plugin {index}: type {kind:?} is not the name of an executable")]
    Type {
        /// place in the list, from 0
        index: usize,
        /// what stands there
        kind: String,
    },
    /// only loopback: every pod has that already, and it is no network
    #[error("has the loopback plugin only")]
    LoopbackOnly,
    /// the file could not be read
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    /// the file is larger than any configuration
    #[error("is {0} bytes large")]
    Size(u64),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    cni_version: Option<String>,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(default)]
    name: String,
    plugins: Option<Vec<Map<String, Value>>>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    disable_check: Switch,
    // the specification spells this one in capitals
    #[serde(default, rename = "disableGC")]
    disable_gc: Switch,
}

/// The specification wants a boolean and accepts its name as text.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Switch {
    #[default]
    Absent,
    Bool(bool),
    Text(String),
}

impl Switch {
    fn on(&self) -> bool {
        match self {
            Self::Absent => false,
            Self::Bool(on) => *on,
            Self::Text(text) => text.eq_ignore_ascii_case("true"),
        }
    }
}

/// Understands a list (`plugins`) or a single plugin (`type`), whatever the file is called: names and contents are
/// mixed up in practice, and only one reading makes sense.
pub fn parse(text: &[u8], source: &Path) -> Result<ConfList, ConfError> {
    // by way of a map: a derived reader takes arrays for structs, too
    let object: Map<String, Value> = serde_json::from_slice(text).map_err(ConfError::Json)?;
    let written = Written::deserialize(&Value::Object(object.clone())).map_err(ConfError::Json)?;
    let version = version(&written)?;
    if !is_name(&written.name) {
        return Err(ConfError::Name(written.name));
    }
    let confs = match (written.plugins, written.kind) {
        (Some(plugins), _) => plugins,
        (None, Some(_)) => vec![object],
        (None, None) => return Err(ConfError::NoPlugins),
    };
    match confs.len() {
        0 => return Err(ConfError::NoPlugins),
        count if count > MAX_PLUGINS => return Err(ConfError::TooManyPlugins(count)),
        _ => {}
    }
    let plugins =
        confs.into_iter().enumerate().map(|(index, conf)| plugin(index, conf)).collect::<Result<Vec<_>, _>>()?;
    if plugins.iter().all(|plugin| plugin.kind == "loopback") {
        return Err(ConfError::LoopbackOnly);
    }
    Ok(ConfList {
        name: written.name,
        version,
        disable_check: written.disable_check.on(),
        disable_gc: written.disable_gc.on(),
        plugins,
        source: source.to_owned(),
    })
}

/// The newest of the offered versions that we speak (`cniVersions`, since 1.1), or the only one.
fn version(written: &Written) -> Result<CniVersion, ConfError> {
    let offered = written.cni_versions.iter().filter_map(|text| text.parse().ok()).max();
    match (&written.cni_version, offered) {
        (Some(text), None) => Ok(text.parse()?),
        (Some(text), Some(best)) => Ok(text.parse().map_or(best, |version: CniVersion| version.max(best))),
        (None, Some(best)) => Ok(best),
        (None, None) => Err(ConfError::NoVersion),
    }
}

fn plugin(index: usize, conf: Map<String, Value>) -> Result<Plugin, ConfError> {
    let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    // becomes a path below the plugin directories: nothing in it may lead elsewhere
    if kind.is_empty() || kind.contains(['/', '\0']) || kind.starts_with('.') {
        return Err(ConfError::Type { index, kind });
    }
    Ok(Plugin { kind, conf })
}

/// What libcni accepts as name of a network or id of a container.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.len() <= 200 && text.bytes().all(plain) && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> Result<ConfList, String> {
        parse(text.as_bytes(), Path::new("/x/10-a.conflist")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_keeps_what_only_the_plugins_understand() {
        let list = conf(
            r#"{"cniVersion":"0.3.1","name":"k8s-pod-network","disableCheck":"true","plugins":[
                {"type":"calico","kubernetes":{"kubeconfig":"/k"},"mtu":1440},
                {"type":"portmap","snat":true,"capabilities":{"portMappings":true,"bandwidth":false}}]}"#,
        )
        .unwrap();
        assert_eq!((list.name.as_str(), list.version), ("k8s-pod-network", CniVersion::V0_3_1));
        assert!(list.disable_check && !list.disable_gc);
        assert_eq!(list.plugins[0].conf["kubernetes"]["kubeconfig"], "/k");
        assert_eq!(list.plugins[1].kind, "portmap");
        assert!(list.plugins[1].wants("portMappings"));
        assert!(!list.plugins[1].wants("bandwidth") && !list.plugins[0].wants("portMappings"));
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let list = conf(r#"{"cniVersion":"0.4.0","name":"n","type":"ptp","ipam":{"type":"host-local"}}"#).unwrap();
        assert_eq!(list.plugins.len(), 1);
        assert_eq!(list.plugins[0].conf["ipam"]["type"], "host-local");
    }

    #[test]
    fn the_newest_version_that_both_know_is_taken() {
        let list = |versions: &str| conf(&format!(r#"{{{versions},"name":"n","plugins":[{{"type":"p"}}]}}"#));
        for (versions, wanted) in [
            (r#""cniVersion":"0.3.1","cniVersions":["0.3.1","0.4.0","1.0.0"]"#, CniVersion::V1_0_0),
            (r#""cniVersion":"1.1.0","cniVersions":["0.4.0","2.0.0"]"#, CniVersion::V1_1_0),
            (r#""cniVersion":"2.0.0","cniVersions":["1.1.0","2.0.0"]"#, CniVersion::V1_1_0),
            (r#""cniVersions":["0.3.0"]"#, CniVersion::V0_3_0),
        ] {
            assert_eq!(list(versions).unwrap().version, wanted, "{versions}");
        }
        assert!(list(r#""cniVersion":"2.0.0","cniVersions":["2.0.0"]"#).unwrap_err().contains("2.0.0"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, reason) in [
            ("", "not a JSON object of the CNI form"),
            ("[]", "not a JSON object of the CNI form"),
            (r#"{"name":"n","plugins":[{"type":"p"}]}"#, "cniVersion is missing"),
            (r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"p"}]}"#, "\"0.2.0\" is not one of"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"p"}]}"#, "name \"\""),
            (r#"{"cniVersion":"1.0.0","name":"../n","plugins":[{"type":"p"}]}"#, "name \"../n\""),
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, "plugins is missing"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "plugins is missing"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"p"},{}]}"#, "plugin 1: type \"\""),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../bin/sh"}]}"#, "plugin 0: type"),
            (r#"{"cniVersion":"1.0.0","name":"lo","type":"loopback"}"#, "loopback plugin only"),
        ] {
            let error = conf(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let many = vec![r#"{"type":"p"}"#; MAX_PLUGINS + 1].join(",");
        assert!(conf(&format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{many}]}}"#)).is_err());
    }
}
