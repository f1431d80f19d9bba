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
    let root = match home::read(&mounts) {
        Ok(text) => root_mounts(&text).ok_or_else(|| TaskError::Document {
            path: mounts.clone(),
            reason: "no list of mounts, each with `type`, `source` and `options`".to_owned(),
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(TaskError::file("read", mounts)(error)),
    };
    if !root.is_empty() {
        // where shims mount it
        let place = document.get_mut("root").and_then(Value::as_object_mut);
        place.ok_or_else(|| wrong("root is missing".to_owned()))?.insert("path".to_owned(), json!("rootfs"));
    }
    let pod = pod(&document).ok_or_else(|| wrong(format!("annotations: {POD} is missing")))?;
    let terminal = document["process"]["terminal"] == json!(true);
    home.write("config.json", document.to_string().as_bytes())?;
    Ok(Bundle { pod, root, terminal })
}

fn root_mounts(text: &[u8]) -> Option<Vec<RootMount>> {
    let document: Value = serde_json::from_slice(text).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mount = |mount: &Value| {
        let options = mount["options"].as_array()?.iter().map(text).collect::<Option<_>>()?;
        Some(RootMount { kind: text(&mount["type"])?, source: text(&mount["source"])?, options })
    };
    document.as_array()?.iter().map(mount).collect()
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
        std::fs::write(from.join("rootfs.json"), r#"[{"type":"overlay"}]"#).unwrap();
        assert!(take_over(&from, &home).unwrap_err().to_string().contains("rootfs.json: no list of mounts"));
        std::fs::remove_file(from.join("rootfs.json")).unwrap();
        std::fs::write(from.join("config.json"), "{}").unwrap();
        assert!(take_over(&from, &home).unwrap_err().to_string().contains("sandbox-id is missing"));
    }
}
