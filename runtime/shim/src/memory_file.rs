//! The shim runs from a sealed file in memory: a container that gets hold of `/proc/<pid>/exe` of a process that is
//! about to become its program cannot write to what other pods' shims run from (CVE-2019-5736).

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::execveat;

/// What this program runs from, for executing it again.
pub fn own() -> io::Result<File> {
    File::open("/proc/self/exe")
}

/// Executes the program again from memory unless it runs from there. The daemon starts it so, from one file for all
/// shims; this is for everybody else. Returns when there is nothing to do, or with an error.
pub fn ensure() -> io::Result<()> {
    let mut program = own()?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    let sealed = fcntl(&program, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    if sealed.is_ok_and(|sealed| sealed.contains(seals)) {
        return Ok(());
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create(c"nodeagent-shim", flags)?);
    io::copy(&mut program, &mut copy)?;
    copy.set_permissions(Permissions::from_mode(0o500))?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    let zero = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let args =
        std::env::args_os().map(|arg| CString::new(arg.as_bytes()).map_err(zero)).collect::<Result<Vec<_>, _>>()?;
    execute(copy, &args).map_err(io::Error::from)
}

/// Executes an open program with an empty environment.
pub fn execute<Fd: AsFd>(program: Fd, args: &[CString]) -> Result<(), Errno> {
    match execveat(program, c"", args, &[] as &[CString], AtFlags::AT_EMPTY_PATH) {
        Ok(never) => match never {},
        Err(error) => Err(error),
    }
}
