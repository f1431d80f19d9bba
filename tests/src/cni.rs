//! A directory of CNI configuration for one daemon: Debian's plugins, a bridge and a range of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::outside::run;

/// Where Debian has them, and where everybody else does.
pub const PLUGIN_DIRS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// One pod network; no two of a process share bridge or addresses.
#[derive(Debug)]
pub struct PodNet {
    directory: PathBuf,
    number: u8,
}

impl PodNet {
    /// Writes the usual list: bridge, host-local addresses, port mappings.
    pub fn create(directory: &Path) -> Result<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(number < 250, "more than 250 pod networks in one run");
        fs::create_dir_all(directory.join("conf"))?;
        let net = Self { directory: directory.to_owned(), number };
        net.write(&net.usual())?;
        Ok(net)
    }

    /// Directory of the configuration.
    pub fn conf_dir(&self) -> PathBuf {
        self.directory.join("conf")
    }

    /// The bridge's name.
    pub fn bridge(&self) -> String {
        format!("cnitest{}", self.number)
    }

    /// What every address begins with.
    pub fn prefix(&self) -> String {
        format!("10.89.{}.", self.number)
    }

    /// The usual list.
    pub fn usual(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": format!("test{}", self.number),
            "plugins": [
                {
                    "type": "bridge", "bridge": self.bridge(), "isGateway": true, "ipMasq": false, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "dataDir": self.directory.join("addresses"),
                        "ranges": [[{"subnet": format!("{}0/24", self.prefix())}]], "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
    }

    /// Puts a list in place of the one that is there, as an operator would: whole, under its name.
    pub fn write(&self, list: &Value) -> Result<()> {
        self.write_text(&serde_json::to_string_pretty(list)?)
    }

    /// Puts any text in place of the list.
    pub fn write_text(&self, text: &str) -> Result<()> {
        let unfinished = self.directory.join("unfinished");
        fs::write(&unfinished, text)?;
        Ok(fs::rename(unfinished, self.conf_dir().join("10-test.conflist"))?)
    }

    /// Takes the list away.
    pub fn remove(&self) -> Result<()> {
        Ok(fs::remove_file(self.conf_dir().join("10-test.conflist"))?)
    }

    /// Addresses that are given out.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let folder = self.directory.join("addresses").join(format!("test{}", self.number));
        let mut found = Vec::new();
        if folder.exists() {
            for entry in fs::read_dir(&folder)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name.starts_with(&self.prefix()) {
                    found.push(name);
                }
            }
        }
        Ok(found)
    }

    /// Names of the links that hang on the bridge.
    pub fn ports(&self) -> Result<Vec<String>> {
        let verdict = run("ip", ["-o", "link", "show", "master", &self.bridge()])?;
        // no bridge yet: no links
        Ok(if verdict.success { verdict.text.lines().map(str::to_owned).collect() } else { Vec::new() })
    }
}

impl Drop for PodNet {
    fn drop(&mut self) {
        // plugins leave the bridge on purpose; where the network namespace is not ours it would stay for ever
        let _ = run("ip", ["link", "delete", &self.bridge()]);
    }
}
