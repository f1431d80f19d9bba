//! The same image, unpacked by others: skopeo fetches it and umoci unpacks it, both from Debian.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may stop at the first surprise, too")]

mod images_support;

use std::path::Path;
use std::process::Command;

use images_support::{Layer, Registry, TestImage, files, is_root, open};

/// Runs a tool and stops the test when it fails.
fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A tree as bytes: names, kinds, owners, modes, times, links, attributes and contents. Holes are not compared: we
/// keep them, umoci fills them.
fn as_archive(tree: &Path) -> Vec<u8> {
    let tree = tree.to_str().unwrap();
    let own = ["--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability", "--numeric-owner"];
    let order = ["--sort=name", "--format=posix", "--pax-option=delete=atime,delete=ctime"];
    run("tar", &[&own[..], &order[..], &["-cf", "-", "-C", tree, "."]].concat())
}

fn listing(archive: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.tar"), archive).unwrap();
    let path = dir.path().join("a.tar");
    let arguments = ["--xattrs", "--full-time", "--numeric-owner", "-tvvf", path.to_str().unwrap()];
    String::from_utf8_lossy(&run("tar", &arguments)).into_owned()
}

/// A tree with a bit of everything, as tar writes it.
fn lower() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        set -e; cd "$1"; umask 022
        mkdir -p bin etc/deep/er tmp var/empty usr/share/doc
        printf '#!/bin/sh\n' > bin/sh; chmod 4755 bin/sh; ln bin/sh bin/hard; ln -s sh bin/soft; ln -s /nowhere bin/dangling
        chmod 1777 tmp; chmod 2750 var/empty; chown 1000:2000 var/empty
        head -c 3000000 /dev/zero > etc/zeros; printf end >> etc/zeros
        truncate -s 5000000 etc/sparse; printf middle | dd of=etc/sparse bs=1 seek=2500000 conv=notrunc status=none
        mkfifo var/fifo; mknod var/null c 1 3; mknod var/loop b 7 200; chmod 0666 var/null
        n=$(printf 'long-%.0s' $(seq 1 40)); mkdir -p usr/$n/$n; printf x > usr/$n/$n/$n; ln -s $n/$n usr/link-$n
        printf cap > bin/cap; chmod 755 bin/cap
        printf 'h\303\251llo\n' > "etc/h$(printf '\303\251')llo w
orld"
        chown 4000000000:4000000000 etc/deep/er; chmod 000 etc/deep/er
        printf gone > etc/gone; mkdir -p etc/opaque; printf hidden > etc/opaque/hidden; printf x > usr/share/doc/a
        touch -h -d '1969-12-31 23:59:58.25 UTC' bin/soft; touch -d '2001-02-03 04:05:06.789 UTC' etc/gone bin/sh
        find . -depth -type d -exec touch -d '2011-01-01 00:00:00.5 UTC' {} +
    "#;
    run("sh", &["-c", script, "sh", dir.path().to_str().unwrap()]);
    let tree = dir.path().to_str().unwrap();
    run("tar", &["--format=posix", "--xattrs", "-S", "--sort=name", "--numeric-owner", "-cf", "-", "-C", tree, "."])
}

/// Changes on top of it.
fn upper() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        set -e; cd "$1"; umask 022
        mkdir -p etc/opaque bin usr/share/doc
        : > etc/.wh.gone; : > etc/opaque/.wh..wh..opq; printf new > etc/opaque/new; : > usr/share/.wh.doc
        rmdir usr/share/doc; printf replaced > bin/soft; printf 'now a file' > usr/new
        find . -depth -exec touch -h -d '2020-01-01 00:00:00 UTC' {} +
    "#;
    run("sh", &["-c", script, "sh", dir.path().to_str().unwrap()]);
    run("tar", &["--format=gnu", "--sort=name", "--numeric-owner", "-cf", "-", "-C", dir.path().to_str().unwrap(), "."])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_merged_tree_is_what_skopeo_and_umoci_make_of_the_same_image() {
    if !is_root() {
        return;
    }
    for tool in ["/usr/bin/skopeo", "/usr/bin/umoci"] {
        if !Path::new(tool).exists() {
            eprintln!("skipped: needs {tool}");
            return;
        }
    }
    let registry = Registry::start().await;
    // the last layer only takes directories for granted that are below
    let image = TestImage::new(vec![
        Layer::gzip(lower()),
        Layer::gzip(upper()),
        Layer::gzip(files(&[("tmp/file", b"1"), ("var/empty/file", b"2")])),
    ]);
    registry.push("app", "v1", &image).await;

    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout").display().to_string();
    let theirs = dir.path().join("theirs");
    let source = format!("docker://{}/app:v1", registry.host);
    run("skopeo", &["copy", "--quiet", "--src-tls-verify=false", &source, &format!("oci:{layout}:v1")]);
    run("umoci", &["raw", "unpack", "--image", &format!("{layout}:v1"), theirs.to_str().unwrap()]);

    let images = open(&dir.path().join("store")).await;
    let pulled = images.pull(&format!("{}/app:v1", registry.host), None).await.unwrap();
    let rootfs = images.prepare(&pulled.id, "c").await.unwrap();
    let ours = dir.path().join("ours");
    std::fs::create_dir(&ours).unwrap();
    let lowers: Vec<String> = rootfs.lower.iter().map(|path| path.display().to_string()).collect();
    // read-only, with the layers alone: the writable layer's own root is not part of the image
    run(
        "mount",
        &["-t", "overlay", "overlay", "-o", &format!("lowerdir={}", lowers.join(":")), ours.to_str().unwrap()],
    );
    let archives = std::panic::catch_unwind(|| (as_archive(&ours), as_archive(&theirs)));
    run("umount", &[ours.to_str().unwrap()]);
    let (ours, theirs) = archives.unwrap();
    if ours != theirs {
        let (ours, theirs) = (listing(&ours), listing(&theirs));
        let only = |one: &str, other: &str| {
            one.lines().filter(|line| !other.lines().any(|theirs| theirs == *line)).collect::<Vec<_>>().join("\n")
        };
        panic!("only ours:\n{}\nonly theirs:\n{}", only(&ours, &theirs), only(&theirs, &ours));
    }
}
