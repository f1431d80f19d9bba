//! Images mounted as volumes.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::*;
use nodeagent_tests::image::{Image as TestImage, push_artifact};
use tonic::Code;

use crate::containers::{pod, run};
use crate::node::{Node, idle, image as spec, refused, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("image volume: the image's merged files are there, read-only, and its programs can be executed", shown);
    suite.add("image volume: a sub-path shows only that, and stays inside the image", sub_path);
    suite.add("image volume: status says which image it is, and the image cannot be removed meanwhile", held);
    suite.add("image volume: what cannot be is refused in words that kubelet knows", refusals);
    suite.add("image volume: an artifact shows its blobs as files, and is not run", artifact);
    suite.add_own("image volume: it is held across a restart of the daemon too", restarted);
}

type Shared = Arc<Node>;

/// An image of two layers, the upper one hiding a file of the lower, and with a link that leads out.
async fn data(node: &Node) -> Result<String> {
    let registry = node.world.open()?;
    TestImage::busybox()?
        .layer(&[("data/", ""), ("data/a", "first\n"), ("data/hidden", "x")])?
        .layer(&[("data/b", "second\n"), ("data/.wh.hidden", "")])?
        .push(&registry, "data", "1")?;
    node.pull(&registry.reference("data:1")).await
}

fn volume(image: &str, inside: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: inside.into(),
        readonly: true,
        image: Some(spec(image)),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

async fn shown(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "volume").await?;
    let data = data(&node).await?;
    let text = "cat /vol/data/a /vol/data/b; ls /vol/data; touch /vol/x 2>&1; /vol/bin/busybox echo executed; cat /one/www/index.html";
    let mut wanted = script("c", &image, text);
    // one of several layers, one of a single one
    wanted.mounts = vec![volume(&data, "/vol", ""), volume(&image, "/one", "")];
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text.starts_with("first\nsecond\na\nb\n"), "{text}");
    ensure!(text.contains("Read-only file system"), "{text}");
    ensure!(text.ends_with("executed\nhello from the pod\n"), "{text}");
    wanted.mounts[0].mount_options = vec!["noexec".into()];
    wanted.metadata = Some(ContainerMetadata { name: "noexec".into(), attempt: 0 });
    wanted.command = ["sh", "-c", "/vol/bin/busybox echo executed 2>&1"].map(str::to_owned).to_vec();
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text.contains("Permission denied"), "{text}");
    Ok(())
}

async fn sub_path(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "subpath").await?;
    let data = data(&node).await?;
    let mut wanted = script("c", &image, "ls /vol; cat /etc/one; ls -A /vol/..; ls -d /vol/../bin");
    wanted.mounts = vec![volume(&data, "/vol", "data"), volume(&data, "/etc/one", "data/a")];
    let (status, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(status.exit_code == 0 && text.starts_with("a\nb\nfirst\n"), "{text}");
    Ok(())
}

async fn held(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "held").await?;
    let data = data(&node).await?;
    let mut wanted = idle("c", &image);
    wanted.mounts = vec![volume(&data, "/vol", "")];
    let id = node.launch(&pod, &config, &wanted).await?;
    let status = node.status(&id).await?;
    let shown = status.mounts.first().and_then(|mount| mount.image.as_ref()).context("no image in the status")?;
    ensure!(shown.image_ref == data, "{shown:?}");
    let error = node.remove_image(&data).await.err().context("an image in use was removed")?;
    ensure!(node.image_status(&data).await?.is_some(), "removed in spite of {error}");
    node.stop_container(&id, 0).await?;
    node.remove_container(&id).await?;
    node.remove_image(&data).await.context("nobody uses it any more")?;
    Ok(())
}

async fn refusals(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "refused").await?;
    let data = data(&node).await?;
    let writable = Mount { readonly: false, ..volume(&data, "/vol", "") };
    for (mount, expected) in [
        (writable, "read-only"),
        (volume(&data, "/vol", "none"), "has no `none`"),
        (volume(&data, "/vol", "../data"), "leads out"),
        (volume("sha256:0000", "/vol", ""), "is not here"),
    ] {
        let mut wanted = script("c", &image, "true");
        wanted.mounts = vec![mount];
        let status = refused(node.try_create(&pod, &config, &wanted).await, Code::InvalidArgument)?;
        ensure!(status.message().starts_with("ImageVolumeMountFailed: "), "{status}");
        ensure!(status.message().contains(expected), "{expected}: {status}");
    }
    Ok(())
}

async fn artifact(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "artifact").await?;
    let registry = node.world.open()?;
    let files: [(&str, &[u8]); 2] = [("model/weights", b"weights\n"), ("card.md", b"card\n")];
    let digest = push_artifact(&registry, "model", "1", &files)?;
    let artifact = node.pull(&registry.reference("model:1")).await?;
    ensure!(artifact == digest, "{artifact} is not {digest}");
    let listed = node.image_status(&registry.reference("model:1")).await?.context("not known by its tag")?;
    ensure!(listed.id == artifact && listed.size > 0, "{listed:?}");
    let mut wanted = script("c", &image, "cat /vol/model/weights /one; ls /vol");
    wanted.mounts = vec![volume(&artifact, "/vol", ""), volume(&artifact, "/one", "card.md")];
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text == "weights\ncard\ncard.md\nmodel\n", "{text}");
    let refusal = refused(node.try_create(&pod, &config, &idle("run", &artifact)).await, Code::InvalidArgument)?;
    ensure!(refusal.message().contains("artifact of type"), "{refusal}");
    Ok(())
}

async fn restarted(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "restarted").await?;
    let data = data(&node).await?;
    let mut wanted = idle("c", &image);
    wanted.mounts = vec![volume(&data, "/vol", "")];
    let id = node.launch(&pod, &config, &wanted).await?;
    {
        let mut daemon = node.own()?.lock().await;
        daemon.kill()?;
        daemon.resume()?;
    }
    ensure!(node.output(&id, &["cat", "/vol/data/a"]).await? == "first\n", "the volume");
    ensure!(node.remove_image(&data).await.is_err(), "an image in use was removed after the restart");
    let shown = node.status(&id).await?.mounts.first().and_then(|mount| mount.image.clone());
    ensure!(shown.is_some_and(|shown| shown.image_ref == data), "the status after the restart");
    Ok(())
}
