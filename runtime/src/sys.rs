//! System calls that no safe wrapper in use offers.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_attribute_is_none() {
        assert_eq!(xattr(Path::new("/proc/self"), c"trusted.overlay.opaque"), None);
        assert_eq!(xattr(Path::new("/does/not/exist"), c"user.x"), None);
    }
}
