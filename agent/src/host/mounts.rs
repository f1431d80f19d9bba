//! Mount points, as the kernel lists them.

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::root::{Root, RootError};

/// A node with many pods has a few thousand mounts of a few hundred bytes.
const LIMIT: u64 = 64 * 1024 * 1024;

const MOUNTS: &str = "/proc/self/mountinfo";

/// The mount points below a directory, deepest first; the directory itself is not one of them. None offline.
pub fn mounts_below(root: &Root, dir: &str) -> Result<Vec<String>, RootError> {
    if root.is_offline() {
        return Ok(Vec::new());
    }
    let bytes = root.read_bounded(MOUNTS, LIMIT)?.unwrap_or_default();
    Ok(parse(&String::from_utf8_lossy(&bytes), dir))
}

/// Unmounts them; what is busy is detached, and goes when its last user does.
pub(super) fn unmount_below(root: &Root, dir: &str) -> Result<(), RootError> {
    for path in mounts_below(root, dir)? {
        root.ledger().note(format!("unmount {path}"));
        match umount2(path.as_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // gone with the one below it
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(source) => return Err(RootError::Write { path, step: "unmount", source }),
        }
    }
    Ok(())
}

fn parse(text: &str, dir: &str) -> Vec<String> {
    let below = |path: &String| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
    let point = |line: &str| line.split_whitespace().nth(4).map(unescape);
    let mut paths: Vec<String> = text.lines().filter_map(point).filter(below).collect();
    // the list is in the order of mounting: what is on top comes last
    paths.reverse();
    paths.sort_by_key(|path| std::cmp::Reverse(path.matches('/').count()));
    paths
}

/// Blanks and backslashes are octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_counts_and_the_deepest_comes_first() {
        let text = "1 1 0:1 / / rw - ext4 /dev/vda1 rw\n\
            2 1 0:2 / /var/lib/kubelet rw - xfs /dev/vdb rw\n\
            3 2 0:3 / /var/lib/kubelet/pods/a\\040b/volumes rw shared:1 - tmpfs tmpfs rw\n\
            4 3 0:4 / /var/lib/kubelet/pods/a\\040b/volumes/c/d rw - tmpfs tmpfs rw\n\
            5 1 0:5 / /var/lib/kubelet-other/x rw - tmpfs tmpfs rw\n";
        assert_eq!(
            parse(text, "/var/lib/kubelet"),
            ["/var/lib/kubelet/pods/a b/volumes/c/d", "/var/lib/kubelet/pods/a b/volumes"]
        );
    }
}
