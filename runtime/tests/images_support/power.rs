//! A disk whose power can be cut: an ext4 in a file, which forgets what was not synced.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::trees::run;

/// `FS_IOC_SHUTDOWN` with `FS_SHUTDOWN_FLAGS_NOLOGFLUSH`: from now on nothing reaches the disk, neither data nor journal,
/// and every call fails. What a mount finds afterwards is what a power cut leaves.
mod sys {
    #![allow(unsafe_code)]

    nix::ioctl_read!(shutdown, b'X', 125, u32);

    pub fn cut(file: &std::fs::File) -> nix::Result<()> {
        let mut no_log_flush = 2;
        // SAFETY: the kernel reads one u32, which lives until the call returns.
        unsafe { shutdown(super::AsRawFd::as_raw_fd(file), &raw mut no_log_flush) }.map(drop)
    }
}

pub struct Disk {
    image: PathBuf,
    pub mountpoint: PathBuf,
    mounted: bool,
}

impl Disk {
    pub fn make(dir: &Path) -> Disk {
        let (image, mountpoint) = (dir.join("disk.img"), dir.join("disk"));
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        std::fs::create_dir(&mountpoint).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        let mut disk = Disk { image, mountpoint, mounted: false };
        disk.mount();
        disk
    }

    pub fn mount(&mut self) {
        run("mount", &["-o", "loop", self.image.to_str().unwrap(), self.mountpoint.to_str().unwrap()]);
        self.mounted = true;
    }

    /// The power goes. Whoever used the disk has to be dead before it can be mounted again.
    pub fn cut_power(&self) {
        sys::cut(&std::fs::File::open(&self.mountpoint).unwrap()).unwrap();
    }

    pub fn unmount(&mut self) {
        run("umount", &[self.mountpoint.to_str().unwrap()]);
        self.mounted = false;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.mountpoint).status();
        }
    }
}
