//! Mount calls that came after 4.18: `open_tree` and `move_mount` (5.2), `mount_setattr` (5.12).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::check;

const EMPTY: &CStr = c"";
const SELINUX: &CStr = c"security.selinux";

/// `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE` and the like.
    pub propagation: u64,
    /// User namespace of an idmapped mount.
    pub userns: u64,
}

/// Changes the mount that `mount` stands on, and with `recursive` those below it.
pub fn set_mount_attributes<Fd: AsFd>(mount: Fd, recursive: bool, attributes: MountAttributes) -> nix::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (fd, size) = (mount.as_fd().as_raw_fd(), std::mem::size_of::<MountAttributes>());
    // SAFETY: the kernel reads an empty string and one structure of the given size.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd, EMPTY.as_ptr(), flags, &attributes, size) }).map(drop)
}

/// Gives a file its SELinux label. `path` may be that of a descriptor, which need not be open for anything.
pub fn set_selinux_label(path: &str, label: &str) -> nix::Result<()> {
    let (path, label) = (CString::new(path), CString::new(label));
    let (path, label) = (path.map_err(|_| Errno::EINVAL)?, label.map_err(|_| Errno::EINVAL)?);
    let bytes = label.as_bytes_with_nul();
    // SAFETY: the path and the name are NUL-terminated, the label is valid for its length, and all outlive the call.
    let done = unsafe { libc::setxattr(path.as_ptr(), SELINUX.as_ptr(), bytes.as_ptr().cast(), bytes.len(), 0) };
    Errno::result(done).map(drop)
}

/// Copies the mount (and with `recursive` those below) at `source`, attached nowhere yet.
pub fn clone_tree<Fd: AsFd>(source: Fd, recursive: bool) -> nix::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | libc::AT_EMPTY_PATH.unsigned_abs()
        | if recursive { libc::AT_RECURSIVE.unsigned_abs() } else { 0 };
    // SAFETY: the kernel reads an empty string.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, source.as_fd().as_raw_fd(), EMPTY.as_ptr(), flags) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made it, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a tree of [`clone_tree`].
pub fn attach_tree<A: AsFd, B: AsFd>(tree: A, target: B) -> nix::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (tree.as_fd().as_raw_fd(), target.as_fd().as_raw_fd());
    // SAFETY: the kernel reads two empty strings.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from, EMPTY.as_ptr(), to, EMPTY.as_ptr(), flags) }).map(drop)
}
