//! System calls that neither std nor nix offers in the form needed here. All unsafe code of the shim is in this folder.

#![allow(unsafe_code)]

mod fds;
mod mounts;
mod network;
mod privileges;
mod process;

pub use fds::{
    cloexec_from, close_all_except, inherited, keep_across_exec, make_controlling_terminal, pty_number, received,
    unlock_pty,
};
pub use mounts::{MountAttributes, attach_tree, clone_tree, set_mount_attributes, set_selinux_label};
pub use network::loopback_up;
pub use privileges::{
    drop_bounding, last_capability, load_seccomp, permitted_capabilities, raise_ambient, set_capabilities,
};
pub use process::{
    Ended, clone_process, default_signals, end_now, new_session_keyring, pidfd_open, pidfd_signal, rlimit, send_signal,
    set_rlimit, signal_at_end_of_parent, wait_any, wait_signal,
};

/// Turns the return value of a raw call into a result.
fn check(result: libc::c_long) -> nix::Result<libc::c_long> {
    if result < 0 { Err(nix::errno::Errno::last()) } else { Ok(result) }
}
