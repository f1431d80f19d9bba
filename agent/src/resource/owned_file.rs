//! A file whose whole text is ours: what many kinds are made of.

use crate::host::root::{Kind, Root, RootError};
use crate::plan::{Action, Diff};

/// First line of every file that we write where the format has `#` comments.
pub const HEADER: &str = "# Written by nodeagent; changes made here are undone. Settings are in /etc/nodeagent.\n";

/// What is wanted at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedFile {
    /// Absolute path on the host.
    pub path: String,
    /// The whole text.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Never print the text.
    pub secret: bool,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNow {
    /// Missing directories above it, topmost first.
    pub missing_directories: Vec<String>,
    /// None when there is nothing.
    pub found: Option<Found>,
}

/// The object at a path, links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A regular file; no text when it is not UTF-8.
    File {
        /// Its text.
        text: Option<String>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A directory, device or socket.
    Other(&'static str),
}

/// What has to be done to a file, and what people are shown of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStep {
    /// In this order.
    pub actions: Vec<Action>,
    /// Old and new.
    pub diffs: Vec<Diff>,
    /// There was nothing before.
    pub missing: bool,
}

impl FileNow {
    /// Looks at the path.
    pub fn observe(root: &Root, path: &str) -> Result<FileNow, RootError> {
        Ok(FileNow { missing_directories: missing_directories(root, path)?, found: find(root, path)? })
    }

    /// The text, where there is one.
    pub fn text(&self) -> Option<&str> {
        match &self.found {
            Some(Found::File { text, .. }) => text.as_deref(),
            _ => None,
        }
    }

    /// What is in the way of a regular file.
    pub fn obstacle(&self) -> Option<&'static str> {
        match &self.found {
            Some(Found::Other(what)) => Some(what),
            _ => None,
        }
    }
}

impl OwnedFile {
    /// A file for everybody to read, owned by root.
    pub fn public(path: &str, content: String) -> OwnedFile {
        OwnedFile { path: path.to_owned(), content, mode: 0o644, uid: 0, gid: 0, secret: false }
    }

    /// What has to be done; none when the file is right.
    pub fn step(&self, now: &FileNow) -> Option<FileStep> {
        let same_text = now.text() == Some(self.content.as_str());
        self.step_unless(now, same_text)
    }

    /// As [`OwnedFile::step`], for formats in which different texts can mean the same.
    pub fn step_unless(&self, now: &FileNow, same_meaning: bool) -> Option<FileStep> {
        let mut diffs = Vec::new();
        let old = match &now.found {
            Some(Found::File { text, mode, uid, gid }) => {
                let owner = |mode: u32, uid: u32, gid: u32| format!("{mode:04o} {uid}:{gid}");
                if (*mode, *uid, *gid) != (self.mode, self.uid, self.gid) {
                    diffs.push(Diff::Value {
                        what: format!("mode and owner of {}", self.path),
                        old: Some(owner(*mode, *uid, *gid)),
                        new: Some(owner(self.mode, self.uid, self.gid)),
                    });
                }
                text.clone()
            }
            _ => None,
        };
        // a change of the mode alone keeps a text that means the same
        let content = match (&old, same_meaning) {
            (Some(text), true) => text.clone(),
            _ => self.content.clone(),
        };
        if !same_meaning {
            let (old, new) = (old, Some(self.content.clone()));
            diffs.push(Diff::File { path: self.path.clone(), old, new, secret: self.secret });
        }
        if diffs.is_empty() {
            return None;
        }
        let mut actions: Vec<Action> = now
            .missing_directories
            .iter()
            .map(|path| Action::MakeDirectory { path: path.clone(), mode: 0o755, uid: 0, gid: 0 })
            .collect();
        actions.push(Action::WriteFile {
            path: self.path.clone(),
            content,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            secret: self.secret,
        });
        Some(FileStep { actions, diffs, missing: now.found.is_none() })
    }
}

fn find(root: &Root, path: &str) -> Result<Option<Found>, RootError> {
    let Some(metadata) = root.metadata(path)? else { return Ok(None) };
    if metadata.kind != Kind::File {
        return Ok(Some(Found::Other(metadata.kind.in_words())));
    }
    let bytes = root.read(path)?.unwrap_or_default();
    Ok(Some(Found::File {
        text: String::from_utf8(bytes).ok(),
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
    }))
}

/// Directories above the path that do not exist. They are made by actions of their own, so that undo removes them again.
pub(super) fn missing_directories(root: &Root, path: &str) -> Result<Vec<String>, RootError> {
    let mut missing = Vec::new();
    let mut at = path;
    while let Some((parent, _)) = at.rsplit_once('/') {
        if parent.is_empty() || root.exists(parent)? {
            break;
        }
        missing.push(parent.to_owned());
        at = parent;
    }
    missing.reverse();
    Ok(missing)
}
