//! Where a host's config lies, lowest layer first.

use std::path::{Path, PathBuf};

use super::Source;
use crate::host::{Root, RootError};
use crate::telemetry::chain;

/// The image's own, this boot's, the administrator's. Within a directory the order of names counts.
const LAYERS: [&str; 5] = [
    "/usr/lib/nodeagent/config.toml",
    "/usr/lib/nodeagent/config.d",
    "/run/nodeagent/config.d",
    "/etc/nodeagent/config.toml",
    "/etc/nodeagent/config.d",
];

/// No hand writes a config file of this size.
const FILE_LIMIT: u64 = 1024 * 1024;

/// Nor this many of them.
const FILES_LIMIT: usize = 256;

/// The config files of a host. A file that cannot be read is among them, with the reason.
pub fn of_host(root: &Root) -> Vec<Source> {
    let mut sources = Vec::new();
    for layer in LAYERS {
        if layer.ends_with(".toml") {
            sources.extend(read(root, layer));
        } else {
            sources.extend(directory(root, layer));
        }
    }
    sources
}

/// One file, or a directory that is laid out as /etc/nodeagent is. `given` is as the person wrote it.
pub fn given(root: &Root, given: &Path) -> Vec<Source> {
    let failed = |problem: String| vec![Source { file: given.display().to_string(), text: Err(problem) }];
    let absolute: PathBuf = match given.canonicalize() {
        Ok(path) => path,
        Err(error) => return failed(format!("cannot be read: {error}")),
    };
    let Some(path) = absolute.to_str() else { return failed("its path is not UTF-8".to_owned()) };
    if !absolute.is_dir() {
        return read(root, path).into_iter().collect();
    }
    let mut sources: Vec<Source> = read(root, &format!("{path}/config.toml")).into_iter().collect();
    sources.extend(directory(root, &format!("{path}/config.d")));
    if sources.is_empty() {
        return failed("has neither config.toml nor config.d/*.toml".to_owned());
    }
    sources
}

fn directory(root: &Root, dir: &str) -> Vec<Source> {
    let names = match root.list(dir) {
        Ok(names) => names.unwrap_or_default(),
        Err(error) => return vec![Source { file: dir.to_owned(), text: Err(unreadable(&error)) }],
    };
    let names: Vec<_> = names.iter().filter(|name| name.ends_with(".toml") && !name.starts_with('.')).collect();
    if names.len() > FILES_LIMIT {
        return vec![Source { file: dir.to_owned(), text: Err(format!("has more than {FILES_LIMIT} files")) }];
    }
    names.into_iter().filter_map(|name| read(root, &format!("{dir}/{name}"))).collect()
}

fn read(root: &Root, path: &str) -> Option<Source> {
    let text = match root.read_bounded(path, FILE_LIMIT) {
        Ok(None) => return None,
        Ok(Some(bytes)) => String::from_utf8(bytes)
            .map_err(|error| format!("not UTF-8 at byte {}: a config file is text", error.utf8_error().valid_up_to())),
        Err(error) => Err(unreadable(&error)),
    };
    Some(Source { file: path.to_owned(), text })
}

fn unreadable(error: &RootError) -> String {
    format!("cannot be read: {}", chain(error))
}
