//! Registries on bad days: what they send wrong must not become an image, and what can be waited for is.

mod images_support;

use std::time::{Duration, Instant};

use images_support::proxy::{Answer, Proxy, status};
use images_support::throttle::Throttle;
use images_support::{Layer, Registry, TestImage, files, is_root, leftovers, noise, open, small};
use nodeagent_runtime::image::{ErrorCode, Images, ImagesConfig, MirrorConfig, PullFrom, RegistryConfig};

fn large() -> TestImage {
    TestImage::new(vec![Layer::gzip(files(&[("data", &noise(3 << 20))]))])
}

fn is_layer(path: &str, image: &TestImage) -> bool {
    let digest = nodeagent_runtime::content::Digest::of(&image.layers[0].blob);
    path.ends_with(&format!("/blobs/{digest}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_the_wrong_bytes_leaves_nothing_behind() {
    let registry = Registry::start().await;
    let image = large();
    registry.push("app", "v1", &image).await;
    let wanted = image.clone();
    let other = Layer::gzip(files(&[("data", &noise(3 << 20)[1..])])).blob;
    let garbage = noise(image.layers[0].blob.len());
    for wrong in [other, garbage, image.layers[0].blob.iter().map(|byte| byte ^ 1).collect()] {
        let wanted = wanted.clone();
        let size = image.layers[0].blob.len();
        let mut wrong: Vec<u8> = wrong;
        wrong.resize(size, 0);
        let proxy = Proxy::start(&registry.host, move |seen, _| {
            let wrong = wrong.clone();
            if is_layer(&seen.path, &wanted) { Answer::Body(Box::new(move |_| wrong.clone())) } else { Answer::Forward }
        })
        .await;
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path()).await;
        let error = images.pull(&format!("{}/app:v1", proxy.host), None).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DigestMismatch, "{error}");
        assert!(error.to_string().contains(&proxy.host), "{error}");
        assert_eq!(leftovers(root.path()), Vec::<String>::new());
        assert_eq!(images.usage().used_bytes, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_and_configs_with_the_wrong_digest_are_refused() {
    let registry = Registry::start().await;
    let image = small("x");
    let digest = registry.push("app", "v1", &image).await;
    let proxy = Proxy::start(&registry.host, move |seen, _| {
        let config = image.id();
        if seen.path.contains("manifests/sha256:") || seen.path.ends_with(&config) {
            Answer::Body(Box::new(|mut body| {
                body.push(b' ');
                body.remove(0);
                body.insert(0, b'{');
                let last = body.len() - 2;
                body[last] = b' ';
                body.truncate(last + 1);
                body
            }))
        } else {
            Answer::Forward
        }
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    for reference in [format!("{}/app@{digest}", proxy.host), format!("{}/app:v1", proxy.host)] {
        let error = images.pull(&reference, None).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DigestMismatch, "{error}");
    }
    assert_eq!(leftovers(root.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_not_the_one_the_registry_announces_is_refused() {
    let registry = Registry::start().await;
    registry.push("app", "v1", &small("x")).await;
    let proxy = Proxy::start(&registry.host, |seen, _| match seen.path.ends_with("manifests/v1") {
        // still one that can be read
        true => Answer::Body(Box::new(|body| [&body[..], b" "].concat())),
        false => Answer::Forward,
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let error = open(root.path()).await.pull(&format!("{}/app:v1", proxy.host), None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DigestMismatch, "{error}");
    assert_eq!(leftovers(root.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_it_broke_off() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let image = large();
    registry.push("app", "v1", &image).await;
    let wanted = image.clone();
    let proxy = Proxy::start(&registry.host, move |seen, before| match is_layer(&seen.path, &wanted) {
        true if before < 3 => Answer::CutAfter(600_000),
        _ => Answer::Forward,
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let pulled = images.pull(&format!("{}/app:v1", proxy.host), None).await.unwrap();
    let lower = images.prepare(&pulled.id, "c").await.unwrap().lower[0].join("data");
    assert!(std::fs::read(lower).unwrap() == noise(3 << 20));
    let ranges: Vec<_> =
        proxy.seen().into_iter().filter(|seen| is_layer(&seen.path, &image)).map(|seen| seen.range).collect();
    assert_eq!(ranges.len(), 4);
    assert_eq!(ranges[0], None);
    assert!(ranges[1..].iter().all(Option::is_some), "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_never_gets_longer_than_its_beginning_is_given_up() {
    let registry = Registry::start().await;
    let image = large();
    registry.push("app", "v1", &image).await;
    let wanted = image.clone();
    let proxy = Proxy::start(&registry.host, move |seen, _| {
        if !is_layer(&seen.path, &wanted) {
            return Answer::Forward;
        }
        match &seen.range {
            None => Answer::CutAfter(1000),
            Some(_) => Answer::CutAfter(0),
        }
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let error = open(root.path()).await.pull(&format!("{}/app:v1", proxy.host), None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RegistryUnavailable, "{error}");
    assert_eq!(leftovers(root.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_another_size_than_announced_is_refused() {
    let registry = Registry::start().await;
    let image = large();
    registry.push("app", "v1", &image).await;
    for longer in [true, false] {
        let wanted = image.clone();
        let proxy = Proxy::start(&registry.host, move |seen, _| match is_layer(&seen.path, &wanted) {
            true if longer => Answer::Body(Box::new(|mut body| {
                body.extend_from_slice(b"more");
                body
            })),
            true => Answer::Body(Box::new(|body| body[..1000.min(body.len())].to_vec())),
            false => Answer::Forward,
        })
        .await;
        let root = tempfile::tempdir().unwrap();
        let error = open(root.path()).await.pull(&format!("{}/app:v1", proxy.host), None).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DigestMismatch, "{error}");
        assert_eq!(leftovers(root.path()), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_registry_is_asked_again_when_it_says() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    registry.push("app", "v1", &small("x")).await;
    let proxy = Proxy::start(&registry.host, |_, before| match before {
        0 => status(503, &[], "busy"),
        1 => status(429, &[("retry-after", "1")], ""),
        _ => Answer::Forward,
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let started = Instant::now();
    open(root.path()).await.pull(&format!("{}/app:v1", proxy.host), None).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stays_overloaded_is_given_up_with_its_status() {
    let registry = Registry::start().await;
    let proxy = Proxy::start(&registry.host, |_, _| status(503, &[("retry-after", "3600")], "")).await;
    let root = tempfile::tempdir().unwrap();
    let error = open(root.path()).await.pull(&format!("{}/app:v1", proxy.host), None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RegistryUnavailable);
    assert!(error.to_string().contains("503") && error.to_string().contains(&proxy.host), "{error}");
    assert_eq!(proxy.paths().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_end_is_cut_at_four_megabytes() {
    let registry = Registry::start().await;
    let proxy = Proxy::start(&registry.host, |_, _| status(200, &[], &" ".repeat(5 << 20))).await;
    let root = tempfile::tempdir().unwrap();
    let error = open(root.path()).await.pull(&format!("{}/app:v1", proxy.host), None).await.unwrap_err();
    assert!(error.to_string().contains("more than 4194304 bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_silent_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let silent = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let root = tempfile::tempdir().unwrap();
    let mut config = ImagesConfig::isolated(root.path());
    config.timeouts.stall = Duration::from_millis(200);
    config.timeouts.connect = Duration::from_millis(200);
    let images = Images::open(config).await.unwrap();
    let error = images.pull(&format!("{host}/app:v1"), None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RegistryUnavailable, "{error}");
    silent.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_replaced_when_they_fail() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let image = large();
    registry.push("team/app", "v1", &image).await;
    let (wanted, garbage) = (image.clone(), noise(image.layers[0].blob.len()));
    let liar = Proxy::start(&registry.host, move |seen, _| {
        let garbage = garbage.clone();
        if is_layer(&seen.path, &wanted) { Answer::Body(Box::new(move |_| garbage.clone())) } else { Answer::Forward }
    })
    .await;
    let empty = Proxy::start(&registry.host, |_, _| status(404, &[], "")).await;
    let root = tempfile::tempdir().unwrap();
    let mut config = ImagesConfig::isolated(root.path());
    let mirror =
        |host: &str| MirrorConfig { location: format!("{host}/team"), insecure: true, pull_from: PullFrom::All };
    config.registries = vec![RegistryConfig {
        prefix: "registry.invalid/hub".into(),
        location: Some(format!("{}/team", registry.host)),
        insecure: true,
        blocked: false,
        defined_in: None,
        mirrors: vec![mirror(&empty.host), mirror(&liar.host)],
    }];
    let images = Images::open(config).await.unwrap();
    let pulled = images.pull("registry.invalid/hub/app:v1", None).await.unwrap();
    assert_eq!(pulled.tags, ["registry.invalid/hub/app:v1"]);
    assert_eq!(empty.paths()[0], "/v2/team/app/manifests/v1");
    assert!(liar.paths().iter().any(|path| is_layer(path, &image)));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_one_download_and_a_caller_that_leaves_does_not_stop_it() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let image = large();
    registry.push("app", "v1", &image).await;
    let proxy = Proxy::start(&registry.host, |_, _| Answer::Forward).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let reference = format!("{}/app:v1", proxy.host);
    // the one that starts it has no patience
    let _ = tokio::time::timeout(Duration::from_millis(1), images.pull(&reference, None)).await;
    let callers = (0..20).map(|_| images.pull(&reference, None));
    for result in futures_util::future::join_all(callers).await {
        assert_eq!(result.unwrap().id, image.id());
    }
    let downloads = proxy.paths().iter().filter(|path| is_layer(path, &image)).count();
    assert_eq!(downloads, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drips_is_given_up() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let image = TestImage::new(vec![Layer::plain(files(&[("noise", &noise(600_000))]))]);
    registry.push("app", "v1", &image).await;
    let throttle = Throttle::start(&registry.host, 200, Duration::from_millis(10)).await;
    let root = tempfile::tempdir().unwrap();
    let mut config = ImagesConfig::isolated(root.path());
    config.timeouts.stall = Duration::from_millis(300);
    let images = Images::open(config).await.unwrap();
    let error = images.pull(&format!("{}/app:v1", throttle.host), None).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::RegistryUnavailable, "{error}");
    assert!(error.to_string().contains("too slowly"), "{error}");
    assert_eq!(images_support::leftovers(root.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_over_slow_connections_comes_in_parts_side_by_side() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let image = TestImage::new(vec![Layer::plain(files(&[("noise", &noise(24 << 20))]))]);
    registry.push("app", "v1", &image).await;
    let throttle = Throttle::start(&registry.host, 64 << 10, Duration::from_millis(10)).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let pulled = images.pull(&format!("{}/app:v1", throttle.host), None).await.unwrap();
    let rootfs = images.prepare(&pulled.id, "c").await.unwrap();
    assert!(std::fs::read(rootfs.lower[0].join("noise")).unwrap() == noise(24 << 20));
    assert!(throttle.most_connections() >= 3, "{} connections at a time", throttle.most_connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_parts_are_refused_the_whole_blob_is_read() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let image = TestImage::new(vec![Layer::plain(files(&[("noise", &noise(16 << 20))]))]);
    registry.push("app", "v1", &image).await;
    // forgets the range, and so answers with everything
    let proxy = Proxy::start(&registry.host, |seen, _| match &seen.range {
        Some(_) => Answer::ForwardWhole,
        None => Answer::Forward,
    })
    .await;
    let throttle = Throttle::start(&proxy.host, 64 << 10, Duration::from_millis(8)).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    images.pull(&format!("{}/app:v1", throttle.host), None).await.unwrap();
    assert!(proxy.seen.lock().unwrap().iter().any(|seen| seen.range.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_failures_are_told_apart() {
    let registry = Registry::start().await;
    for (number, code) in [
        (401, ErrorCode::Unauthorized),
        (403, ErrorCode::Unauthorized),
        (404, ErrorCode::NotFound),
        (500, ErrorCode::RegistryUnavailable),
        (503, ErrorCode::RegistryUnavailable),
    ] {
        let proxy = Proxy::start(&registry.host, move |_, _| status(number, &[], "no")).await;
        let root = tempfile::tempdir().unwrap();
        let mut config = ImagesConfig::isolated(root.path());
        config.timeouts.retry = Duration::from_millis(300);
        let images = Images::open(config).await.unwrap();
        let error = images.pull(&format!("{}/app:v1", proxy.host), None).await.unwrap_err();
        assert_eq!(error.code(), code, "{number}: {error}");
        assert!(error.to_string().contains(&proxy.host), "{number}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_visible_while_it_lasts() {
    if !is_root() {
        return;
    }
    let registry = Registry::start().await;
    let image = TestImage::new(vec![Layer::plain(files(&[("noise", &noise(3_000_000))]))]);
    registry.push("app", "v1", &image).await;
    let throttle = Throttle::start(&registry.host, 16 << 10, Duration::from_millis(5)).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let reference = format!("{}/app:v1", throttle.host);
    let pull = tokio::spawn({
        let (images, reference) = (images.clone(), reference.clone());
        async move { images.pull(&reference, None).await }
    });
    let mut seen = Vec::new();
    while !pull.is_finished() {
        seen.extend(images.progress().into_iter().filter(|now| now.bytes > 0));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pull.await.unwrap().unwrap();
    let first = seen.first().unwrap();
    assert_eq!((first.image.as_str(), first.bytes_total), (reference.as_str(), image.layers[0].blob.len() as u64));
    assert!(seen.is_sorted_by_key(|now| now.bytes) && seen.iter().all(|now| now.bytes <= now.bytes_total));
    assert!(images.progress().is_empty());
}
