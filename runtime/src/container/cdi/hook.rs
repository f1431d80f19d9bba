//! Programs that are run for a device: hooks of the OCI runtime specification.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// When a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// As `createRuntime`, before those; of old.
    Prestart,
    /// On the host, when everything is mounted.
    CreateRuntime,
    /// In the container's namespaces, when everything is mounted.
    CreateContainer,
    /// In the container, before its program.
    StartContainer,
    /// On the host, after its program has begun.
    Poststart,
    /// On the host, when it is gone.
    Poststop,
}

impl Stage {
    /// All of them, in their order.
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// A program and its moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// When.
    pub stage: Stage,
    /// Absolute path.
    pub path: String,
    /// Its arguments, beginning with its own name.
    pub args: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<u64>,
}

/// As `config.json` has them.
pub fn document(hooks: &[Hook]) -> Value {
    let mut all: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for hook in hooks {
        let mut one = json!({"path": hook.path, "args": hook.args, "env": hook.env});
        if let Some(timeout) = hook.timeout {
            one["timeout"] = json!(timeout);
        }
        all.entry(hook.stage.name()).or_default().push(one);
    }
    json!(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_runtime_is_told_of_all_of_them() {
        let hook = |stage, path: &str, timeout| Hook { stage, path: path.into(), args: vec![], env: vec![], timeout };
        let hooks = [hook(Stage::CreateContainer, "/a", Some(7)), hook(Stage::Poststop, "/b", None)];
        let expected = json!({
            "createContainer": [{"path": "/a", "args": [], "env": [], "timeout": 7}],
            "poststop": [{"path": "/b", "args": [], "env": []}],
        });
        assert_eq!(document(&hooks), expected);
        for stage in Stage::ALL {
            assert_eq!(json!(stage), stage.name());
        }
    }
}
