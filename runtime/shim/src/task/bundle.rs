//! The bundle that the daemon has written, taken over into the form in which shims expect it.

use std::path::Path;

use serde_json::{Value, json};

use super::client::RootMount;
use super::error::TaskError;
use super::home::{self, Home};

/// What is said in it that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The pod.
    pub pod: String,
    /// What is mounted as its root; nothing when it has one.
    pub root: Vec<RootMount>,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// Takes over the bundle at `from`.
pub fn take_over(from: &Path, home: &Home) -> Result<Bundle, TaskError> {
    let path = from.join("config.json");
    let text = home::read(&path).map_err(TaskError::file("read", &path))?;
    let wrong = |reason: String| TaskError::Document { path: path.clone(), reason };
    let mut document: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let mounts = from.join("rootfs.json");
    let root: Vec<RootMount> = match home::read(&mounts) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| TaskError::Document { path: mounts.clone(), reason: error.to_string() })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(TaskError::file("read", mounts)(error)),
    };
    if !root.is_empty() {
        // where shims mount it
        document["root"]["path"] = json!("rootfs");
    }
    let pod = pod(&document).ok_or_else(|| wrong(format!("annotations: {POD} is missing")))?;
    let terminal = document["process"]["terminal"] == json!(true);
    home.write("config.json", document.to_string().as_bytes())?;
    Ok(Bundle { pod, root, terminal })
}

/// The pod of a task.
pub fn pod_of(home: &Home) -> Result<String, TaskError> {
    let path = home.path().join("config.json");
    let text = home::read(&path).map_err(TaskError::file("read", &path))?;
    let wrong = |reason: String| TaskError::Document { path: path.clone(), reason };
    let document: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    pod(&document).ok_or_else(|| wrong(format!("annotations: {POD} is missing")))
}

const POD: &str = "io.kubernetes.cri.sandbox-id";

fn pod(document: &Value) -> Option<String> {
    document["annotations"][POD].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_keeps_all_but_the_place_of_its_root() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        std::fs::create_dir(&from).unwrap();
        let home = Home::new(directory.path(), "c1").unwrap();
        home.make().unwrap();
        let missing = take_over(&from, &home).unwrap_err();
        assert!(missing.to_string().ends_with("from/config.json"), "{missing}");
        let text = r#"{"process":{"terminal":true,"cwd":"/"},"root":{"path":"/layers","readonly":true},
            "annotations":{"io.kubernetes.cri.sandbox-id":"p1"}}"#;
        std::fs::write(from.join("config.json"), text).unwrap();
        let bundle = take_over(&from, &home).unwrap();
        assert_eq!(bundle, Bundle { pod: "p1".into(), root: Vec::new(), terminal: true });
        let mount = r#"[{"type":"overlay","source":"overlay","options":["lowerdir=/a:/b"]}]"#;
        std::fs::write(from.join("rootfs.json"), mount).unwrap();
        assert_eq!(take_over(&from, &home).unwrap().root[0].options, ["lowerdir=/a:/b"]);
        let written: Value = serde_json::from_slice(&home::read(&home.path().join("config.json")).unwrap()).unwrap();
        assert_eq!(written["root"], json!({"path": "rootfs", "readonly": true}));
        assert_eq!(written["process"]["cwd"], "/");
        assert_eq!(pod_of(&home).unwrap(), "p1");
        std::fs::write(from.join("config.json"), "{}").unwrap();
        assert!(take_over(&from, &home).unwrap_err().to_string().contains("sandbox-id is missing"));
    }
}
