//! What a container of the tests is made of.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nodeagent_shim::protocol::{Device, Mount};

/// A root file system with busybox in it.
pub fn busybox(root: &Path) {
    for dir in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "var/log"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("package busybox-static");
    for name in [
        "sh", "ls", "cat", "echo", "sleep", "id", "touch", "mkdir", "grep", "head", "tail", "dd", "mount", "hostname",
        "ip", "ps", "kill", "true", "false", "readlink", "stat", "wc", "tr", "mknod", "ln", "chmod", "test", "env",
        "pwd", "rm", "seq", "tty", "setsid", "printf", "sort", "umask", "unshare", "awk", "cut", "yes",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
}

pub fn file_system(fstype: &str, target: &str, data: &str) -> Mount {
    Mount {
        fstype: fstype.into(),
        source: fstype.into(),
        target: target.into(),
        flags: 2 | 8,
        data: data.into(),
        ..Mount::default()
    }
}

pub fn bind(source: &Path, target: &str) -> Mount {
    Mount { source: source.to_str().unwrap().into(), target: target.into(), recursive: true, ..Mount::default() }
}

pub fn default_mounts() -> Vec<Mount> {
    vec![
        file_system("proc", "/proc", ""),
        Mount { flags: 2, ..file_system("tmpfs", "/dev", "mode=755,size=65536k") },
        Mount { flags: 2, ..file_system("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620,gid=5") },
        file_system("mqueue", "/dev/mqueue", ""),
        Mount { readonly: true, ..file_system("sysfs", "/sys", "") },
    ]
}

pub fn default_devices() -> Vec<Device> {
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
        .iter()
        .map(|(name, major, minor)| Device {
            path: format!("/dev/{name}"),
            kind: "c".into(),
            major: *major,
            minor: *minor,
            mode: 0o666,
            ..Device::default()
        })
        .collect()
}
