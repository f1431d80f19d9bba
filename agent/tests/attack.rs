//! Trees that were made to lead the agent out of them: whatever it does there, nothing outside changes.
// tests may stop at the first surprise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Everything that is written offline.
const CONFIG: &str = r#"
[packages]
source = "preinstalled"
[hostname]
name = "victim"
[kernel.sysctl]
"kernel.panic" = 10
[[file]]
path = "/etc/motd"
content = "owned\n"
[[registries]]
prefix = "docker.io"
mirrors = ["mirror:5000"]
[limits]
nofile = 1024
"#;

/// What the agent writes in a tree, directories and files.
const TARGETS: [&str; 14] = [
    "etc/motd",
    "etc/hostname",
    "etc/fstab",
    "etc/sysctl.d",
    "etc/sysctl.d/99-zz-nodeagent.conf",
    "etc/modules-load.d",
    "etc/modules-load.d/90-nodeagent.conf",
    "etc/systemd/system",
    "etc/selinux/config",
    "etc/containers",
    "etc/containers/registries.conf.d/50-nodeagent.conf",
    "var/lib/nodeagent",
    "var/lib/nodeagent/txn",
    "var/lib/nodeagent/state.json",
];

fn tree() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("etc/os-release", "ID=centos\nVERSION_ID=9\n"),
        ("etc/nodeagent/config.toml", CONFIG),
        ("etc/fstab", "/dev/vda2 none swap defaults 0 0\n"),
        ("etc/selinux/config", "SELINUX=enforcing\n"),
        (
            "usr/lib/systemd/system/nodeagent-runtime.service",
            "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=x.target\n",
        ),
    ] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// What is outside: files with their content, mode and inode, and an empty directory.
fn outside() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("dir")).unwrap();
    fs::write(dir.path().join("file"), "SELINUX=enforcing\n/dev/vda2 none swap defaults 0 0\n").unwrap();
    dir
}

type Seen = BTreeMap<PathBuf, (Vec<u8>, u32, u64)>;

fn look(dir: &Path, seen: &mut Seen) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        seen.insert(path.clone(), (content, metadata.mode(), metadata.ino()));
        if metadata.is_dir() {
            look(&path, seen);
        }
    }
}

fn agent(root: &Path, args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_agent")).arg("--root").arg(root).args(args).output().unwrap();
    // a refusal is fine, a crash is not
    assert!(output.status.code().is_some(), "{args:?}: {output:?}");
}

#[test]
fn no_link_in_a_tree_leads_a_write_out_of_it() {
    for target in TARGETS {
        for (to, relative) in [("dir", false), ("file", true), ("new", false)] {
            let (tree, outside) = (tree(), outside());
            let link = tree.path().join(target);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            drop(fs::remove_file(&link));
            drop(fs::remove_dir_all(&link));
            let absolute = outside.path().join(to);
            // more steps up than there are: the root of the machine that the agent runs on
            let up = PathBuf::from("../".repeat(40)).join(absolute.strip_prefix("/").unwrap());
            symlink(if relative { &up } else { &absolute }, &link).unwrap();
            let mut before = Seen::new();
            look(outside.path(), &mut before);
            for args in [["apply", "--yes"].as_slice(), &["bake"], &["rollback", "--yes"]] {
                agent(tree.path(), args);
            }
            let mut after = Seen::new();
            look(outside.path(), &mut after);
            assert_eq!(after, before, "{target} -> {to}, relative {relative}");
        }
    }
}

#[test]
fn no_program_of_a_tree_is_run() {
    use std::os::unix::fs::PermissionsExt;
    let (tree, outside) = (tree(), outside());
    let mark = outside.path().join("ran");
    for program in
        ["usr/bin/rpm", "usr/bin/dnf", "usr/sbin/modprobe", "usr/bin/udevadm", "usr/bin/systemctl", "usr/bin/kubelet"]
    {
        let path = tree.path().join(program);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\ntouch {}\n", mark.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let config = tree.path().join("etc/nodeagent/config.toml");
    fs::write(&config, CONFIG.replace("preinstalled", "dnf") + "[kubernetes]\nversion = \"1.31\"\n").unwrap();
    for args in [["plan"].as_slice(), &["apply", "--yes"], &["bake"], &["rollback", "--yes"], &["explain"]] {
        agent(tree.path(), args);
    }
    assert!(!mark.exists());
}
