//! Other limits for a whole pod: recorded, and written to the cgroup that kubelet made for it.
//!
//! Kubelet sizes that cgroup itself, by rules that only it knows: a pod in which one container has no limit has none
//! either. What it sends here is the sum of those that do have one. So a limit is written only where there is one
//! already; the weight, which takes nothing away, always.

use std::collections::BTreeMap;
use std::sync::Arc;

use nodeagent_cri_api::{LinuxContainerResources, UpdatePodSandboxResourcesRequest};

use super::{PodError, SandboxRecord, Shared};
use crate::cgroup::{CgroupError, CgroupPath, Limited, Resources};
use crate::telemetry::chain;

/// Kubelet's period, also where it does not say so.
const PERIOD: i64 = 100_000;

/// What a pod may use by a request: its containers and its overhead together.
fn limits(asked: &UpdatePodSandboxResourcesRequest) -> Result<Resources, PodError> {
    let none = LinuxContainerResources::default();
    let parts = [asked.overhead.as_ref().unwrap_or(&none), asked.resources.as_ref().unwrap_or(&none)];
    let sum = |what: &str, of: fn(&LinuxContainerResources) -> i64| {
        let values = parts.map(of);
        // no limit of one part is no limit of the whole
        if values.contains(&-1) {
            return Ok(-1);
        }
        let sum =
            values.into_iter().try_fold(0_i64, |sum, value| if value < 0 { None } else { sum.checked_add(value) });
        sum.ok_or_else(|| PodError::Invalid(format!("{what}: {} and {} have no sum", values[0], values[1])))
    };
    let shares = sum("cpu_shares", |part| part.cpu_shares)?;
    let shares = u64::try_from(shares).map_err(|_| PodError::Invalid(format!("cpu_shares: {shares} is negative")))?;
    let cpu_quota = sum("cpu_quota", in_usual_periods)?;
    let mut unified = BTreeMap::new();
    for part in parts {
        unified.extend(part.unified.clone());
    }
    Ok(Resources {
        cpu_shares: shares,
        cpu_quota,
        cpu_period: if cpu_quota == 0 { 0 } else { PERIOD.cast_unsigned() },
        memory: sum("memory_limit_in_bytes", |part| part.memory_limit_in_bytes)?,
        unified,
        ..Resources::default()
    })
}

/// The quota of a part, for the period that all parts have.
fn in_usual_periods(part: &LinuxContainerResources) -> i64 {
    match part.cpu_period {
        _ if part.cpu_quota <= 0 => part.cpu_quota,
        period if period <= 0 => part.cpu_quota,
        period => i64::try_from(i128::from(part.cpu_quota) * i128::from(PERIOD) / i128::from(period)).unwrap_or(-2),
    }
}

/// Leaves what the pod is not limited by as it is.
fn where_limited(mut wanted: Resources, limited: Limited) -> Resources {
    if !limited.cpu {
        (wanted.cpu_quota, wanted.cpu_period) = (0, 0);
    }
    if !limited.memory {
        wanted.memory = 0;
    }
    wanted
}

/// Limits a pod: all of it or nothing.
pub(super) async fn resize(
    environment: &Shared,
    record: &SandboxRecord,
    asked: &UpdatePodSandboxResourcesRequest,
) -> Result<(), PodError> {
    let wanted = limits(asked)?;
    let failed = |source| PodError::Cgroup { id: record.id.clone(), source };
    wanted.check().map_err(failed)?;
    // pods without a parent of their own share one
    let Some(parent) = (!record.cgroup_parent().is_empty()).then(|| record.cgroup.of_pod()).flatten() else {
        return Ok(());
    };
    let before = write(environment, &parent, wanted.clone()).await.map_err(failed)?;
    if let Err(error) = environment.cgroups.keep_in_step(&parent, &before.wanted).await {
        let cgroups = environment.cgroups.clone();
        let back = tokio::task::spawn_blocking(move || cgroups.update(&parent, &before.present)).await;
        if let Ok(Err(error)) = back {
            log::error!(id = record.id.as_str(); "{}", chain(&error));
        }
        return Err(failed(error));
    }
    Ok(())
}

struct Written {
    wanted: Resources,
    present: Resources,
}

async fn write(environment: &Shared, parent: &CgroupPath, wanted: Resources) -> Result<Written, CgroupError> {
    let (environment, path) = (Arc::clone(environment), parent.clone());
    // shrinking memory makes the kernel reclaim, which takes its time
    let written = tokio::task::spawn_blocking(move || {
        let (limited, present) = environment.cgroups.present(&path)?;
        let wanted = where_limited(wanted, limited);
        environment.cgroups.update(&path, &wanted)?;
        Ok(Written { wanted, present })
    });
    let lost = |_| CgroupError::Limit { what: parent.to_string(), message: "the daemon is stopping".to_owned() };
    written.await.map_err(lost)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(cpu_shares: i64, cpu_quota: i64, cpu_period: i64, memory: i64) -> LinuxContainerResources {
        let memory_limit_in_bytes = memory;
        LinuxContainerResources { cpu_shares, cpu_quota, cpu_period, memory_limit_in_bytes, ..Default::default() }
    }

    fn sum(overhead: LinuxContainerResources, resources: LinuxContainerResources) -> Result<Resources, PodError> {
        let (overhead, resources) = (Some(overhead), Some(resources));
        limits(&UpdatePodSandboxResourcesRequest { pod_sandbox_id: "p".into(), overhead, resources })
    }

    #[test]
    fn a_pod_may_use_its_containers_and_its_overhead() {
        let both = sum(part(100, 25_000, 50_000, 1 << 20), part(1024, 100_000, 100_000, 3 << 20)).unwrap();
        let expected = Resources {
            cpu_shares: 1124,
            cpu_quota: 150_000,
            cpu_period: 100_000,
            memory: 4 << 20,
            ..Resources::default()
        };
        assert_eq!(both, expected);
        assert_eq!(sum(part(0, 0, 0, 0), part(2, 0, 0, 0)).unwrap().cpu_period, 0, "nothing is said of the quota");
    }

    #[test]
    fn a_part_without_limit_lifts_that_of_the_whole() {
        let both = sum(part(0, -1, 100_000, -1), part(2, 100_000, 100_000, 5)).unwrap();
        assert_eq!((both.cpu_quota, both.memory), (-1, -1));
    }

    #[test]
    fn what_has_no_sum_is_refused() {
        assert!(sum(part(0, 0, 0, i64::MAX), part(0, 0, 0, 1)).is_err());
        assert!(sum(part(-5, 0, 0, 0), part(0, 0, 0, 1)).is_err());
        assert!(sum(part(0, i64::MAX, 1, 0), part(0, 0, 0, 1)).is_err());
    }

    #[test]
    fn what_kubelet_left_without_limit_stays_so() {
        let wanted = sum(part(0, 0, 0, 0), part(1024, 100_000, 100_000, 5)).unwrap();
        let left = where_limited(wanted.clone(), Limited { cpu: false, memory: false });
        assert_eq!((left.cpu_shares, left.cpu_quota, left.cpu_period, left.memory), (1024, 0, 0, 0));
        assert_eq!(where_limited(wanted.clone(), Limited { cpu: true, memory: true }), wanted);
    }
}
