//! Images: pulls of all kinds, and what is known of an image afterwards.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nodeagent_cri_api::{AuthConfig, Image as Known, ImageFsInfoRequest};
use nodeagent_tests::daemon::binaries;
use nodeagent_tests::image::{Dialect, Image, push_index};
use nodeagent_tests::outside::run;
use nodeagent_tests::registry::{PASSWORD, Registry, USER};
use serde_json::{Value, json};
use tonic::Code;

use crate::node::{Node, refused};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("image: a pull by tag returns the id that ImageStatus and ListImages have too", by_tag);
    suite.add("image: a manifest list gives this machine's image, in OCI's words and in Docker's", from_a_list);
    suite.add("image: tag, digest and id find the same image", all_forms);
    suite.add("image: an image that is not there is an empty answer, not an error", absent);
    suite.add("image: a pull by digest leaves no tag", by_digest);
    suite.add("image: a tag that moved is followed by the next pull", moved);
    suite.add("image: a registry that asks for a password gets it, and refuses without it", basic);
    suite.add("image: a registry that sends to a token server gets a token", bearer);
    suite.add("image: a layer with other content than its digest says is refused, and leaves nothing", wrong_layer);
    suite.add("image: an image for another architecture only is refused", wrong_architecture);
    suite.add("image: a registry that does not answer is said to be unavailable", registry_down);
    suite.add("image: a name that is none is refused before anybody is asked", bad_names);
    suite.add("image: an image that no registry has is NotFound", unknown);
    suite.add("image: removal takes every tag, and is repeatable", removal);
    suite.add("image: user and size are reported", attributes);
    suite.add("image: ImageFsInfo knows where images are and what they take", fs_info);
    suite.add("image: twenty pulls at once of one image are one download", joined);
    suite.add_own("image: the command line works through the running daemon, and beside a stopped one", command_line);
    suite.add_with(
        "image: what the configuration pins is said to be pinned",
        "[images]\npinned = [\"*/pinned\"]\n",
        pinned,
    );
}

type Shared = std::sync::Arc<Node>;

/// The answer to ImageStatus, which has to be there.
async fn known(node: &Node, reference: &str) -> Result<Known> {
    node.image_status(reference).await?.with_context(|| format!("{reference} is not known"))
}

async fn by_tag(node: Shared) -> Result<()> {
    let (reference, pushed) = node.world.busybox()?;
    let id = node.pull(&reference).await?;
    ensure!(id == pushed.id, "PullImage says {id}, the image is {}", pushed.id);
    let image = known(&node, &reference).await?;
    ensure!(image.id == id, "ImageStatus says {}", image.id);
    ensure!(image.repo_tags == [reference.clone()], "tags {:?}", image.repo_tags);
    let digest = format!("{}@{}", reference.trim_end_matches(":1"), pushed.digest);
    ensure!(image.repo_digests == [digest.clone()], "digests {:?}, not {digest}", image.repo_digests);
    let listed = node.images().await?;
    ensure!(listed.iter().filter(|other| **other == image).count() == 1, "ListImages has {listed:?}");
    Ok(())
}

async fn from_a_list(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    for (dialect, name) in [(Dialect::Oci, "list-oci"), (Dialect::Docker, "list-docker")] {
        let here =
            Image::busybox()?.dialect(dialect).set("Labels", json!({"for": name})).push(&registry, name, "here")?;
        let other = Image::busybox()?.dialect(dialect).architecture("s390x").push(&registry, name, "other")?;
        let index = push_index(&registry, name, "all", dialect, &[&other, &here])?;
        let reference = registry.reference(&format!("{name}:all"));
        let id = node.pull(&reference).await?;
        ensure!(id == here.id, "{name}: {id}, not {}", here.id);
        let digests = known(&node, &reference).await?.repo_digests;
        ensure!(
            digests.contains(&registry.reference(&format!("{name}@{index}"))),
            "{name}: {digests:?} without {index}"
        );
    }
    Ok(())
}

async fn all_forms(node: Shared) -> Result<()> {
    let (reference, pushed) = node.world.busybox()?;
    let id = node.pull(&reference).await?;
    let image = known(&node, &reference).await?;
    let by_digest = format!("{}@{}", reference.trim_end_matches(":1"), pushed.digest);
    for form in [by_digest.as_str(), &id, id.trim_start_matches("sha256:")] {
        ensure!(known(&node, form).await? == image, "{form} finds something else");
    }
    Ok(())
}

async fn absent(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    for form in [registry.reference("nothing:1"), format!("sha256:{}", "0".repeat(64))] {
        let found = node.image_status(&form).await?;
        ensure!(found.is_none(), "{form} finds {found:?}");
    }
    Ok(())
}

async fn by_digest(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    let pushed = Image::busybox()?.set("Labels", json!({"case": "digest"})).push(&registry, "digest", "1")?;
    let reference = registry.reference(&format!("digest@{}", pushed.digest));
    let id = node.pull(&reference).await?;
    ensure!(id == pushed.id, "{id}, not {}", pushed.id);
    let image = known(&node, &reference).await?;
    ensure!(image.repo_tags.is_empty() && image.repo_digests == [reference.clone()], "{image:?}");
    Ok(())
}

async fn moved(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    let name = "moving";
    let first = Image::busybox()?.set("Labels", json!({"case": "first"})).push(&registry, name, "1")?;
    let reference = registry.reference("moving:1");
    ensure!(node.pull(&reference).await? == first.id, "the first pull");
    let second = Image::busybox()?.set("Labels", json!({"case": "second"})).push(&registry, name, "1")?;
    ensure!(node.pull(&reference).await? == second.id, "the tag has moved, the pull has not");
    ensure!(known(&node, &reference).await?.id == second.id, "ImageStatus still has the old one");
    ensure!(known(&node, &first.id).await?.repo_tags.is_empty(), "the old one keeps its tag");
    Ok(())
}

fn password(password: &str) -> Option<AuthConfig> {
    Some(AuthConfig { username: USER.into(), password: password.into(), ..Default::default() })
}

async fn let_in_with_password(node: &Node, registry: &Registry) -> Result<()> {
    let pushed = Image::busybox()?.push(registry, "closed/busybox", "1")?;
    let reference = registry.reference("closed/busybox:1");
    for auth in [None, password("wrong")] {
        let status = match node.pull_as(&reference, auth.clone()).await {
            Err(status) => status,
            Ok(id) => bail!("{auth:?} was let in: {id}"),
        };
        ensure!(
            matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied),
            "{:?}: {}",
            status.code(),
            status.message()
        );
        ensure!(!status.message().contains("wrong"), "the password is in the message: {}", status.message());
    }
    let id = node.pull_as(&reference, password(PASSWORD)).await.context("with the right password")?;
    ensure!(id == pushed.id, "{id}");
    Ok(())
}

async fn basic(node: Shared) -> Result<()> {
    let registry = node.world.basic()?;
    let_in_with_password(&node, &registry).await?;
    // as kubelet takes it from a pull secret without separate fields
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let reference = registry.reference("closed/busybox:1");
    node.pull_as(&reference, Some(AuthConfig { auth, ..Default::default() })).await.context("with `auth`")?;
    Ok(())
}

async fn bearer(node: Shared) -> Result<()> {
    let registry = node.world.token()?;
    let_in_with_password(&node, &registry).await?;
    let tokens = registry.tokens().context("a registry without its token server")?;
    ensure!(tokens.refused() > 0, "the wrong password was never shown to the token server");
    let token = tokens.issue("closed/busybox", &["pull"])?;
    let auth = AuthConfig { registry_token: token, ..Default::default() };
    node.pull_as(&registry.reference("closed/busybox:1"), Some(auth)).await.context("with a token of one's own")?;
    Ok(())
}

async fn wrong_layer(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    let pushed = Image::busybox()?.layer(&[("spoilt", "what was meant")])?.push(&registry, "spoilt", "1")?;
    let layer = pushed.layers.last().context("an image without layers")?;
    let file = registry.blob_file(layer);
    let good = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    let mut bad = good.clone();
    // not the header of gzip, so that it is the digest that tells
    let at = bad.len() - 12;
    bad[at] ^= 1;
    fs::write(&file, &bad)?;
    let reference = registry.reference("spoilt:1");
    let status = match node.pull_as(&reference, None).await {
        Err(status) => status,
        Ok(id) => bail!("a spoilt layer was taken: {id}"),
    };
    ensure!(status.message().contains(layer.trim_start_matches("sha256:")), "which layer? {}", status.message());
    ensure!(node.image_status(&reference).await?.is_none(), "the image is known all the same");
    fs::write(&file, good)?;
    ensure!(node.pull(&reference).await? == pushed.id, "after the repair");
    Ok(())
}

async fn wrong_architecture(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    let other = Image::busybox()?.architecture("s390x").push(&registry, "foreign", "one")?;
    push_index(&registry, "foreign", "all", Dialect::Oci, &[&other])?;
    for tag in ["one", "all"] {
        let reference = registry.reference(&format!("foreign:{tag}"));
        let status = match node.pull_as(&reference, None).await {
            Err(status) => status,
            Ok(id) => bail!("{reference} was taken: {id}"),
        };
        ensure!(status.message().contains("s390x"), "which architectures are there? {}", status.message());
    }
    Ok(())
}

async fn registry_down(node: Shared) -> Result<()> {
    // nobody listens on a port that was given out and taken back
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let status = match node.pull_as(&format!("{address}/busybox:1"), None).await {
        Err(status) => status,
        Ok(id) => bail!("pulled from nowhere: {id}"),
    };
    // kubelet looks for this word
    ensure!(status.message().starts_with("RegistryUnavailable"), "{:?}: {}", status.code(), status.message());
    ensure!(status.message().contains(&address.to_string()), "which registry? {}", status.message());
    Ok(())
}

async fn bad_names(node: Shared) -> Result<()> {
    for name in ["", "a/UPPER", "a b", "x@sha256:abc", "-x", "busybox:"] {
        refused(node.pull_as(name, None).await, Code::InvalidArgument).with_context(|| format!("name {name:?}"))?;
    }
    Ok(())
}

async fn unknown(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    let (_, _) = node.world.busybox()?;
    for name in ["never/pushed:1", "library/busybox:never"] {
        let reference = registry.reference(name);
        let status = refused(node.pull_as(&reference, None).await, Code::NotFound)?;
        ensure!(status.message().contains(name), "which image? {}", status.message());
    }
    Ok(())
}

async fn removal(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    let image = Image::busybox()?.set("Labels", json!({"case": "removal"}));
    image.push(&registry, "removal", "1")?;
    image.push(&registry, "removal", "2")?;
    let id = node.pull(&registry.reference("removal:1")).await?;
    ensure!(node.pull(&registry.reference("removal:2")).await? == id, "two tags of one image have two ids");
    ensure!(known(&node, &id).await?.repo_tags.len() == 2, "{:?}", known(&node, &id).await?);
    node.remove_image(&id).await?;
    ensure!(node.image_status(&id).await?.is_none(), "still known by its id");
    ensure!(node.images().await?.iter().all(|image| image.id != id), "still listed");
    node.remove_image(&id).await.context("a second time")?;
    node.remove_image(&registry.reference("removal:1")).await.context("by its tag, after it has gone")?;
    Ok(())
}

async fn attributes(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    for (user, uid, username) in [("1000", Some(1000), ""), ("33:50000", Some(33), ""), ("www-data", None, "www-data")]
    {
        let tag = user.replace(':', "-");
        let pushed = Image::busybox()?.set("User", json!(user)).push(&registry, "users", &tag)?;
        node.pull(&registry.reference(&format!("users:{tag}"))).await?;
        let image = known(&node, &pushed.id).await?;
        ensure!(image.uid.as_ref().map(|uid| uid.value) == uid && image.username == username, "user {user}: {image:?}");
        ensure!(image.size > 0, "user {user}: no size");
    }
    Ok(())
}

async fn fs_info(node: Shared) -> Result<()> {
    node.busybox().await?;
    let info = node.cri().images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
    for (what, filesystems) in [("image", &info.image_filesystems), ("container", &info.container_filesystems)] {
        let first = filesystems.first().with_context(|| format!("no {what} filesystem"))?;
        let place = &first.fs_id.as_ref().context("no fs_id")?.mountpoint;
        ensure!(fs::metadata(place).is_ok(), "{what}: {place} is not there");
        ensure!(first.timestamp > 0, "{what}: no timestamp");
    }
    let used = info.image_filesystems[0].used_bytes.as_ref().context("no used_bytes")?.value;
    ensure!(used > 1 << 20, "an image of more than a megabyte takes {used} bytes");
    Ok(())
}

async fn joined(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    let pushed = Image::busybox()?.layer(&[("joined", "once")])?.push(&registry, "joined", "1")?;
    let reference = registry.reference("joined:1");
    let pulls: Vec<_> = (0..20)
        .map(|_| {
            let (node, reference) = (node.clone(), reference.clone());
            tokio::spawn(async move { node.pull_as(&reference, None).await })
        })
        .collect();
    for pull in pulls {
        ensure!(pull.await?? == pushed.id, "a pull with another id");
    }
    let layer = pushed.layers.last().context("no layer")?;
    let downloads = registry.logged(&["GET", "/blobs/", layer.trim_start_matches("sha256:")]);
    ensure!(downloads <= 1, "the layer was downloaded {downloads} times");
    Ok(())
}

/// `nodeagent-runtime --config … image --json …`
fn image_command(config: &Path, arguments: &[&str]) -> Result<Value> {
    let mut all = vec!["--config", config.to_str().context("path")?, "image", "--json"];
    all.extend(arguments);
    let program = binaries()?.join("nodeagent-runtime");
    let answer = run(program.to_str().context("path")?, all)?.ok("nodeagent-runtime image")?;
    serde_json::from_str(&answer).with_context(|| answer)
}

async fn command_line(node: Shared) -> Result<()> {
    let config = node.own()?.lock().await.directory().join("runtime.toml");
    let registry = node.world.open()?;
    let pushed = Image::busybox()?.layer(&[("by", "command")])?.push(&registry, "command", "1")?;
    let name = registry.reference("command:1");
    let pulled = image_command(&config, &["pull", &name])?;
    ensure!(pulled["id"] == json!(pushed.id), "{pulled}");
    ensure!(known(&node, &name).await?.id == pushed.id, "the daemon does not know what its command pulled");
    let explained = image_command(&config, &["explain", &name])?;
    let url = explained["candidates"][0]["endpoints"][0]["url"].as_str().unwrap_or_default().to_owned();
    ensure!(url.ends_with("/v2/command/manifests/1"), "{explained}");
    let archive = node.pods().join("command.tar");
    image_command(&config, &["export", "-o", archive.to_str().context("path")?, &pushed.id])?;
    image_command(&config, &["rm", &name])?;
    ensure!(node.image_status(&name).await?.is_none(), "removed, and still there");

    // the same without a daemon, in its store
    node.own()?.lock().await.stop()?;
    let imported = image_command(&config, &["import", archive.to_str().context("path")?])?;
    ensure!(imported[0]["id"] == json!(pushed.id) && imported[0]["tags"] == json!([name]), "{imported}");
    node.own()?.lock().await.resume()?;
    let listed = image_command(&config, &["list"])?;
    ensure!(listed.as_array().is_some_and(|images| images.iter().any(|one| one["id"] == json!(pushed.id))), "{listed}");
    ensure!(known(&node, &name).await?.id == pushed.id, "imported, and unknown to the daemon");
    Ok(fs::remove_file(archive)?)
}

async fn pinned(node: Shared) -> Result<()> {
    let registry = node.world.open()?;
    for (repository, expected) in [("pinned", true), ("loose", false)] {
        Image::busybox()?.set("Labels", json!({"case": repository})).push(&registry, repository, "1")?;
        let reference = registry.reference(&format!("{repository}:1"));
        node.pull(&reference).await?;
        ensure!(known(&node, &reference).await?.pinned == expected, "{repository}");
    }
    Ok(())
}
