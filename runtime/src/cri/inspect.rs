//! CRI-O's inspection dialect, filled from what the node knows: the names and labels behind cgroups, for cAdvisor.

use super::Cri;
use crate::server::{ContainerJson, CrioInspect, InfoJson};

impl CrioInspect for Cri {
    fn info(&self) -> InfoJson {
        let root = self.node.config.root.to_string_lossy().into_owned();
        InfoJson { storage_driver: "overlay".to_owned(), storage_root: root, storage_image: String::new() }
    }

    fn container(&self, _: &str) -> Option<ContainerJson> {
        None
    }
}
