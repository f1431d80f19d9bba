//! Archives from people who mean harm, served by a real registry like any other.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may stop at the first surprise, too")]

mod images_support;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use images_support::{Layer, Registry, TestImage, is_root, leftovers, open};
use nodeagent_runtime::image::{ErrorCode, ImageError, Images, ImagesConfig};
use tar::EntryType;

/// Writes headers without the checks that the tar crate makes for honest people.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(mut self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Archive {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_mtime(1);
        header.set_uid(0);
        header.set_gid(0);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Archive {
        self.add(EntryType::Regular, path, "", content)
    }

    fn symlink(self, path: &str, target: &str) -> Archive {
        self.add(EntryType::Symlink, path, target, b"")
    }

    fn done(mut self) -> Layer {
        self.0.resize(self.0.len() + 1024, 0);
        Layer::gzip(self.0)
    }
}

/// Pulls one layer into a store of its own and gives its directory.
async fn unpack(registry: &Registry, layers: Vec<Layer>) -> (tempfile::TempDir, Result<PathBuf, ImageError>) {
    let root = tempfile::tempdir().unwrap();
    let result = unpack_at(registry, root.path(), layers).await;
    (root, result)
}

async fn unpack_at(registry: &Registry, root: &Path, layers: Vec<Layer>) -> Result<PathBuf, ImageError> {
    registry.push("app", "v1", &TestImage::new(layers)).await;
    let images = open(root).await;
    let image = images.pull(&format!("{}/app:v1", registry.host), None).await?;
    Ok(images.prepare(&image.id, "c").await?.lower[0].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_the_layer_is_refused_and_nothing_stays() {
    let registry = Registry::start().await;
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, b"untouched").unwrap();
    let victim_text = victim.to_str().unwrap();
    let climb = format!("{}{victim_text}", "../".repeat(20));
    let archives = [
        Archive::default().file("../escaped", b"x"),
        Archive::default().file("a/../../escaped", b"x"),
        Archive::default().file(&climb[..climb.len().min(99)], b"x"),
        Archive::default().add(EntryType::Link, "hard", &climb, b""),
        Archive::default().add(EntryType::Link, "hard", victim_text, b""),
        Archive::default().add(EntryType::Link, "hard", "/", b""),
        Archive::default().file("file", b"x").file("file/below", b"y"),
        Archive::default().symlink("a", "b").symlink("b", "a").file("a/x", b"y"),
        Archive::default().file("dir/.wh...", b""),
        Archive::default().file("dir/.wh.", b""),
        Archive::default().file("", b"the layer itself"),
        Archive::default().symlink("empty", ""),
    ];
    for (number, archive) in archives.into_iter().enumerate() {
        let (root, result) = unpack(&registry, vec![archive.done()]).await;
        let error = result.expect_err(&format!("archive {number}"));
        assert_eq!(error.code(), ErrorCode::InvalidImage, "archive {number}: {error}");
        assert_eq!(leftovers(root.path()), Vec::<String>::new(), "archive {number}");
        assert_eq!(std::fs::read(&victim).unwrap(), b"untouched");
        assert_eq!(victim.metadata().unwrap().nlink(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn symlinks_to_the_outside_lead_to_the_inside() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().to_str().unwrap();
    let archive = Archive::default()
        .symlink("absolute", place)
        .file("absolute/file", b"1")
        .symlink("climbing", &format!("../../../../../../../../..{place}"))
        .file("climbing/file2", b"2")
        .symlink("target", &format!("{place}/through"))
        .file("target", b"3")
        .file("/absolute-path", b"4")
        .add(EntryType::Directory, "absolute", "", b"")
        .file("absolute/file3", b"5");
    let (_root, layer) = unpack(&registry, vec![archive.done()]).await;
    let layer = layer.unwrap();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    let inside = layer.join(place.trim_start_matches('/'));
    assert_eq!(std::fs::read(inside.join("file")).unwrap(), b"1");
    assert_eq!(std::fs::read(inside.join("file2")).unwrap(), b"2");
    assert_eq!(std::fs::read(layer.join("target")).unwrap(), b"3");
    assert_eq!(std::fs::read(layer.join("absolute-path")).unwrap(), b"4");
    // a directory takes the symlink's place, it is not followed
    assert!(layer.join("absolute").symlink_metadata().unwrap().is_dir());
    assert_eq!(std::fs::read(layer.join("absolute/file3")).unwrap(), b"5");
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_become_what_overlayfs_understands() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let lower = Archive::default()
        .file("gone", b"1")
        .file("kept/hidden", b"2")
        .file("again/old", b"3")
        .file("sub/gone", b"4")
        .file("twice/gone", b"7")
        .file("implied/old", b"8")
        .done();
    let upper = Archive::default()
        .file(".wh.gone", b"")
        .file("kept/.wh..wh..opq", b"")
        .file("kept/new", b"5")
        .file(".wh.again", b"")
        .add(EntryType::Directory, "again", "", b"")
        .file("again/new", b"6")
        .file("sub/.wh.gone", b"")
        .file(".wh..wh.plnk", b"")
        .file(".wh.twice", b"")
        .file("twice/.wh.gone", b"")
        .file(".wh.implied", b"")
        .file("implied/new", b"9")
        .done();
    let (root, layer) = unpack(&registry, vec![lower, upper]).await;
    let layer = layer.unwrap();
    for whiteout in ["gone", "sub/gone", "twice"] {
        let metadata = layer.join(whiteout).symlink_metadata().unwrap();
        assert!(metadata.file_type().is_char_device() && metadata.rdev() == 0, "{whiteout}");
    }
    // the merged tree, by the kernel
    let id = image_id(root.path()).await;
    let rootfs = open(root.path()).await.prepare(&id, "c").await.unwrap();
    let merged = tempfile::tempdir().unwrap();
    let lowers: Vec<String> = rootfs.lower.iter().map(|path| path.display().to_string()).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), rootfs.upper.display(), rootfs.work.display());
    let status = std::process::Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(merged.path())
        .status();
    assert!(status.unwrap().success());
    let seen = |path: &str| merged.path().join(path).symlink_metadata().is_ok();
    let found = ["gone", "kept/hidden", "kept/new", "again/old", "again/new", "sub/gone", "sub"].map(seen);
    let rewritten = ["twice", "implied/old", "implied/new"].map(seen);
    let unmounted = std::process::Command::new("umount").arg(merged.path()).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(found, [false, false, true, false, true, false, true]);
    assert_eq!(rewritten, [false, false, true]);
    assert_eq!(open(root.path()).await.usage().inodes_used, inodes(root.path()));
}

/// What the store has on disk: files and directories of all layers, their records, and documents.
fn inodes(root: &Path) -> u64 {
    let list = |path: PathBuf| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let count = |layer: PathBuf| {
        let all = std::process::Command::new("find").arg(layer.join("fs")).args(["-printf", "%i\n"]).output().unwrap();
        let all = String::from_utf8(all.stdout).unwrap();
        // names of one file are one, and what holds the layer is not counted
        all.lines().collect::<std::collections::HashSet<_>>().len() as u64
    };
    list(root.join("snapshots")).map(count).sum::<u64>() + list(root.join("content/sha256")).count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_begins_anew_hides_all_layers_below() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let lower = Archive::default().file("old", b"1").done();
    let fresh = Archive::default().file(".wh..wh..opq", b"").file("new", b"2").done();
    let upper = Archive::default().file("newer", b"3").done();
    let (root, _) = unpack(&registry, vec![lower, fresh, upper]).await;
    let id = image_id(root.path()).await;
    let rootfs = open(root.path()).await.prepare(&id, "c").await.unwrap();
    let has = |name: &str| rootfs.lower.iter().any(|layer| layer.join(name).exists());
    assert_eq!(["old", "new", "newer"].map(has), [false, true, true]);
}

async fn image_id(root: &Path) -> String {
    open(root).await.list()[0].id.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_that_would_steer_overlayfs_are_not_taken_over() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.trusted.overlay.redirect", &b"/etc"[..]),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.fine", b"yes"),
        ])
        .unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    builder.append_data(&mut header, "dir/", &[][..]).unwrap();
    let (_root, layer) = unpack(&registry, vec![Layer::gzip(builder.into_inner().unwrap())]).await;
    // tar shows all attributes, and is there on every machine
    let output = std::process::Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-cf", "-", "-C"])
        .arg(layer.unwrap())
        .arg("dir")
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&output.stdout);
    assert!(listed.contains("user.fine=yes") && !listed.contains("trusted."), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_links_reach_this_layer_and_those_below_and_nothing_else() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let lower = Archive::default().file("below", b"from below").symlink("a-link", "below").done();
    let upper = Archive::default()
        .file("own", b"own")
        .add(EntryType::Link, "second", "own", b"")
        .add(EntryType::Link, "copy", "/below", b"")
        .add(EntryType::Link, "dir/copy-of-link", "a-link", b"")
        .add(EntryType::Link, "early", "late", b"")
        .file("late", b"late")
        .done();
    let (_root, layer) = unpack(&registry, vec![lower, upper]).await;
    let layer = layer.unwrap();
    assert_eq!(layer.join("own").metadata().unwrap().ino(), layer.join("second").metadata().unwrap().ino());
    assert_eq!(std::fs::read(layer.join("copy")).unwrap(), b"from below");
    assert_eq!(std::fs::read_link(layer.join("dir/copy-of-link")).unwrap(), Path::new("below"));
    assert_eq!(std::fs::read(layer.join("early")).unwrap(), b"late");
    let (_root, missing) =
        unpack(&registry, vec![Archive::default().add(EntryType::Link, "x", "nothing", b"").done()]).await;
    assert_eq!(missing.unwrap_err().code(), ErrorCode::InvalidImage);
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_defused_by_limits() {
    let registry = Registry::start().await;
    let devices =
        (0..200).fold(Archive::default(), |archive, n| archive.add(EntryType::Char, &format!("d{n}"), "", b""));
    let zeros = Archive::default().file("zeros", &vec![0; 8 << 20]);
    for (archive, what) in [(devices, "100 entries"), (zeros, "4194304 uncompressed bytes")] {
        registry.push("app", "bomb", &TestImage::new(vec![archive.done()])).await;
        let root = tempfile::tempdir().unwrap();
        let mut config = ImagesConfig::isolated(root.path());
        (config.limits.layer_entries, config.limits.layer_bytes) = (100, 4 << 20);
        let images = Images::open(config).await.unwrap();
        let error = images.pull(&format!("{}/app:bomb", registry.host), None).await.unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error} {cause}").contains(what), "{error}: {cause}");
        assert_eq!(error.code(), ErrorCode::InvalidImage);
        assert_eq!(leftovers(root.path()), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_zeros_costs_no_disk() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let (root, layer) = unpack(&registry, vec![Archive::default().file("zeros", &vec![0; 8 << 20]).done()]).await;
    let metadata = layer.unwrap().join("zeros").metadata().unwrap();
    assert_eq!(metadata.len(), 8 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "{}", metadata.blocks());
    assert!(open(root.path()).await.usage().used_bytes < 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_archives_are_told_from_wrong_digests() {
    let registry = Registry::start().await;
    let mut truncated = Archive::default().file("file", &[1; 5000]).0;
    truncated.truncate(2000);
    let mut cut = Layer::gzip(Archive::default().file("file", &[7; 50_000]).0);
    cut.blob.truncate(cut.blob.len() - 20);
    let noise = Layer { blob: b"\x1f\x8b\x08\x00garbage".to_vec(), ..cut.clone() };
    for layer in [Layer::gzip(truncated), cut, noise] {
        let (root, result) = unpack(&registry, vec![layer]).await;
        let error = result.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidImage, "{error}");
        assert_eq!(leftovers(root.path()), Vec::<String>::new());
    }
    let mut other = Archive::default().file("file", b"x").done();
    other.tar.push(0);
    let (_root, result) = unpack(&registry, vec![other]).await;
    assert_eq!(result.unwrap_err().code(), ErrorCode::DigestMismatch);
}
