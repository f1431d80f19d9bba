//! Limits: from the protocol's form to the cgroup's, at creation and later.

use std::sync::Arc;

use nodeagent_cri_api::LinuxContainerResources;

use super::spec::HostFacts;
use super::{ContainerError, ContainerRecord, Phase};
use crate::cgroup::Resources;
use crate::sandbox::Shared;

/// What the cgroup is told.
pub fn limits(asked: &LinuxContainerResources, host: &HostFacts) -> Result<Resources, ContainerError> {
    let unsigned = |what: &str, value: i64| {
        u64::try_from(value).map_err(|_| ContainerError::Invalid(format!("{what}: {value} is negative")))
    };
    let hugepages = asked.hugepage_limits.iter().map(|limit| (limit.page_size.clone(), limit.limit));
    Ok(Resources {
        cpu_shares: unsigned("cpu_shares", asked.cpu_shares)?,
        cpu_quota: asked.cpu_quota,
        cpu_period: unsigned("cpu_period", asked.cpu_period)?,
        memory: asked.memory_limit_in_bytes,
        memory_and_swap: asked.memory_swap_limit_in_bytes,
        cpuset_cpus: asked.cpuset_cpus.clone(),
        cpuset_mems: asked.cpuset_mems.clone(),
        hugepages: hugepages.collect(),
        unified: asked.unified.clone().into_iter().collect(),
        pids: host.pids_limit,
    })
}

/// The present limits with those of `update` laid over them: what is zero or empty stays.
fn merged(present: &LinuxContainerResources, update: LinuxContainerResources) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &str, new: String| if new.is_empty() { old.to_owned() } else { new };
    let mut unified = present.unified.clone();
    unified.extend(update.unified);
    let hugepage_limits = match update.hugepage_limits.is_empty() {
        true => present.hugepage_limits.clone(),
        false => update.hugepage_limits,
    };
    LinuxContainerResources {
        cpu_period: number(present.cpu_period, update.cpu_period),
        cpu_quota: number(present.cpu_quota, update.cpu_quota),
        cpu_shares: number(present.cpu_shares, update.cpu_shares),
        memory_limit_in_bytes: number(present.memory_limit_in_bytes, update.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: number(present.memory_swap_limit_in_bytes, update.memory_swap_limit_in_bytes),
        // of processes, not of the container: it holds for what is started from now on, which is nothing
        oom_score_adj: present.oom_score_adj,
        cpuset_cpus: text(&present.cpuset_cpus, update.cpuset_cpus),
        cpuset_mems: text(&present.cpuset_mems, update.cpuset_mems),
        hugepage_limits,
        unified,
    }
}

/// Changes the limits of a container: all of them or none. Gives the limits that hold now.
pub async fn update(
    environment: Shared,
    record: Arc<ContainerRecord>,
    update: LinuxContainerResources,
) -> Result<LinuxContainerResources, ContainerError> {
    let resources = merged(&record.resources, update);
    let wanted = limits(&resources, &environment.host)?;
    let failed = |source| ContainerError::Cgroup { id: record.id.clone(), source };
    if environment.cgroups.made_by_systemd() && record.phase != Phase::Running {
        // they hold from the start on, when there is a cgroup
        wanted.check().map_err(failed)?;
        return Ok(resources);
    }
    write(&environment, &record, wanted.clone()).await?;
    let told = match environment.host.handlers.find(&record.handler) {
        Some(handler) if record.phase == Phase::Running => handler
            .update(&record.id, &wanted)
            .await
            .map_err(|source| ContainerError::Runtime { id: record.id.clone(), source }),
        Some(_) => Ok(()),
        None => environment.cgroups.keep_in_step(&record.cgroup, &wanted).await.map_err(failed),
    };
    if let Err(error) = told {
        // systemd would put the old ones back some day: they hold from now on
        let before = limits(&record.resources, &environment.host)?;
        if let Err(error) = write(&environment, &record, before).await {
            log::error!(id = record.id.as_str(); "{}", crate::telemetry::chain(&error));
        }
        return Err(error);
    }
    Ok(resources)
}

async fn write(environment: &Shared, record: &Arc<ContainerRecord>, limits: Resources) -> Result<(), ContainerError> {
    let (environment, record) = (Arc::clone(environment), Arc::clone(record));
    // shrinking memory makes the kernel reclaim, which takes its time
    let written = tokio::task::spawn_blocking(move || {
        let updated = environment.cgroups.update(&record.cgroup, &limits);
        updated.map_err(|source| ContainerError::Cgroup { id: record.id.clone(), source })
    });
    written.await.map_err(|_| ContainerError::Stopping)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_keeps_what_it_does_not_say() {
        let present = LinuxContainerResources {
            cpu_shares: 100,
            memory_limit_in_bytes: 1 << 20,
            oom_score_adj: 500,
            cpuset_cpus: "0".into(),
            unified: [("memory.low".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        let update = LinuxContainerResources {
            memory_limit_in_bytes: 2 << 20,
            oom_score_adj: 1,
            unified: [("memory.high".to_owned(), "2".to_owned())].into(),
            ..Default::default()
        };
        let merged = merged(&present, update);
        assert_eq!((merged.cpu_shares, merged.memory_limit_in_bytes, merged.oom_score_adj), (100, 2 << 20, 500));
        assert_eq!((merged.cpuset_cpus.as_str(), merged.unified.len()), ("0", 2));
    }
}
