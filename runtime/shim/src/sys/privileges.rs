//! Capabilities and seccomp.

use nix::errno::Errno;

use super::check;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: 64 bits in two halves.
const VERSION: u32 = 0x2008_0522;

/// Number of the highest capability that this kernel knows.
pub fn last_capability() -> u32 {
    // 4.18, the oldest kernel served, has 37; probing ends at the first that is refused
    let mut last = 37;
    // SAFETY: PR_CAPBSET_READ takes a number.
    while last < 63 && unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(last + 1), 0, 0, 0) } >= 0 {
        last += 1;
    }
    last
}

/// Removes from the bounding set what `keep` lacks.
pub fn drop_bounding(keep: u64) -> nix::Result<()> {
    for capability in 0..=last_capability() {
        if keep & (1 << capability) == 0 {
            // SAFETY: PR_CAPBSET_DROP takes a number.
            let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
            check(dropped.into())?;
        }
    }
    Ok(())
}

/// Sets effective, permitted and inheritable capabilities.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> nix::Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    let half = |shift: u32| Data {
        effective: (effective >> shift & 0xffff_ffff) as u32,
        permitted: (permitted >> shift & 0xffff_ffff) as u32,
        inheritable: (inheritable >> shift & 0xffff_ffff) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: with this version the kernel reads the header and two data structures, as passed.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) }).map(drop)
}

/// Makes the ambient set what is given, as far as it is permitted and inheritable.
pub fn raise_ambient(ambient: u64) -> nix::Result<()> {
    let call = |operation: libc::c_int, capability: u32| {
        let (operation, capability) = (operation as libc::c_ulong, libc::c_ulong::from(capability));
        // SAFETY: numbers only.
        check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, capability, 0, 0) }.into())
    };
    call(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for capability in (0..64).filter(|capability| ambient & (1 << capability) != 0) {
        call(libc::PR_CAP_AMBIENT_RAISE, capability)?;
    }
    Ok(())
}

/// Loads a compiled filter, given as the bytes of `struct sock_filter[]`.
pub fn load_seccomp(program: &[u8]) -> nix::Result<()> {
    let filters: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    let len = u16::try_from(filters.len()).map_err(|_| Errno::EINVAL)?;
    if len == 0 || !program.len().is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let program = libc::sock_fprog { len, filter: filters.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions at `filter`, which live until after the call, and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) }).map(drop)
}

/// Capabilities that this process may use.
pub fn permitted_capabilities() -> nix::Result<u64> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut data = [Data { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: with this version the kernel reads the header and writes two data structures, as passed.
    check(unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}
