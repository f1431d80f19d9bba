//! The same image, unpacked by others: skopeo fetches it and umoci unpacks it, both from Debian.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may stop at the first surprise, too")]

mod images_support;

use std::path::Path;

use images_support::trees::{NET_RAW, attributed, lower, run, upper};
use images_support::{Layer, Registry, TestImage, files, is_root, open};

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
        Layer::gzip(attributed()),
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
    let has = |wanted: &[u8]| ours.windows(wanted.len()).any(|part| part == wanted);
    assert!(has(&[b"SCHILY.xattr.security.capability=", NET_RAW].concat()) && has(b"SCHILY.xattr.user.note=of a file"));
    if ours != theirs {
        let (ours, theirs) = (listing(&ours), listing(&theirs));
        let only = |one: &str, other: &str| {
            one.lines().filter(|line| !other.lines().any(|theirs| theirs == *line)).collect::<Vec<_>>().join("\n")
        };
        panic!("only ours:\n{}\nonly theirs:\n{}", only(&ours, &theirs), only(&theirs, &ours));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zstd_layer_is_what_skopeo_makes_of_it() {
    if !is_root() {
        return;
    }
    if !Path::new("/usr/bin/skopeo").exists() {
        eprintln!("skipped: needs /usr/bin/skopeo");
        return;
    }
    let registry = Registry::start().await;
    let tar = lower();
    let blob = zstd::encode_all(&tar[..], 3).unwrap();
    let layer = Layer { tar, blob, media_type: "application/vnd.oci.image.layer.v1.tar+zstd".into() };
    let mut image = TestImage::new(vec![layer]);
    image.oci = true;
    registry.push("app", "v1", &image).await;

    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("theirs");
    let store = format!("[overlay@{}+{}]", theirs.display(), dir.path().join("run").display());
    let (source, target) = (format!("docker://{}/app:v1", registry.host), format!("containers-storage:{store}app:v1"));
    run("skopeo", &["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &source, &target]);
    let layers = std::fs::read_dir(theirs.join("overlay")).unwrap().map(|entry| entry.unwrap().path().join("diff"));
    let layers: Vec<_> = layers.filter(|path| path.is_dir()).collect();
    assert_eq!(layers.len(), 1, "{layers:?}");

    let images = open(&dir.path().join("store")).await;
    let pulled = images.pull(&format!("{}/app:v1", registry.host), None).await.unwrap();
    let rootfs = images.prepare(&pulled.id, "c").await.unwrap();
    // containers-storage does not take the archive's word for the root of a layer
    let (own, other) = (rootfs.lower[0].to_str().unwrap(), layers[0].to_str().unwrap());
    run("chmod", &["--reference", own, other]);
    run("touch", &["--reference", own, other]);
    let (ours, theirs) = (as_archive(&rootfs.lower[0]), as_archive(&layers[0]));
    if ours != theirs {
        panic!("ours:\n{}\ntheirs:\n{}", listing(&ours), listing(&theirs));
    }
}
