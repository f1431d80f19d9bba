//! A first boot as users have it: the cloud-init user-data that we ship, pointed at the repositories of the test.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::depot::Depot;
use crate::outside::repository;

/// Writes cloud-init's NoCloud files: our user-data with another repository and node configuration, and packages beside ours.
pub fn seed(folder: &Path, config: &str, packages: &[&str]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let path = repository().join("kickstart/cloud-init/user-data");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut data: Value = serde_saphyr::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    replace(&mut data, "/yum_repos/nodeagent/baseurl", json!(Depot::url("nodeagent/")))?;
    replace(&mut data, "/yum_repos/nodeagent/gpgkey", json!(Depot::url("RPM-GPG-KEY")))?;
    replace(&mut data, "/write_files/0/content", json!(config))?;
    let ours = data.pointer_mut("/packages").and_then(Value::as_array_mut);
    let ours = ours.context("kickstart/cloud-init/user-data has no list /packages")?;
    ours.extend(packages.iter().map(|name| json!(name)));
    // JSON is YAML too
    let user_data = format!("#cloud-config\n{}\n", serde_json::to_string_pretty(&data)?);
    for (name, content) in
        [("user-data", user_data.as_str()), ("meta-data", "instance-id: first\nlocal-hostname: node0\n")]
    {
        fs::write(folder.join(name), content).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

/// What users are told to edit has to be there.
fn replace(data: &mut Value, pointer: &str, value: Value) -> Result<()> {
    let place =
        data.pointer_mut(pointer).with_context(|| format!("kickstart/cloud-init/user-data has no {pointer}"))?;
    *place = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_user_data_is_used_with_another_repository_and_configuration() -> Result<()> {
        let work = tempfile::tempdir()?;
        seed(work.path(), "schema = 1\n", &["iproute-tc"])?;
        let text = fs::read_to_string(work.path().join("user-data"))?;
        let data: Value = serde_json::from_str(text.trim_start_matches("#cloud-config\n"))?;
        assert_eq!(data["yum_repos"]["nodeagent"]["baseurl"], "http://10.0.2.100/nodeagent/");
        assert_eq!(data["yum_repos"]["nodeagent"]["gpgcheck"], true);
        assert_eq!(data["write_files"][0]["path"], "/etc/nodeagent/config.toml");
        assert_eq!(data["write_files"][0]["content"], "schema = 1\n");
        assert_eq!(data["packages"], json!(["nodeagent", "iproute-tc"]));
        Ok(())
    }
}
