//! System calls that no safe wrapper in use offers.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest value that is of interest.
const MAX_VALUE: usize = 256;

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
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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
