//! kill -9 at random moments of a pull: what is visible afterwards is whole, and nothing is left lying about.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, too")]

mod images_support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use images_support::proxy::{Answer, Proxy};
use images_support::throttle::Throttle;
use images_support::{Layer, Registry, TestImage, files, is_root, open};

use nodeagent_runtime::image::{Image, Images};

const ROOT: &str = "IMAGES_CRASH_ROOT";
const REFERENCE: &str = "IMAGES_CRASH_REFERENCE";
/// Names a file that is made, on another disk, as soon as the pull has succeeded.
const FINISHED: &str = "IMAGES_CRASH_FINISHED";
/// Says how often, when the usual number is not enough for somebody.
const ASKED_ROUNDS: &str = "IMAGES_CRASH_ROUNDS";
const ROUNDS: u32 = 24;
const POWER_CUTS: u32 = 12;
/// On a machine whose load changes, the measured time may be far off: then the moments move further out.
const MAX_LAPS: u32 = 4;

/// Not a test of its own: the process that gets killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the test below"]
async fn pull_until_killed() {
    let (Ok(root), Ok(reference)) = (std::env::var(ROOT), std::env::var(REFERENCE)) else { return };
    let images = open(Path::new(&root)).await;
    let image = images.pull(&reference, None).await.unwrap();
    if let Ok(told) = std::env::var(FINISHED) {
        std::fs::write(told, "").unwrap();
    }
    images.prepare(&image.id, "container").await.unwrap();
}

/// Starts that process.
fn start(root: &Path, reference: &str, finished: Option<&Path>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "pull_until_killed", "--ignored"]).env(ROOT, root).env(REFERENCE, reference);
    if let Some(finished) = finished {
        command.env(FINISHED, finished);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// How long a pull takes when nobody interferes.
fn time_of_one(root: &Path, reference: &str) -> Duration {
    let started = Instant::now();
    assert!(start(root, reference, None).wait().unwrap().success());
    let whole = started.elapsed();
    std::fs::remove_dir_all(root).unwrap();
    whole
}

/// An image that has been looked at goes, and takes everything along.
async fn remove(images: &Images, image: &Image, root: &Path) {
    for container in images.containers() {
        images.release(&container).await.unwrap();
    }
    images.remove(&image.id).await.unwrap();
    assert_eq!((images.usage().used_bytes, images.usage().inodes_used), (0, 0));
    images_support::wait_until_empty(&root.join("tmp")).await;
}

/// Layers of a few hundred files, so that there is time to be killed in.
fn image() -> TestImage {
    let layer = |number: u32| {
        let content = number.to_string().repeat(20_000);
        let names: Vec<String> = (0..200).map(|file| format!("layer-{number}/{}/file-{file}", file % 7)).collect();
        let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), content.as_bytes())).collect();
        Layer::gzip(files(&entries))
    };
    TestImage::new((0..4).map(layer).collect())
}

fn rounds(usual: u32) -> u32 {
    std::env::var(ASKED_ROUNDS).map_or(usual, |asked| asked.parse().unwrap())
}

fn assert_whole(lower: &[std::path::PathBuf]) {
    for (number, layer) in lower.iter().rev().enumerate() {
        let content = number.to_string().repeat(20_000);
        for file in 0..200 {
            let path = layer.join(format!("layer-{number}/{}/file-{file}", file % 7));
            assert!(std::fs::read_to_string(&path).unwrap() == content, "{}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_leaves_whole_images_or_none_and_no_litter() {
    if !is_root() {
        return;
    }
    let (registry, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    registry.push("app", "v1", &image()).await;
    let reference = format!("{}/app:v1", registry.host);
    let root = dir.path().join("root");
    let whole = time_of_one(&root, &reference);

    let rounds = rounds(ROUNDS);
    let (mut unfinished, mut finished) = (0, 0);
    for round in 0..rounds * MAX_LAPS {
        if round >= rounds && finished > 0 {
            break;
        }
        let mut child = start(&root, &reference, None);
        // the moments are spread over the whole pull and a little beyond
        let (lap, step) = (round / rounds, round % rounds);
        tokio::time::sleep(whole.mul_f64(1.2) * (lap + 1) * step / rounds).await;
        child.kill().unwrap();
        child.wait().unwrap();

        let images = open(&root).await;
        assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
        match images.find(&reference) {
            None => unfinished += 1,
            Some(image) => {
                finished += 1;
                assert_whole(&images.prepare(&image.id, "check").await.unwrap().lower);
                remove(&images, &image, &root).await;
            }
        }
    }
    assert!(
        unfinished > 0 && finished > 0,
        "{unfinished} unfinished and {finished} finished pulls: the moments are wrong"
    );
    let images = open(&root).await;
    let image = images.pull(&reference, None).await.unwrap();
    assert_whole(&images.prepare(&image.id, "last").await.unwrap().lower);
    remove(&images, &image, &root).await;
    assert_eq!(images_support::leftovers(&root), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_leaves_whole_images_or_none_and_keeps_what_was_finished() {
    if !is_root() {
        return;
    }
    let (registry, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    registry.push("app", "v1", &image()).await;
    let reference = format!("{}/app:v1", registry.host);
    let mut disk = images_support::power::Disk::make(dir.path());
    let (root, finished) = (disk.mountpoint.join("root"), dir.path().join("finished"));
    let whole = time_of_one(&root, &reference);

    let rounds = rounds(POWER_CUTS);
    let (mut lost, mut kept) = (0, 0);
    for round in 0..rounds * MAX_LAPS {
        if round >= rounds && kept > 0 {
            break;
        }
        let _ = std::fs::remove_dir_all(&root);
        let _ = std::fs::remove_file(&finished);
        let mut child = start(&root, &reference, Some(&finished));
        let (lap, step) = (round / rounds, round % rounds + 1);
        tokio::time::sleep(whole.mul_f64(1.3) * (lap + 1) * step / rounds).await;
        let promised = finished.exists();
        disk.cut_power();
        // the disk is gone for it already; it may have noticed
        let _ = child.kill();
        child.wait().unwrap();
        disk.unmount();
        disk.mount();

        let images = open(&root).await;
        assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
        match images.find(&reference) {
            None => {
                assert!(!promised, "round {round}: the pull had succeeded before the power went");
                lost += 1;
            }
            Some(image) => {
                kept += 1;
                assert_whole(&images.prepare(&image.id, "check").await.unwrap().lower);
            }
        }
        // what there is of it is good enough to go on from
        let image = images.pull(&reference, None).await.unwrap();
        assert_whole(&images.prepare(&image.id, "again").await.unwrap().lower);
        remove(&images, &image, &root).await;
        assert_eq!(images_support::leftovers(&root), Vec::<String>::new());
    }
    assert!(lost > 0 && kept > 0, "{lost} lost and {kept} kept images: the moments are wrong");
}

/// So much of the layer has to be kept before the daemon is killed.
const ENOUGH: u64 = 3 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_in_whose_middle_the_daemon_was_killed_is_gone_on_with() {
    if !is_root() {
        return;
    }
    let (registry, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let layer = Layer::plain(files(&[("noise", &images_support::noise(24 << 20))]));
    let (size, digest) = (layer.blob.len() as u64, nodeagent_runtime::content::Digest::of(&layer.blob));
    registry.push("app", "v1", &TestImage::new(vec![layer])).await;
    let proxy = Proxy::start(&registry.host, |_, _| Answer::Forward).await;
    let throttle = Throttle::start(&proxy.host, 64 << 10, Duration::from_millis(20)).await;
    let (root, reference) = (dir.path().join("root"), format!("{}/app:v1", throttle.host));
    let copy = root.join("partial").join(digest.hex());
    let mut lost = None;
    // twice: what goes on with a copy adds to it
    for _ in 0..2 {
        let before = std::fs::metadata(&copy).map_or(0, |copy| copy.len());
        let mut child = start(&root, &reference, None);
        while std::fs::metadata(&copy).map_or(0, |copy| copy.len()) < before + ENOUGH {
            assert!(child.try_wait().unwrap().is_none(), "the pull ended before it could be killed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let head: [u8; 8] = std::fs::read(&copy).unwrap()[..8].try_into().unwrap();
        // what came before the copy was begun
        assert_eq!(*lost.get_or_insert(u64::from_le_bytes(head)), u64::from_le_bytes(head));
    }
    let (lost, kept) = (lost.unwrap(), std::fs::metadata(&copy).unwrap().len() - 8);
    assert!(kept >= 2 * ENOUGH && lost + kept < size, "{lost} and {kept} of {size}");
    let (sent, asked) = (throttle.sent(), proxy.seen().len());
    let images = open(&root).await;
    let image = images.pull(&reference, None).await.unwrap();
    let rootfs = images.prepare(&image.id, "check").await.unwrap();
    assert!(std::fs::read(rootfs.lower[0].join("noise")).unwrap() == images_support::noise(24 << 20));
    // manifest, config and heads of answers come on top; what a connection was ahead when it was given up, too
    let fetched = throttle.sent() - sent;
    let most = size - kept + (2 << 20);
    assert!(fetched >= size - kept && fetched <= most, "{fetched} fetched, {kept} of {size} were there, {lost} before");
    let ranges: Vec<String> = proxy.seen()[asked..].iter().filter_map(|seen| seen.range.clone()).collect();
    assert!(ranges.iter().any(|range| range.starts_with(&format!("bytes={}-", lost + kept))), "{ranges:?}");
    remove(&images, &image, &root).await;
    assert_eq!(images_support::leftovers(&root), Vec::<String>::new());
}
