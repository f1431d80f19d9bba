//! Labels on files: of a pod's own, and of volumes that are to be relabelled.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::sys;

/// Directories of the host that must keep their labels, whoever mounts them.
const UNTOUCHABLE: [&str; 16] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root", "/run", "/sys", "/tmp",
    "/usr", "/var",
];

/// Levels of directories that are gone into; each keeps a descriptor open.
const MAX_DEPTH: usize = 256;

/// Something could not be labelled.
#[derive(Debug, thiserror::Error)]
pub enum RelabelError {
    /// It is the host's.
    #[error("{} must keep its SELinux label: it is the host's", .0.display())]
    Untouchable(PathBuf),
    /// The tree is deeper than any.
    #[error("{} has more than {MAX_DEPTH} levels of directories", .0.display())]
    TooDeep(PathBuf),
    /// A file refused.
    #[error("label {} as {label}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What with.
        label: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Labels one file.
pub fn relabel(path: &Path, label: &str) -> Result<(), RelabelError> {
    let failed = |source| RelabelError::File { path: path.to_owned(), label: label.to_owned(), source };
    let file = open(None, path).map_err(failed)?;
    set(&file, label).map_err(failed)
}

/// Labels everything below a path, unless the path itself has the label: then that was done before.
pub fn relabel_tree(path: &Path, label: &str) -> Result<(), RelabelError> {
    if UNTOUCHABLE.iter().any(|host| Path::new(host) == path) {
        return Err(RelabelError::Untouchable(path.to_owned()));
    }
    let failed = |source| RelabelError::File { path: path.to_owned(), label: label.to_owned(), source };
    let top = open(None, path).map_err(failed)?;
    if sys::selinux_label(top.as_fd()).is_ok_and(|present| present == label.as_bytes()) {
        return Ok(());
    }
    // from below: a walk that is cut off is done again from its beginning
    below(&top, path, label, 0)?;
    set(&top, label).map_err(failed)
}

/// Labels each tree in a directory, and the directory itself, whose label alone says nothing about them: it may be somebody
/// else's who labels no more than that.
pub fn relabel_each(directory: &Path, label: &str) -> Result<(), RelabelError> {
    let failed = |source| RelabelError::File { path: directory.to_owned(), label: label.to_owned(), source };
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        match relabel_tree(&entry.map_err(failed)?.path(), label) {
            // removed meanwhile
            Err(RelabelError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    relabel(directory, label)
}

fn below(directory: &OwnedFd, path: &Path, label: &str, depth: usize) -> Result<(), RelabelError> {
    if depth > MAX_DEPTH {
        return Err(RelabelError::TooDeep(path.to_owned()));
    }
    let failed =
        |path: &Path, source: io::Error| RelabelError::File { path: path.to_owned(), label: label.to_owned(), source };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut entries = match Dir::openat(directory, c".", flags, Mode::empty()) {
        Ok(entries) => entries,
        Err(nix::errno::Errno::ENOTDIR) => return Ok(()),
        Err(errno) => return Err(failed(path, errno.into())),
    };
    for entry in entries.iter() {
        let entry = entry.map_err(|errno| failed(path, errno.into()))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let inner = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        // never through a link: who can write here must not choose what of the host is labelled
        let file = match open(Some(directory), Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&inner, error)),
        };
        below(&file, &inner, label, depth + 1)?;
        set(&file, label).map_err(|error| failed(&inner, error))?;
    }
    Ok(())
}

fn open(directory: Option<&OwnedFd>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let opened = match directory {
        Some(directory) => openat(directory, path.as_c_str(), flags, Mode::empty()),
        None => nix::fcntl::open(path.as_c_str(), flags, Mode::empty()),
    };
    opened.map_err(io::Error::from)
}

/// File systems that have no labels, or one for all, keep it.
fn set(file: &OwnedFd, label: &str) -> io::Result<()> {
    match sys::set_selinux_label(file.as_fd(), label) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn label(path: &Path) -> Vec<u8> {
        sys::selinux_label(open(None, path).unwrap().as_fd()).unwrap_or_default()
    }

    /// Hosts without SELinux keep the attribute like any other, for root; others cannot be tested on.
    fn labels_can_be_set(dir: &Path) -> bool {
        let probe = dir.join("probe");
        std::fs::write(&probe, "").unwrap();
        let can = relabel(&probe, LABEL).is_ok() && label(&probe) == LABEL.as_bytes();
        std::fs::remove_file(&probe).unwrap();
        if !can {
            eprintln!("SKIPPED: no labels can be set here");
        }
        can
    }

    #[test]
    fn a_tree_is_labelled_once_and_never_through_links() {
        let dir = tempfile::tempdir().unwrap();
        if !labels_can_be_set(dir.path()) {
            return;
        }
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        for path in [tree.join("a/b/file"), outside.join("file")] {
            std::fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        let before = label(&outside.join("file"));
        relabel_tree(&tree, LABEL).unwrap();
        for path in ["", "a", "a/b", "a/b/file", "a/link"] {
            assert_eq!(label(&tree.join(path)), LABEL.as_bytes(), "{path}");
        }
        assert_eq!(label(&outside.join("file")), before);
        // what came later is not looked at: the top says that the tree was done
        std::fs::write(tree.join("later"), "").unwrap();
        let later = label(&tree.join("later"));
        relabel_tree(&tree, LABEL).unwrap();
        assert_eq!(label(&tree.join("later")), later);
        relabel_tree(&tree, "system_u:object_r:container_file_t:s0:c3,c4").unwrap();
        assert_ne!(label(&tree.join("later")), later);
    }

    #[test]
    fn trees_in_a_directory_that_somebody_else_has_labelled_are_labelled_as_well() {
        let dir = tempfile::tempdir().unwrap();
        if !labels_can_be_set(dir.path()) {
            return;
        }
        let top = dir.path().join("top");
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        relabel(&top, LABEL).unwrap();
        relabel_each(&top, LABEL).unwrap();
        for path in ["", "a", "a/b"] {
            assert_eq!(label(&top.join(path)), LABEL.as_bytes(), "{path}");
        }
        std::fs::write(top.join("a/later"), "").unwrap();
        relabel_each(&top, LABEL).unwrap();
        assert_ne!(label(&top.join("a/later")), LABEL.as_bytes(), "a tree is walked once");
    }

    #[test]
    fn the_hosts_own_directories_keep_their_labels() {
        for path in ["/", "/etc", "/usr", "/var"] {
            assert!(matches!(relabel_tree(Path::new(path), LABEL), Err(RelabelError::Untouchable(_))), "{path}");
        }
        assert!(matches!(relabel_tree(Path::new("/nowhere/at/all"), LABEL), Err(RelabelError::File { .. })));
    }
}
