//! Mounts with mapped ids.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys::{MountAttributes, set_mount_attributes};
use crate::user_namespace::UserNamespace;

/// Maps the ids of a copied mount, and sets further attributes.
pub fn map_ids(tree: &OwnedFd, user: &UserNamespace, set: u64) -> nix::Result<()> {
    let userns = u64::from(user.fd.as_raw_fd().unsigned_abs());
    let set = set | libc::MOUNT_ATTR_IDMAP;
    set_mount_attributes(tree, false, MountAttributes { set, userns, ..MountAttributes::default() })
}
