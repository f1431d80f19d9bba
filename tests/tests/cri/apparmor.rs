//! AppArmor: profiles by name, on hosts that have it, and errors on those that have not.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::security_profile::ProfileType;
use nodeagent_cri_api::*;
use nodeagent_tests::outside::run as outside;
use tonic::Code;

use crate::containers::{pod, run, security};
use crate::node::{Node, container, refused, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    if fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default().trim() != "Y" {
        suite.add("apparmor: where there is none, who asks for a profile gets an error, the default too", nowhere);
        return;
    }
    if outside("apparmor_parser", ["--version"]).is_err() {
        suite
            .add("apparmor: without a parser who asks for the default gets an error, who says nothing none", no_parser);
        return;
    }
    suite.add("apparmor: a profile of the host holds, in commands run later too, in either way of asking", localhost);
    suite.add("apparmor: who says nothing gets the runtime's own profile, Unconfined none", default);
    suite.add("apparmor: a profile that is not loaded is an error that names it, and nothing is started", not_loaded);
}

type Shared = Arc<Node>;

/// Everything is allowed but to write below /tmp.
const PROFILE: &str = "profile nodeagent-test flags=(attach_disconnected,mediate_deleted) {
  file, capability, network, mount, umount, pivot_root, signal, ptrace, unix,
  deny /tmp/** w,
}
";

fn with(mut wanted: ContainerConfig, profile_type: ProfileType, localhost_ref: &str) -> Result<ContainerConfig> {
    let profile = SecurityProfile { profile_type: profile_type.into(), localhost_ref: localhost_ref.into() };
    security(&mut wanted)?.apparmor = Some(profile);
    Ok(wanted)
}

async fn localhost(node: Shared) -> Result<()> {
    let file = node.pods().join("profile");
    fs::write(&file, PROFILE)?;
    outside("apparmor_parser", ["-K", "-r", &file.display().to_string()])?.ok("load a profile")?;
    let (pod, config, image) = pod(&node, "localhost").await?;
    let look = "cat /proc/self/attr/current; touch /tmp/x 2>&1; touch /var/x && echo elsewhere";
    let text = format!("trap 'exit 0' TERM; {look}; echo ready; sleep 1000 & wait $!");
    let wanted = with(script("new", &image, &text), ProfileType::Localhost, "nodeagent-test")?;
    let id = node.launch(&pod, &config, &wanted).await?;
    let log = node.log_with(&node.status(&id).await?.log_path, "ready").await?.join("\n");
    let said = node.output(&id, &["sh", "-c", look]).await?;
    let mut old = script("old", &image, look);
    security(&mut old)?.apparmor_profile = "localhost/nodeagent-test".into();
    let (_, of_old) = run(&node, &pod, &config, &old).await?;
    for text in [&log, &said, &of_old] {
        ensure!(text.contains("nodeagent-test (enforce)"), "{text}");
        ensure!(text.contains("/tmp/x: Permission denied") && text.contains("elsewhere"), "{text}");
    }
    Ok(())
}

/// What a container with SYS_ADMIN tries.
const TRIES: &str = "cat /proc/self/attr/current; mount -t tmpfs none /tmp 2>/dev/null && echo mounted
( : >> /proc/sys/kernel/core_pattern ) 2>/dev/null && echo opened
( : >> /proc/sys/kernel/shmmax ) && touch /tmp/x && echo touched";

fn trying(name: &str, image: &str) -> Result<ContainerConfig> {
    let mut wanted = script(name, image, TRIES);
    let add_capabilities = vec!["SYS_ADMIN".into()];
    security(&mut wanted)?.capabilities = Some(Capability { add_capabilities, ..Default::default() });
    Ok(wanted)
}

async fn default(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "default").await?;
    let said = trying("silent", &image)?;
    let asked = with(trying("asked", &image)?, ProfileType::RuntimeDefault, "")?;
    for wanted in [&said, &asked] {
        let (_, text) = run(&node, &pod, &config, wanted).await?;
        ensure!(text.contains(" (enforce)\n"), "not confined: {text:?}");
        ensure!(!text.contains("mounted") && !text.contains("opened") && text.contains("touched"), "{text:?}");
    }
    let wanted = with(trying("none", &image)?, ProfileType::Unconfined, "")?;
    let (_, text) = run(&node, &pod, &config, &wanted).await?;
    ensure!(text == "unconfined\nmounted\nopened\ntouched\n", "{text:?}");
    // signals come through to a confined one
    let armed = script("stopped", &image, "trap 'exit 0' TERM; echo armed; while :; do sleep 1000 & wait $!; done");
    let id = node.launch(&pod, &config, &armed).await?;
    node.log_with(&node.status(&id).await?.log_path, "armed").await?;
    node.stop_container(&id, 30).await?;
    ensure!(node.status(&id).await?.exit_code == 0, "not told to end: {:?}", node.status(&id).await?);
    Ok(())
}

async fn nowhere(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "nowhere").await?;
    let mut old = container("old", &image, &["true"]);
    security(&mut old)?.apparmor_profile = "localhost/web".into();
    let new = with(container("new", &image, &["true"]), ProfileType::Localhost, "web")?;
    let default = with(container("default", &image, &["true"]), ProfileType::RuntimeDefault, "")?;
    for (wanted, named) in [(&old, "`web`"), (&new, "`web`"), (&default, "`RuntimeDefault`")] {
        let status = refused(node.try_create(&pod, &config, wanted).await, Code::InvalidArgument)?;
        ensure!(status.message().contains(named) && status.message().contains("no AppArmor"), "{status}");
    }
    let mut same_as_nothing = container("same", &image, &["true"]);
    security(&mut same_as_nothing)?.apparmor_profile = "runtime/default".into();
    let unconfined = with(container("unconfined", &image, &["true"]), ProfileType::Unconfined, "")?;
    for wanted in [&same_as_nothing, &unconfined] {
        ensure!(run(&node, &pod, &config, wanted).await?.0.exit_code == 0, "{wanted:?}");
    }
    Ok(())
}

async fn no_parser(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "no-parser").await?;
    let asked = with(trying("asked", &image)?, ProfileType::RuntimeDefault, "")?;
    let error = node.launch(&pod, &config, &asked).await.err().context("started without the profile it asks for")?;
    ensure!(format!("{error:#}").contains("apparmor_parser"), "{error:#}");
    let (_, text) = run(&node, &pod, &config, &trying("silent", &image)?).await?;
    ensure!(text.starts_with("unconfined\n"), "{text:?}");
    Ok(())
}

async fn not_loaded(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "missing").await?;
    let wanted = with(container("c", &image, &["true"]), ProfileType::Localhost, "no-such-profile")?;
    let error = node.launch(&pod, &config, &wanted).await.err().context("started without its profile")?;
    ensure!(format!("{error:#}").contains("no-such-profile"), "{error:#}");
    let running = node.containers(None).await?;
    ensure!(
        running.iter().all(|one| one.state() != ContainerState::ContainerRunning || one.pod_sandbox_id != pod),
        "{running:?}"
    );
    Ok(())
}
