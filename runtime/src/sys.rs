//! System calls that no safe wrapper in use offers.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest value that is of interest.
const MAX_VALUE: usize = 256;

/// Longest SELinux label: a list of categories may be long.
const MAX_LABEL: usize = 4096;

/// Value of an extended attribute of the file itself, not of what a link at its place points to. None when there is
/// none, or when it cannot be read.
pub fn xattr(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut value = vec![0u8; MAX_VALUE];
    // SAFETY: both names end with NUL, and the kernel writes at most `value.len()` bytes into `value`.
    let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

const SELINUX: &CStr = c"security.selinux";

/// Path of what a descriptor stands for, also of one that is for its place only: attributes cannot be had of it directly.
fn by_descriptor(file: BorrowedFd<'_>) -> io::Result<CString> {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(io::Error::other)
}

/// SELinux label of an open file, without its closing zero.
pub fn selinux_label(file: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let path = by_descriptor(file)?;
    let mut value = vec![0u8; MAX_LABEL];
    // SAFETY: both names end with NUL, and the kernel writes at most `value.len()` bytes into `value`.
    let length = unsafe { libc::getxattr(path.as_ptr(), SELINUX.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    if value.last() == Some(&0) {
        value.pop();
    }
    Ok(value)
}

/// Labels an open file.
pub fn set_selinux_label(file: BorrowedFd<'_>, label: &str) -> io::Result<()> {
    let path = by_descriptor(file)?;
    let label = CString::new(label).map_err(io::Error::other)?;
    let value = label.as_bytes_with_nul();
    // SAFETY: both names end with NUL, and the kernel reads `value.len()` bytes of `value`.
    let done = unsafe { libc::setxattr(path.as_ptr(), SELINUX.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Most that this process may give of a resource, by its number.
pub fn hard_limit(resource: u32) -> Option<u64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let old: *mut libc::rlimit64 = &raw mut limit;
    // SAFETY: of ourselves (0); nothing is set (null), and the kernel writes one structure.
    let done = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), old) };
    (done == 0).then_some(limit.rlim_max)
}

/// Whether this process may raise limits beyond its own (CAP_SYS_RESOURCE).
pub fn may_raise_limits() -> bool {
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & SYS_RESOURCE != 0)
}

/// Keeps descriptors that this process was started with, beyond the standard streams, from the programs that it executes.
pub fn close_inherited_on_exec() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: numbers only; with this flag (5.11) nothing is closed now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return;
    }
    let numbers = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for number in numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<libc::c_int>().ok()) {
        if number >= 3 {
            // SAFETY: sets a flag of a descriptor; a number that is not open gives EBADF.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inherited_is_not_passed_on() {
        use std::os::fd::{FromRawFd, OwnedFd};
        // SAFETY: a new descriptor, owned by nobody else, as one that came from a parent: it is not closed by exec.
        let inherited = unsafe { OwnedFd::from_raw_fd(libc::dup(2)) };
        // SAFETY: reads the flags of an open descriptor.
        let flags = || unsafe { libc::fcntl(inherited.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags(), 0);
        close_inherited_on_exec();
        assert_eq!(flags(), libc::FD_CLOEXEC);
    }

    #[test]
    fn a_missing_attribute_is_none() {
        assert_eq!(xattr(Path::new("/proc/self"), c"trusted.overlay.opaque"), None);
        assert_eq!(xattr(Path::new("/does/not/exist"), c"user.x"), None);
    }
}
