//! The daemon's configuration: one TOML file, everything optional, unknown keys refused.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::image::RegistryConfig;

/// Where the file is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/nodeagent/runtime.toml";

/// A configuration file is small; a bigger one is a mistake (a log, a device).
const MAX_SIZE: u64 = 1 << 20;

/// What the daemon is told.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The CRI socket.
    pub listen: PathBuf,
    /// The path at which cAdvisor looks for a runtime; empty for none.
    pub compat_socket: PathBuf,
    /// What survives a reboot: records, container directories, images.
    pub root: PathBuf,
    /// What a reboot may forget: sockets of shims, files of pods.
    pub state: PathBuf,
    /// The pod supervisor.
    pub shim: PathBuf,
    /// Where network namespaces are bound, so that plugins and people find them.
    pub netns_dir: PathBuf,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: LogLevel,
    /// Who manages cgroups.
    pub cgroup_driver: DriverChoice,
    /// How long running calls may go on after the daemon was told to stop, in seconds.
    pub drain_seconds: u64,
    /// `[[registry]]`: those that differ from the default, which is HTTPS without mirrors.
    #[serde(rename = "registry")]
    pub registries: Vec<RegistryConfig>,
    /// Images.
    pub images: ImagesSection,
    /// Pod networks.
    pub network: NetworkSection,
    /// Defaults of containers.
    pub containers: ContainerDefaults,
    /// `[runtimes.NAME]`: other runtimes, for pods whose RuntimeClass has NAME as its handler.
    pub runtimes: BTreeMap<String, RuntimeSection>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: "/run/nodeagent/cri.sock".into(),
            compat_socket: "/run/crio/crio.sock".into(),
            root: "/var/lib/nodeagent/containers".into(),
            state: "/run/nodeagent".into(),
            shim: "/usr/libexec/nodeagent/nodeagent-shim".into(),
            netns_dir: "/run/netns".into(),
            log_level: LogLevel::Info,
            cgroup_driver: DriverChoice::Auto,
            drain_seconds: 10,
            registries: Vec::new(),
            images: ImagesSection::default(),
            network: NetworkSection::default(),
            containers: ContainerDefaults::default(),
            runtimes: BTreeMap::new(),
        }
    }
}

/// `[runtimes.NAME]`: another runtime.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeSection {
    /// Its program.
    pub path: PathBuf,
    /// How it is spoken to.
    #[serde(default)]
    pub kind: RuntimeKind,
    /// Its own configuration, for a shim that takes one (kata); its default unless said.
    pub config_path: Option<PathBuf>,
    /// Where it keeps what it knows of containers; below the daemon's state directory unless said.
    pub root: Option<PathBuf>,
    /// Arguments before each command.
    #[serde(default)]
    pub options: Vec<String>,
}

/// How a runtime is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    /// By the command line of OCI runtimes (runc, crun, runsc).
    #[default]
    Oci,
    /// A shim as containerd has them (`containerd-shim-kata-v2`), by ttrpc.
    ShimV2,
}

/// `[images]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesSection {
    /// Images that the kubelet must not collect: names, in which `*` stands for anything.
    pub pinned: Vec<String>,
    /// Who may have made an image: `policy.json` of containers tools. Without the file, anybody.
    pub signature_policy: PathBuf,
    /// Where signatures are kept: `registries.d` of containers tools.
    pub registries_d: PathBuf,
}

impl Default for ImagesSection {
    fn default() -> Self {
        ImagesSection {
            pinned: Vec::new(),
            signature_policy: "/etc/containers/policy.json".into(),
            registries_d: "/etc/containers/registries.d".into(),
        }
    }
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSection {
    /// CNI configuration lists.
    pub conf_dir: PathBuf,
    /// CNI plugins, searched in this order.
    pub plugin_dirs: Vec<PathBuf>,
    /// Whether the daemon does the work of plugins that it has built in, where a list has no others.
    pub builtin: bool,
}

impl Default for NetworkSection {
    fn default() -> Self {
        NetworkSection {
            conf_dir: "/etc/cni/net.d".into(),
            plugin_dirs: vec!["/opt/cni/bin".into(), "/usr/libexec/cni".into()],
            builtin: true,
        }
    }
}

/// `[containers]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerDefaults {
    /// Capabilities of a container that asks for none.
    pub capabilities: Vec<String>,
    /// Most processes in one container; 0 for no limit of its own.
    pub pids_limit: u64,
    /// Where vendors describe their devices (CDI); a later directory counts for more.
    pub cdi_dirs: Vec<PathBuf>,
    /// Resource limits by name (`nofile`), each `soft:hard` or one number for both.
    pub rlimits: BTreeMap<String, String>,
}

impl Default for ContainerDefaults {
    fn default() -> Self {
        // CRI-O's nine; Docker's fourteen would add NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE and SETFCAP
        let capabilities =
            ["CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "KILL"];
        ContainerDefaults {
            capabilities: capabilities.map(str::to_owned).to_vec(),
            pids_limit: 0,
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            rlimits: BTreeMap::from([("nofile".to_owned(), "1024:524288".to_owned())]),
        }
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// And what may fail next.
    Warn,
    /// And what was done.
    Info,
    /// And how.
    Debug,
    /// And everything else.
    Trace,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => log::LevelFilter::Error,
            LogLevel::Warn => log::LevelFilter::Warn,
            LogLevel::Info => log::LevelFilter::Info,
            LogLevel::Debug => log::LevelFilter::Debug,
            LogLevel::Trace => log::LevelFilter::Trace,
        }
    }
}

/// Who manages cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverChoice {
    /// systemd where it runs the host with cgroup v2, else the daemon.
    Auto,
    /// The daemon makes directories.
    Cgroupfs,
    /// systemd makes scopes.
    Systemd,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no configuration.
    #[error("{}: {size} bytes are too many for a configuration (at most {MAX_SIZE})", path.display())]
    TooBig {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Something in the file is wrong.
    #[error("{}:{line}: {key}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Dotted name of the key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A value that is well-formed but cannot work.
    #[error("{}: {key}: {message}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Dotted name of the key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

/// Reads the file. A missing one is an error only when it was `named` on the command line.
pub fn load(path: &Path, named: bool) -> Result<Config, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !named => return Ok(Config::default()),
        Err(error) => return Err(read(error)),
    };
    if size > MAX_SIZE {
        return Err(ConfigError::TooBig { path: path.to_owned(), size });
    }
    let text = fs::read_to_string(path).map_err(read)?;
    parse(path, &text)
}

/// Parses the text of the file at `path`.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(text).map_err(|error| locate(path, text, &error))?;
    config.check(path)?;
    Ok(config)
}

impl Config {
    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let invalid = |key: &str, message: String| ConfigError::Value { path: path.into(), key: key.into(), message };
        let absolute = [
            ("listen", &self.listen),
            ("root", &self.root),
            ("state", &self.state),
            ("shim", &self.shim),
            ("netns_dir", &self.netns_dir),
            ("images.signature_policy", &self.images.signature_policy),
            ("images.registries_d", &self.images.registries_d),
            ("network.conf_dir", &self.network.conf_dir),
        ];
        for (key, value) in absolute {
            if !value.is_absolute() {
                return Err(invalid(key, format!("`{}` is not an absolute path", value.display())));
            }
        }
        for (name, runtime) in &self.runtimes {
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
            if name.is_empty() || !name.chars().all(letters) {
                let message = "is no name that a RuntimeClass can have (a-z, 0-9, - and .)".to_owned();
                return Err(invalid(&format!("runtimes.{name}"), message));
            }
            let root = runtime.root.iter().map(|root| ("root", root));
            let own = runtime.config_path.iter().map(|path| ("config_path", path));
            for (key, value) in [("path", &runtime.path)].into_iter().chain(root).chain(own) {
                if !value.is_absolute() {
                    let message = format!("`{}` is not an absolute path", value.display());
                    return Err(invalid(&format!("runtimes.{name}.{key}"), message));
                }
            }
        }
        for (name, runtime) in &self.runtimes {
            let (key, message) = match (runtime.kind, looks_like_a_shim(&runtime.path)) {
                (RuntimeKind::ShimV2, _) if !runtime.options.is_empty() => {
                    ("options", "a runtime of kind `shim-v2` has no arguments; did you mean `config_path`?")
                }
                (RuntimeKind::Oci, _) if runtime.config_path.is_some() => {
                    ("config_path", "only a runtime of kind `shim-v2` is told of one; did you mean `options`?")
                }
                (RuntimeKind::Oci, true) => ("kind", "the program is a shim of containerd's; did you mean `shim-v2`?"),
                _ => continue,
            };
            return Err(invalid(&format!("runtimes.{name}.{key}"), message.to_owned()));
        }
        for (name, value) in &self.containers.rlimits {
            crate::container::rlimits::parse(name, value)
                .map_err(|error| invalid(&format!("containers.rlimits.{name}"), error.to_string()))?;
        }
        for name in &self.containers.capabilities {
            if crate::capability::number(name).is_none() {
                return Err(invalid("containers.capabilities", format!("`{name}` is no capability")));
            }
        }
        Ok(())
    }
}

/// Shims are named so that containerd finds them.
fn looks_like_a_shim(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("containerd-shim-") && name.ends_with("-v2")
}

/// Turns the parser's offsets into a line and a key, and its list of known keys into the nearest one.
fn locate(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..offset).unwrap_or("");
    let line = before.matches('\n').count() + 1;
    let message = error.message().lines().next().unwrap_or("not valid TOML");
    ConfigError::Invalid { path: path.into(), line, key: key_at(text, line), message: with_nearest(message) }
}

/// The dotted key on that line: its own name behind that of the table it is in.
fn key_at(text: &str, line: usize) -> String {
    let mut table = "";
    let mut key = "";
    for current in text.lines().take(line).map(str::trim) {
        key = "";
        if let Some(header) = current.strip_prefix('[') {
            table = header.trim_matches(['[', ']']).trim();
        } else if let Some((name, _)) = current.split_once('=') {
            key = name.trim();
        }
    }
    match (table.is_empty(), key.is_empty()) {
        (true, true) => "(top level)".to_owned(),
        (true, false) => key.to_owned(),
        (false, true) => table.to_owned(),
        (false, false) => format!("{table}.{key}"),
    }
}

fn with_nearest(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.to_owned() };
    let mut names = rest.split('`').step_by(2);
    let Some(unknown) = names.next() else { return message.to_owned() };
    let nearest = names
        .map(|known| (strsim::jaro_winkler(unknown, known), known))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, known)) => format!("unknown key, did you mean `{known}`?"),
        None => "unknown key".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(Path::new("/etc/x.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse(Path::new("/x"), "").unwrap(), Config::default());
    }

    #[test]
    fn a_misspelt_key_is_named_with_line_and_nearest_match() {
        assert_eq!(
            error("log_level = \"info\"\nlissten = \"/x\"\n"),
            "/etc/x.toml:2: lissten: unknown key, did you mean `listen`?"
        );
    }

    #[test]
    fn a_misspelt_key_in_a_table_is_named_with_its_table() {
        assert_eq!(
            error("[network]\nplugin_dir = [\"/x\"]\n"),
            "/etc/x.toml:2: network.plugin_dir: unknown key, did you mean `plugin_dirs`?"
        );
    }

    #[test]
    fn a_key_unlike_any_other_gets_no_suggestion() {
        assert_eq!(error("zzz = 1"), "/etc/x.toml:1: zzz: unknown key");
    }

    #[test]
    fn a_wrong_type_is_named_with_its_key() {
        let message = error("\n[containers]\npids_limit = \"many\"\n");
        assert!(message.starts_with("/etc/x.toml:3: containers.pids_limit: invalid type"), "{message}");
    }

    #[test]
    fn a_relative_path_is_refused() {
        assert_eq!(error("root = \"var/lib\""), "/etc/x.toml: root: `var/lib` is not an absolute path");
    }

    #[test]
    fn runtimes_have_names_and_paths() {
        let config = parse(Path::new("/x"), "[runtimes.crun]\npath = \"/usr/bin/crun\"\n").unwrap();
        assert_eq!(config.runtimes["crun"].path, Path::new("/usr/bin/crun"));
        assert_eq!(
            error("[runtimes.crun]\npath = \"crun\"\n"),
            "/etc/x.toml: runtimes.crun.path: `crun` is not an absolute path"
        );
        assert!(error("[runtimes.Crun]\npath = \"/c\"\n").starts_with("/etc/x.toml: runtimes.Crun: is no name"));
        assert!(error("[runtimes.crun]\npaht = \"/c\"\n").contains("did you mean `path`?"));
    }

    #[test]
    fn a_runtime_is_of_the_kind_that_its_program_is() {
        let text = "[runtimes.kata]\npath = \"/opt/containerd-shim-kata-v2\"\n";
        let config = parse(Path::new("/x"), &format!("{text}kind = \"shim-v2\"\nconfig_path = \"/k.toml\"\n")).unwrap();
        assert_eq!(config.runtimes["kata"].kind, RuntimeKind::ShimV2);
        for (line, why) in [
            ("", "runtimes.kata.kind: the program is a shim of containerd's; did you mean `shim-v2`?"),
            (
                "kind = \"shim-v2\"\noptions = [\"-d\"]",
                "runtimes.kata.options: a runtime of kind `shim-v2` has no arguments",
            ),
            ("config_path = \"/k\"", "runtimes.kata.config_path: only a runtime of kind `shim-v2`"),
            ("kind = \"shim-v2\"\nconfig_path = \"k\"", "runtimes.kata.config_path: `k` is not an absolute path"),
            ("kind = \"shim\"", "expected `oci` or `shim-v2`"),
            ("kid = \"shim-v2\"", "did you mean `kind`?"),
        ] {
            let error = error(&format!("{text}{line}\n"));
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn limits_and_capabilities_are_checked_before_a_container_needs_them() {
        assert!(error("[containers]\nrlimits = { nofiles = \"1\" }").contains("containers.rlimits.nofiles"));
        assert!(error("[containers]\ncapabilities = [\"NET_ADMINN\"]").contains("`NET_ADMINN` is no capability"));
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.toml");
        assert_eq!(load(&path, false).unwrap(), Config::default());
        assert!(matches!(load(&path, true), Err(ConfigError::Read { .. })));
    }
}
