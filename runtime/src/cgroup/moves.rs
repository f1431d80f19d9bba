//! Beginning early with what moving a process into a cgroup waits for.
//!
//! Since Linux 6.0 the first move after a quiet spell waits for an RCU grace period, some 5 to 15 ms
//! (`cgroup_threadgroup_rwsem`, a percpu-rwsem); those that come soon after it do not. The wait is the same whatever is moved where,
//! so it can pass beside other work: this process is moved to where it is already. Meanwhile no cgroup can be made: it is
//! begun when those that are needed are there.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Layout, file};

/// Shared by all that move processes.
#[derive(Debug, Clone, Default)]
pub(super) struct Moves {
    /// One at a time does for all.
    running: Arc<AtomicBool>,
}

impl Moves {
    /// Begins, on a thread of its own. Nothing depends on it: what fails here is heard of where a process is moved.
    pub(super) fn begin(&self, layout: &Layout) {
        if self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let (running, layout) = (Arc::clone(&self.running), layout.clone());
        tokio::task::spawn_blocking(move || {
            let own = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|own| membership(&layout, &own));
            if let Some(procs) = own
                && let Err(error) = file::write(&procs, &std::process::id().to_string())
            {
                log::debug!(error:% = error; "the wait for moves between cgroups could not begin early");
            }
            running.store(false, Ordering::Release);
        });
    }
}

/// The list of processes that this one is in, in the first tree; `own` is `/proc/self/cgroup`.
fn membership(layout: &Layout, own: &str) -> Option<PathBuf> {
    let mut lines = own.lines().filter_map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>().try_into().ok());
    let (mountpoint, path) = match layout {
        Layout::V2 { root } => (root, lines.find(|[controllers, _]: &[&str; 2]| controllers.is_empty())?[1]),
        Layout::V1 { hierarchies } => {
            let first = hierarchies.first()?;
            let known = first.controllers.join(",");
            (&first.mountpoint, lines.find(|[controllers, _]: &[&str; 2]| *controllers == known)?[1])
        }
    };
    // from within a namespace of cgroups, what is outside has such a path
    (!path.contains("/..")).then(|| mountpoint.join(path.trim_start_matches('/')).join("cgroup.procs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    #[test]
    fn a_process_finds_the_list_that_it_is_in() {
        let v2 = Layout::V2 { root: "/sys/fs/cgroup".into() };
        let hierarchy = Hierarchy {
            mountpoint: "/sys/fs/cgroup/cpu,cpuacct".into(),
            controllers: vec!["cpu".into(), "cpuacct".into()],
        };
        let v1 = Layout::V1 { hierarchies: vec![hierarchy] };
        let own = "5:cpu,cpuacct:/a/b\n1:name=systemd:/x\n0::/c:d/e\n";
        assert_eq!(membership(&v2, own), Some("/sys/fs/cgroup/c:d/e/cgroup.procs".into()));
        assert_eq!(membership(&v1, own), Some("/sys/fs/cgroup/cpu,cpuacct/a/b/cgroup.procs".into()));
        assert_eq!(membership(&v2, "0::/../x\n"), None);
        assert_eq!(membership(&v1, "0::/\n"), None);
    }
}
