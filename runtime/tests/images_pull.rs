//! Pulling from a real registry: what arrives, what is remembered, what is shared.

mod images_support;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use images_support::{Layer, Registry, TestImage, files, index, is_root, leftovers, open, small};
use nodeagent_runtime::content::Digest;
use nodeagent_runtime::image::{ErrorCode, ImageError};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_arrives_with_its_config_names_size_and_files() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let mut pushed = TestImage::new(vec![
        Layer::gzip(files(&[("bin/tool", b"#!/bin/sh\n"), ("etc/a", b"lower")])),
        Layer::plain(files(&[("etc/a", b"upper")])),
    ]);
    for oci in [false, true] {
        pushed.oci = oci;
        let digest = registry.push("team/app", "v1", &pushed).await;
        let images = open(root.path()).await;
        let reference = format!("{}/team/app:v1", registry.host);
        let image = images.pull(&reference, None).await.unwrap();
        assert_eq!(image.id, pushed.id());
        assert_eq!(image.tags, [reference.as_str()]);
        assert!(image.digests.contains(&format!("{}/team/app@{digest}", registry.host)));
        assert_eq!(image.size, pushed.size());
        assert_eq!(image.config.user, "1000:50000");
        assert_eq!(image.config.entrypoint, ["/bin/sh"]);
        assert_eq!(image.config.exposed, ["80/tcp"]);
        assert_eq!(image.config.stop_signal.as_deref(), Some("SIGINT"));
        let rootfs = images.prepare(&image.id, "c1").await.unwrap();
        assert_eq!(std::fs::read(rootfs.lower[0].join("etc/a")).unwrap(), b"upper");
        assert_eq!(std::fs::read(rootfs.lower[1].join("etc/a")).unwrap(), b"lower");
        assert_eq!(std::fs::metadata(rootfs.lower[1].join("bin/tool")).unwrap().mtime(), 1_000_000_000);
        assert_eq!(std::fs::metadata(&rootfs.upper).unwrap().permissions().mode() & 0o7777, 0o755);
        images.release("c1").await.unwrap();
        images_support::wait_until_empty(&root.path().join("tmp")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_survives_a_restart_and_its_removal_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    registry.push("app", "v1", &small("one")).await;
    let reference = format!("{}/app:v1", registry.host);
    let pulled = open(root.path()).await.pull(&reference, None).await.unwrap();
    let images = open(root.path()).await;
    assert_eq!(images.find(&reference), Some(pulled.clone()));
    assert_eq!(images.list(), std::slice::from_ref(&pulled));
    let usage = images.usage();
    assert!(usage.used_bytes > 0 && usage.inodes_used > 3, "{usage:?}");
    images.remove(&pulled.id).await.unwrap();
    images.remove(&pulled.id).await.unwrap();
    assert_eq!(images.list(), []);
    assert_eq!(images.usage().used_bytes, 0);
    assert_eq!(images.usage().inodes_used, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_digest_has_no_tag_and_a_moved_tag_moves() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let digest = registry.push("app", "v1", &small("one")).await;
    let images = open(root.path()).await;
    let by_digest = format!("{}/app@{digest}", registry.host);
    let image = images.pull(&by_digest, None).await.unwrap();
    assert_eq!(image.tags, Vec::<String>::new());
    assert_eq!(image.digests, [by_digest.as_str()]);
    let tag = format!("{}/app:v1", registry.host);
    let tagged = images.pull(&tag, None).await.unwrap();
    assert_eq!((&tagged.id, &tagged.tags), (&image.id, &vec![tag.clone()]));
    registry.push("app", "v1", &small("two")).await;
    let moved = images.pull(&tag, None).await.unwrap();
    assert_ne!(moved.id, image.id);
    assert_eq!(images.find(&tag).unwrap().id, moved.id);
    let old = images.find(&by_digest).unwrap();
    assert_eq!((&old.id, old.tags.len()), (&image.id, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_the_build_for_this_host_and_its_own_digest() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let own = small("own");
    let mut other = small("other");
    other.config["architecture"] = "s390x".into();
    registry.push("app", "own", &own).await;
    registry.push("app", "other", &other).await;
    let here = format!("linux/{}", images_support::architecture());
    let list = index(&[("linux/s390x", &other.manifest()), (&here, &own.manifest())]);
    let digest = registry.push_manifest("app", "multi", &list).await;
    let images = open(root.path()).await;
    let image = images.pull(&format!("{}/app:multi", registry.host), None).await.unwrap();
    assert_eq!(image.id, own.id());
    assert_eq!(image.digests, [format!("{}/app@{digest}", registry.host)]);
    let mut outer = index(&[(&here, &list)]);
    outer["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    let outer = registry.push_manifest("app", "nested", &outer).await;
    let nested = images.pull(&format!("{}/app:nested", registry.host), None).await.unwrap();
    assert_eq!(nested.id, own.id());
    assert!(nested.digests.contains(&format!("{}/app@{outer}", registry.host)), "{:?}", nested.digests);
    let foreign = index(&[("linux/s390x", &other.manifest())]);
    registry.push_manifest("app", "foreign", &foreign).await;
    for tag in ["foreign", "other"] {
        let error = images.pull(&format!("{}/app:{tag}", registry.host), None).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NoMatchingPlatform);
        assert!(error.to_string().ends_with("only for linux/s390x"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_shared_between_images_and_outlive_the_first_of_them() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let base = Layer::gzip(files(&[("base", b"base")]));
    let one = TestImage::new(vec![base.clone(), Layer::gzip(files(&[("one", b"1")]))]);
    let two = TestImage::new(vec![base, Layer::gzip(files(&[("two", b"2")]))]);
    registry.push("app", "one", &one).await;
    registry.push("app", "two", &two).await;
    let images = open(root.path()).await;
    let pulls = ["one", "two"].map(|tag| {
        let (images, reference) = (images.clone(), format!("{}/app:{tag}", registry.host));
        async move { images.pull(&reference, None).await }
    });
    let [one, two] = futures_util::future::join_all(pulls).await.try_into().unwrap();
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.chain_ids[0], two.chain_ids[0]);
    assert_eq!(std::fs::read_dir(root.path().join("snapshots")).unwrap().count(), 3);
    images.remove(&one.id).await.unwrap();
    let rootfs = images.prepare(&two.id, "c").await.unwrap();
    assert_eq!(std::fs::read(rootfs.lower[1].join("base")).unwrap(), b"base");
    assert_eq!(std::fs::read_dir(root.path().join("snapshots")).unwrap().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_a_layer_takes_for_granted_keeps_the_mode_it_has_below() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    header.set_uid(7);
    header.set_mtime(5);
    header.set_size(0);
    builder.append_data(&mut header, "tmp/", &[][..]).unwrap();
    let image = TestImage::new(vec![
        Layer::gzip(builder.into_inner().unwrap()),
        Layer::gzip(files(&[("tmp/file", b"x"), ("new/file", b"y")])),
    ]);
    registry.push("app", "v1", &image).await;
    let images = open(root.path()).await;
    let image = images.pull(&format!("{}/app:v1", registry.host), None).await.unwrap();
    let top = images.prepare(&image.id, "c").await.unwrap().lower[0].clone();
    let tmp = std::fs::metadata(top.join("tmp")).unwrap();
    assert_eq!((tmp.mode() & 0o7777, tmp.uid(), tmp.mtime()), (0o1777, 7, 5));
    assert_eq!(std::fs::metadata(top.join("new")).unwrap().mode() & 0o7777, 0o755);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_does_not_have_is_not_found() {
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let images = open(root.path()).await;
    let reference = format!("{}/app:none", registry.host);
    let error = images.pull(&reference, None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    let text = error.to_string();
    assert!(text.contains(&reference) && text.contains("404"), "{text}");
    assert!(matches!(images.pull("UPPER", None).await, Err(ImageError::Reference(_))));
    assert_eq!(leftovers(root.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_is_named() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let host = format!("127.0.0.1:{}", images_support::free_port());
    let error = images.pull(&format!("{host}/app:v1"), None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RegistryUnavailable);
    assert!(error.to_string().contains(&host), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_layers_and_an_image_without_any_both_work() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let layers = (0..100).map(|n| Layer::gzip(files(&[("file", format!("{n}").as_bytes())]))).collect();
    registry.push("app", "many", &TestImage::new(layers)).await;
    registry.push("app", "none", &TestImage::new(Vec::new())).await;
    let images = open(root.path()).await;
    let many = images.pull(&format!("{}/app:many", registry.host), None).await.unwrap();
    let rootfs = images.prepare(&many.id, "c1").await.unwrap();
    assert_eq!(rootfs.lower.len(), 100);
    assert_eq!(std::fs::read(rootfs.lower[0].join("file")).unwrap(), b"99");
    let none = images.pull(&format!("{}/app:none", registry.host), None).await.unwrap();
    assert_eq!(images.prepare(&none.id, "c2").await.unwrap().lower.len(), 1);
    assert_eq!(none.id.parse::<Digest>().unwrap().to_string(), none.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_may_be_compressed_in_any_way_and_lie_about_it() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let layer = |name: &str| files(&[(name, name.as_bytes())]);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let whole = layer("zstd-frames");
    let (first, second) = whole.split_at(700);
    let frames = Layer { blob: [zstd(first), zstd(second)].concat(), ..Layer::gzip(layer("zstd-frames")) };
    // a table of contents in a skippable frame, as zstd:chunked has it
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"toc!", &zstd(&layer("zstd-skip"))].concat();
    let whole = layer("gzip-members");
    let (first, second) = whole.split_at(700);
    let members = [images_support::gzip(first), images_support::gzip(second)].concat();
    let image = TestImage::new(vec![
        Layer {
            blob: zstd(&layer("zstd")),
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd".into(),
            ..Layer::gzip(layer("zstd"))
        },
        frames,
        Layer { blob: skippable, ..Layer::gzip(layer("zstd-skip")) },
        Layer { blob: members, ..Layer::gzip(layer("gzip-members")) },
        Layer { media_type: Layer::gzip(Vec::new()).media_type, ..Layer::plain(layer("plain")) },
    ]);
    registry.push("app", "v1", &image).await;
    let images = open(root.path()).await;
    let image = images.pull(&format!("{}/app:v1", registry.host), None).await.unwrap();
    let rootfs = images.prepare(&image.id, "c").await.unwrap();
    for (layer, name) in rootfs.lower.iter().rev().zip(["zstd", "zstd-frames", "zstd-skip", "gzip-members", "plain"]) {
        assert_eq!(std::fs::read(layer.join(name)).unwrap(), name.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_an_unknown_kind_is_named() {
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let mut layer = Layer::plain(files(&[("a", b"a")]));
    layer.media_type = "application/vnd.oci.image.layer.v1.tar+encrypted".into();
    registry.push("app", "v1", &TestImage { oci: true, ..TestImage::new(vec![layer]) }).await;
    let error = open(root.path()).await.pull(&format!("{}/app:v1", registry.host), None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidImage);
    assert!(error.to_string().contains("+encrypted"), "{error}");
}

/// What tools for artifacts push: blobs with titles, and two bytes for a config.
async fn push_artifact(registry: &Registry, tag: &str, files: &[(Option<&str>, &[u8])]) -> Digest {
    let config = registry.push_blob("models", b"{}").await;
    let mut layers = Vec::new();
    for (title, bytes) in files {
        let digest = registry.push_blob("models", bytes).await;
        let annotations = title.map_or(json!({}), |title| json!({ "org.opencontainers.image.title": title }));
        layers.push(json!({ "mediaType": "application/octet-stream", "size": bytes.len(), "digest": digest,
            "annotations": annotations }));
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.example.model",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": config }, "layers": layers,
    });
    registry.push_manifest("models", tag, &manifest).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_arrives_as_files_under_their_titles() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    // one that would be unpacked if it were a layer
    let archive = images_support::gzip(&files(&[("inside", b"x")]));
    let (long, weights) = ("n".repeat(150), images_support::noise(3 << 20));
    let untitled = Digest::of(b"no title");
    let parts: [(Option<&str>, &[u8]); 5] = [
        (Some("model/weights.bin"), &weights),
        (Some("data.tar.gz"), &archive),
        (Some(&long), b"long"),
        (Some("empty"), b""),
        (None, b"no title"),
    ];
    let digest = push_artifact(&registry, "v1", &parts).await;
    let images = open(root.path()).await;
    let reference = format!("{}/models:v1", registry.host);
    let artifact = images.pull(&reference, None).await.unwrap();
    assert_eq!(artifact.artifact.as_deref(), Some("application/vnd.example.model"));
    assert_eq!((artifact.id.clone(), artifact.tags.clone()), (digest.to_string(), vec![reference.clone()]));
    assert_eq!(images.find(&format!("{}/models@{digest}", registry.host)).unwrap().id, artifact.id);
    let lower = images.prepare(&artifact.id, "volume").await.unwrap().lower;
    let read = |name: &str| lower.iter().find_map(|layer| std::fs::read(layer.join(name)).ok());
    for (title, bytes) in parts {
        let name = title.map_or(format!("sha256-{}", untitled.hex()), str::to_owned);
        assert!(read(&name).as_deref() == Some(bytes), "{name}");
    }
    assert_eq!(read("inside"), None);
    // another one with the same bytes is another one, and shares them
    let before = images.usage().used_bytes;
    push_artifact(&registry, "v2", &parts[..2]).await;
    let other = images.pull(&format!("{}/models:v2", registry.host), None).await.unwrap();
    assert!(other.id != artifact.id && images.usage().used_bytes < before + (1 << 20));
    images.release("volume").await.unwrap();
    let images = {
        drop(images);
        open(root.path()).await
    };
    assert_eq!(images.find(&reference).unwrap().artifact.as_deref(), Some("application/vnd.example.model"));
    let out = root.path().join("out.tar");
    let error =
        images.export(std::slice::from_ref(&artifact.id), &out, nodeagent_runtime::image::Format::Archive).await;
    assert!(nodeagent_runtime::telemetry::chain(&error.unwrap_err()).contains("artifact"));
    for image in [artifact, other] {
        images.remove(&image.id).await.unwrap();
    }
    images_support::wait_until_empty(&root.path().join("tmp")).await;
    assert_eq!((images.usage().used_bytes, images.usage().inodes_used), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_title_that_leads_out_of_the_artifact_is_refused() {
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let images = open(root.path()).await;
    for title in ["../../etc/cron.d/x", "/etc/x", ".wh.x"] {
        push_artifact(&registry, "v1", &[(Some(title), b"x")]).await;
        let error = images.pull(&format!("{}/models:v1", registry.host), None).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidImage, "{title}");
    }
    assert_eq!(images_support::leftovers(root.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_in_the_middle_of_a_pull_leaves_a_whole_image_or_none() {
    if !is_root() {
        return;
    }
    let (registry, root) = (Registry::start().await, tempfile::tempdir().unwrap());
    let image = TestImage::new((0..3).map(|n| Layer::gzip(files(&[("f", format!("{n}").as_bytes())]))).collect());
    registry.push("app", "v1", &image).await;
    let images = open(&root.path().join("store")).await;
    let reference = format!("{}/app:v1", registry.host);
    let mut kept = 0;
    for round in 0..60u32 {
        let removal = async {
            // at another moment each time
            tokio::time::sleep(std::time::Duration::from_micros(u64::from(round % 30) * 300)).await;
            images.remove(&image.id()).await
        };
        let (pulled, removed) = tokio::join!(images.pull(&reference, None), removal);
        removed.unwrap();
        pulled.unwrap();
        if images.find(&reference).is_some() {
            kept += 1;
            // reads every document and every file of every layer
            let out = root.path().join(format!("{round}.tar"));
            images
                .export(std::slice::from_ref(&reference), &out, nodeagent_runtime::image::Format::Archive)
                .await
                .unwrap();
            std::fs::remove_file(out).unwrap();
        } else {
            let layers = std::fs::read_dir(root.path().join("store/snapshots")).unwrap().count();
            assert_eq!(layers, 0, "a pull that was overtaken leaves nothing");
        }
    }
    println!("the image outlived {kept} of 60 removals");
    images.remove(&image.id()).await.unwrap();
    images_support::wait_until_empty(&root.path().join("store/tmp")).await;
    assert_eq!(leftovers(&root.path().join("store")), Vec::<String>::new());
}
