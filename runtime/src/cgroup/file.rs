//! Control files: errors name the file and the value.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::CgroupError;

/// A value for a control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// Name of the file.
    pub file: String,
    /// What is to be written.
    pub value: String,
    /// The kernel may lack the file (swap accounting is an option).
    pub optional: bool,
}

impl Setting {
    pub fn new(file: impl Into<String>, value: impl ToString) -> Self {
        Setting { file: file.into(), value: value.to_string(), optional: false }
    }

    pub fn optional(file: impl Into<String>, value: impl ToString) -> Self {
        Setting { optional: true, ..Setting::new(file, value) }
    }
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // never created: in a cgroup file system the kernel makes the files
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source })
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

pub(super) fn make_dir(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(CgroupError::Make { path: path.to_owned(), source }),
        Ok(()) => Ok(()),
    }
}

/// Whether the write failed because there is no such file.
fn is_missing(error: &CgroupError) -> bool {
    matches!(error, CgroupError::Write { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

pub(super) fn is_invalid(error: &CgroupError) -> bool {
    matches!(error, CgroupError::Write { source, .. } if source.kind() == io::ErrorKind::InvalidInput)
}

/// Writes one setting into the cgroup at `dir`.
pub(super) fn set(dir: &Path, setting: &Setting) -> Result<(), CgroupError> {
    match write(&dir.join(&setting.file), &setting.value) {
        Err(error) if setting.optional && is_missing(&error) => Ok(()),
        other => other,
    }
}

/// Settings that were replaced, to be put back when a later one is refused.
#[derive(Default)]
pub(super) struct Replaced(Vec<(PathBuf, String)>);

impl Replaced {
    /// Writes a setting and remembers what was there.
    pub fn set(&mut self, dir: &Path, setting: &Setting) -> Result<(), CgroupError> {
        let path = dir.join(&setting.file);
        let before = fs::read_to_string(&path).ok();
        set(dir, setting)?;
        self.0.extend(before.map(|value| (path, value.trim().to_owned())));
        Ok(())
    }

    /// Puts everything back, last first.
    pub fn restore(self) {
        for (path, value) in self.0.into_iter().rev() {
            if let Err(error) = write(&path, &value) {
                log::warn!("cannot put a limit back: {}", crate::telemetry::chain(&error));
            }
        }
    }
}
