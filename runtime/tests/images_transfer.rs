//! Images that travel as files: out of the store, through skopeo, and in again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may stop at the first surprise, too")]

mod images_support;

use std::path::Path;

use images_support::trees::{lower, run, upper};
use images_support::{Layer, Registry, TestImage, gzip, is_root, leftovers, open};
use nodeagent_runtime::image::{ErrorCode, Format, Images};

async fn pulled(dir: &Path) -> (Registry, Images, TestImage, String) {
    let registry = Registry::start().await;
    let image = TestImage::new(vec![Layer::gzip(lower()), Layer::gzip(upper())]);
    registry.push("app", "v1", &image).await;
    let images = open(&dir.join("first")).await;
    let name = format!("{}/app:v1", registry.host);
    images.pull(&name, None).await.unwrap();
    (registry, images, image, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_image_comes_back_with_its_id_names_and_layers() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_registry, images, image, name) = pulled(dir.path()).await;
    let (archive, layout) = (dir.path().join("image.tar"), dir.path().join("layout"));
    images.export(std::slice::from_ref(&name), &archive, Format::Archive).await.unwrap();
    images.export(&[image.id()], &layout, Format::Directory).await.unwrap();
    let compressed = dir.path().join("image.tar.gz");
    std::fs::write(&compressed, gzip(&std::fs::read(&archive).unwrap())).unwrap();
    for (number, path) in [&archive, &layout, &compressed].into_iter().enumerate() {
        let other = open(&dir.path().join(format!("other-{number}"))).await;
        let came = other.import(path, None).await.unwrap();
        assert_eq!((came.len(), came[0].id.clone()), (1, image.id()), "{}", path.display());
        assert_eq!(came[0].tags, std::slice::from_ref(&name));
        let first = images.find(&name).unwrap();
        assert_eq!(came[0].chain_ids, first.chain_ids);
        // again changes nothing
        other.import(path, None).await.unwrap();
        assert_eq!(other.list().len(), 1);
    }
    let taken = images.export(std::slice::from_ref(&name), &archive, Format::Archive).await.unwrap_err();
    assert!(taken.to_string().contains("image.tar"), "{taken}");
    let unknown = images.export(&["nothing".into()], &dir.path().join("n"), Format::Archive).await.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::NotFound);
    assert!(!dir.path().join("n").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_images_with_several_names_travel_together() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (registry, images, first, name) = pulled(dir.path()).await;
    registry.push("app", "also", &first).await;
    let second = TestImage::new(vec![Layer::gzip(lower())]);
    registry.push("other", "v2", &second).await;
    let reference = |name: &str| format!("{}/{name}", registry.host);
    for name in ["app:also", "other:v2"] {
        images.pull(&reference(name), None).await.unwrap();
    }
    for (format, path) in [(Format::Archive, "both.tar"), (Format::Directory, "both")] {
        let path = dir.path().join(path);
        images.export(&[first.id(), reference("other:v2")], &path, format).await.unwrap();
        let other = open(&path.with_extension("store")).await;
        let came = other.import(&path, None).await.unwrap();
        assert_eq!((came.len(), other.list().len()), (2, 2));
        let by_name = |name: &str| other.find(&reference(name)).map(|image| image.id.clone());
        assert_eq!(by_name("other:v2"), Some(second.id()));
        assert_eq!((by_name("app:also"), other.find(&name).map(|image| image.id.clone())), {
            let id = Some(first.id());
            (id.clone(), id)
        });
        assert_eq!(other.list().iter().map(|image| image.tags.len()).sum::<usize>(), 3);
        let refused = other.import(&path, Some("one.example/name:1")).await.unwrap_err();
        assert!(nodeagent_runtime::telemetry::chain(&refused).contains("2 images"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_what_we_write_and_we_read_what_it_writes() {
    if !is_root() {
        return;
    }
    if !Path::new("/usr/bin/skopeo").exists() {
        eprintln!("skipped: needs /usr/bin/skopeo");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (registry, images, image, name) = pulled(dir.path()).await;
    let place = |name: &str| dir.path().join(name).display().to_string();
    let copy = |from: &str, to: &str| {
        run(
            "skopeo",
            &["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", from, to],
        );
    };
    images.export(std::slice::from_ref(&name), &dir.path().join("ours.tar"), Format::Archive).await.unwrap();
    // every layer is read and compared with its digest on the way
    copy(&format!("oci-archive:{}", place("ours.tar")), &format!("docker://{}/again:oci", registry.host));
    copy(&format!("docker-archive:{}", place("ours.tar")), &format!("docker://{}/again:docker", registry.host));
    for tag in ["oci", "docker"] {
        let back = images.pull(&format!("{}/again:{tag}", registry.host), None).await.unwrap();
        assert_eq!(back.chain_ids, images.find(&name).unwrap().chain_ids, "{tag}");
    }

    copy(&format!("docker://{name}"), &format!("docker-archive:{}:kept.example/app:v1", place("docker.tar")));
    copy(&format!("docker://{name}"), &format!("oci-archive:{}:v1", place("oci.tar")));
    copy(&format!("docker://{name}"), &format!("oci:{}:v1", place("oci")));
    let other = open(&dir.path().join("other")).await;
    let came = other.import(&dir.path().join("docker.tar"), None).await.unwrap();
    assert_eq!((came[0].id.clone(), came[0].tags.clone()), (image.id(), vec!["kept.example/app:v1".to_owned()]));
    for file in ["oci.tar", "oci"] {
        let nameless = other.import(&dir.path().join(file), None).await.unwrap_err();
        assert!(nodeagent_runtime::telemetry::chain(&nameless).contains("--name"), "{nameless}");
        let came = other.import(&dir.path().join(file), Some("given.example/app:2")).await.unwrap();
        assert!(came[0].tags.contains(&"given.example/app:2".to_owned()), "{:?}", came[0].tags);
        assert_eq!(came[0].chain_ids, images.find(&name).unwrap().chain_ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_registry, images, _, name) = pulled(dir.path()).await;
    let archive = dir.path().join("image.tar");
    images.export(&[name], &archive, Format::Archive).await.unwrap();
    let good = std::fs::read(&archive).unwrap();
    let at = good.windows(10).position(|window| window == b"#!/bin/sh\n").unwrap();
    let mut bad = good.clone();
    bad[at] = b'?';
    let root = dir.path().join("other");
    let other = open(&root).await;
    for (name, bytes) in
        [("flipped", &bad[..]), ("short", &good[..good.len() / 2]), ("text", b"no archive"), ("empty", b"")]
    {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = other.import(&path, None).await.unwrap_err();
        assert!(nodeagent_runtime::telemetry::chain(&error).contains(name), "{error}");
        assert_eq!(leftovers(&root), Vec::<String>::new(), "{name}");
    }
    let missing = other.import(&dir.path().join("nothing"), None).await.unwrap_err();
    assert_eq!(missing.code(), ErrorCode::Disk, "{missing}");
}
