//! Filters of system calls.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nodeagent_cri_api::security_profile::ProfileType;
use nodeagent_cri_api::*;

use crate::containers::{pod, run, security};
use crate::node::{Node, script};
use crate::suite::Suite;

pub fn add(suite: &mut Suite) {
    suite.add("seccomp: RuntimeDefault forbids a new user namespace, Unconfined does not", runtime_default);
    suite.add(
        "seccomp: a profile of the host answers the calls it names as it says, in commands run later too",
        localhost,
    );
    suite.add(
        "seccomp: a profile that is missing or none is an error that names it, never a container without",
        refusals,
    );
}

type Shared = Arc<Node>;

/// What a container that asks for this profile is to run.
fn with(mut wanted: ContainerConfig, profile_type: ProfileType, localhost_ref: &str) -> Result<ContainerConfig> {
    let profile = SecurityProfile { profile_type: profile_type.into(), localhost_ref: localhost_ref.into() };
    security(&mut wanted)?.seccomp = Some(profile);
    Ok(wanted)
}

async fn runtime_default(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "default").await?;
    let text = "grep Seccomp: /proc/self/status; unshare -U true 2>&1 && echo made";
    let wanted = with(script("default", &image, text), ProfileType::RuntimeDefault, "")?;
    let (_, said) = run(&node, &pod, &config, &wanted).await?;
    ensure!(said.starts_with("Seccomp:\t2\n") && said.contains("Operation not permitted"), "{said:?}");
    let wanted = with(script("unconfined", &image, text), ProfileType::Unconfined, "")?;
    let (_, said) = run(&node, &pod, &config, &wanted).await?;
    ensure!(said == "Seccomp:\t0\nmade\n", "{said:?}");
    Ok(())
}

async fn localhost(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "localhost").await?;
    let profile = node.pods().join("full.json");
    // 28: no space left on device, which nobody else would say here
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    fs::write(&profile, text)?;
    let wanted = script("c", &image, "trap 'exit 0' TERM; mkdir /tmp/x 2>&1; echo ready; sleep 1000 & wait $!");
    let wanted = with(wanted, ProfileType::Localhost, &profile.display().to_string())?;
    let id = node.launch(&pod, &config, &wanted).await?;
    let log = node.log_with(&node.status(&id).await?.log_path, "ready").await?;
    ensure!(log.iter().any(|line| line.contains("No space left on device")), "{log:?}");
    let said = node.output(&id, &["sh", "-c", "mkdir /tmp/y 2>&1; touch /tmp/z && echo touched"]).await?;
    ensure!(said.contains("No space left on device") && said.ends_with("touched\n"), "{said:?}");
    Ok(())
}

async fn refusals(node: Shared) -> Result<()> {
    let (pod, config, image) = pod(&node, "refused").await?;
    let (missing, broken) = (node.pods().join("missing.json"), node.pods().join("broken.json"));
    fs::write(&broken, r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#)?;
    for (name, profile) in [("missing", &missing), ("broken", &broken)] {
        let profile = profile.display().to_string();
        let wanted = with(script(name, &image, "true"), ProfileType::Localhost, &profile)?;
        let error = node.launch(&pod, &config, &wanted).await.err().with_context(|| format!("{name} was started"))?;
        ensure!(format!("{error:#}").contains(&profile), "{name}: {error:#}");
    }
    Ok(())
}
