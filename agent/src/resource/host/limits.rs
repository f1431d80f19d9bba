//! Limits of the kubelet and the runtime, as drop-ins of their units.

use super::super::file::FileResource;
use super::super::owned_file::{HEADER, OwnedFile};
use super::super::unit;
use crate::config::host::LimitSettings;
use crate::plan::{Notify, Stage};

/// One drop-in for each unit; none when nothing is asked for.
pub fn limits(limits: LimitSettings, runtime: &str, kubelet: bool) -> Vec<FileResource> {
    let lines: String = [
        ("LimitNOFILE", limits.nofile),
        ("LimitNPROC", limits.nproc),
        ("LimitMEMLOCK", limits.memlock),
        ("TasksMax", limits.tasks),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some(format!("{key}={}\n", value?)))
    .collect();
    if lines.is_empty() {
        return Vec::new();
    }
    let units = [(runtime, true), (unit::KUBELET, kubelet)];
    let drop_in = |name: &str| {
        let path = format!("/etc/systemd/system/{name}.d/60-nodeagent-limits.conf");
        let file = OwnedFile::public(&path, format!("{HEADER}[Service]\n{lines}"));
        let notify = vec![Notify::DaemonReload, Notify::RestartUnit(name.to_owned())];
        FileResource::new(file, notify, Stage::Prepare, "so that the unit has the limits of [limits]")
    };
    units.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| drop_in(name)).collect()
}
