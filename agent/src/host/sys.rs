//! System calls that no crate in use wraps.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const SELINUX: &std::ffi::CStr = c"security.selinux";

/// Labels are short; the kernel's own limit is a page.
const LABEL_LIMIT: usize = 4096;

/// The SELinux label of an open file; none where the file system or the kernel has no labels.
pub fn selinux_label(file: impl AsFd) -> Result<Option<Vec<u8>>, Errno> {
    let mut label = vec![0u8; LABEL_LIMIT];
    // SAFETY: the name is a NUL-terminated constant, the buffer is valid for the length passed and outlives the call.
    let size =
        unsafe { libc::fgetxattr(file.as_fd().as_raw_fd(), SELINUX.as_ptr(), label.as_mut_ptr().cast(), label.len()) };
    match Errno::result(size) {
        Ok(size) => {
            label.truncate(usize::try_from(size).unwrap_or(0));
            Ok(Some(label))
        }
        Err(Errno::ENODATA | Errno::ENOTSUP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets the SELinux label of an open file.
pub fn set_selinux_label(file: impl AsFd, label: &[u8]) -> Result<(), Errno> {
    // SAFETY: the name is a NUL-terminated constant, the label is valid for its length and outlives the call.
    let done =
        unsafe { libc::fsetxattr(file.as_fd().as_raw_fd(), SELINUX.as_ptr(), label.as_ptr().cast(), label.len(), 0) };
    Errno::result(done).map(drop)
}

/// swapoff(2). Takes as long as it takes to bring the pages back.
pub fn swapoff(device: &str) -> Result<(), Errno> {
    let device = CString::new(device).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the path is NUL-terminated and outlives the call.
    Errno::result(unsafe { libc::swapoff(device.as_ptr()) }).map(drop)
}

/// swapon(2) with the kernel's own choice of priority.
pub fn swapon(device: &str) -> Result<(), Errno> {
    let device = CString::new(device).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the path is NUL-terminated and outlives the call.
    Errno::result(unsafe { libc::swapon(device.as_ptr(), 0) }).map(drop)
}

/// True when the kernel's clock is kept in step by somebody, as timedated tells it: less than 16 s of possible error.
pub fn clock_synchronized() -> bool {
    // SAFETY: timex is plain integers, for all of which zero is a value; modes = 0 only asks.
    let mut now: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is valid for writing, and outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut now) };
    state >= 0 && now.maxerror < 16_000_000
}

/// Lets the async runtime wait for a descriptor.
pub fn watched(file: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, stays the same number, and is closed by nobody else while the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?)
}
