//! Kernel settings of the network namespace that the thread is in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A setting could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("set {path} to {value}")]
pub struct SysctlError {
    path: PathBuf,
    value: &'static str,
    #[source]
    source: io::Error,
}

/// Sets `/proc/sys/net/<name>` unless it has the value: writing some of them makes the kernel walk all links.
pub(super) fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    let path = Path::new("/proc/sys/net").join(name);
    let done = match fs::read_to_string(&path) {
        Ok(text) if text.trim() == value => Ok(()),
        Ok(_) => fs::write(&path, value),
        Err(error) => Err(error),
    };
    done.map_err(|source| SysctlError { path, value, source })
}
