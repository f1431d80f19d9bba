//! KubeletConfiguration: the file and the drop-ins over it, decoded strictly by the table of a version.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Map, Value};

/// What the version knows: kind of each field of each type.
struct Schema<'a>(HashMap<(&'a str, &'a str), &'a str>);

impl<'a> Schema<'a> {
    fn of(table: &'a str) -> Schema<'a> {
        let lines = table.lines().filter(|line| !line.starts_with('#'));
        Schema(
            lines
                .filter_map(|line| {
                    let mut words = line.splitn(3, ' ');
                    Some(((words.next()?, words.next()?), words.next()?))
                })
                .collect(),
        )
    }

    fn check_object(&self, kind: &str, object: &Map<String, Value>, path: &str) -> anyhow::Result<()> {
        for (field, value) in object {
            let at = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
            if path.is_empty() && matches!(field.as_str(), "apiVersion" | "kind") {
                continue;
            }
            match self.0.get(&(kind, field.as_str())) {
                Some(kind) => self.check(kind, value, &at)?,
                None => bail!("strict decoding error: unknown field \"{at}\""),
            }
        }
        Ok(())
    }

    fn check(&self, kind: &str, value: &Value, at: &str) -> anyhow::Result<()> {
        let fits = match (kind, value) {
            (_, Value::Null) | ("any", _) => true,
            ("string", Value::String(_)) | ("bool", Value::Bool(_)) | ("number", Value::Number(_)) => true,
            ("integer", Value::Number(number)) => number.is_i64() || number.is_u64(),
            ("duration", Value::String(text)) => is_duration(text),
            (_, Value::Array(items)) if kind.starts_with("list ") => {
                return items.iter().try_for_each(|item| self.check(&kind[5..], item, at));
            }
            (_, Value::Object(entries)) if kind.starts_with("map ") => {
                return entries.values().try_for_each(|item| self.check(&kind[4..], item, at));
            }
            (kind, Value::Object(object)) if kind.starts_with(char::is_uppercase) => {
                return self.check_object(kind, object, at);
            }
            _ => false,
        };
        if !fits {
            bail!("json: cannot unmarshal {value} into Go struct field KubeletConfiguration.{at} of type {kind}");
        }
        Ok(())
    }
}

/// `1h30m`, `20s`, `0`, as Go's time.ParseDuration takes it.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let unit = ["ns", "us", "µs", "ms", "s", "m", "h"].into_iter().find(|unit| {
            let end = &rest[number..];
            end.starts_with(unit) && !end[unit.len()..].starts_with(|c: char| c.is_alphabetic())
        });
        match unit {
            Some(unit) if number > 0 => rest = &rest[number + unit.len()..],
            _ => return false,
        }
    }
    !text.is_empty()
}

/// Loads the file, then each `*.conf` of the drop-in directory in lexical order.
pub fn load(table: &str, file: Option<&str>, directory: Option<&str>) -> anyhow::Result<Map<String, Value>> {
    let schema = Schema::of(table);
    let mut merged = Map::new();
    if let Some(file) = file {
        merge(&mut merged, one(&schema, Path::new(file))?);
    }
    if let Some(directory) = directory {
        let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
            .with_context(|| format!("failed to walk through kubelet dropin directory {directory:?}"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<anyhow::Result<_>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        files.sort();
        for file in files {
            merge(&mut merged, one(&schema, &file)?);
        }
    }
    Ok(merged)
}

fn one(schema: &Schema, path: &Path) -> anyhow::Result<Map<String, Value>> {
    let failed = || format!("failed to load kubelet config file, path: {}", path.display());
    let text = std::fs::read_to_string(path).with_context(failed)?;
    decode(schema, &text).with_context(failed)
}

fn decode(schema: &Schema, text: &str) -> anyhow::Result<Map<String, Value>> {
    let Value::Object(object) = serde_saphyr::from_str(text)? else { bail!("not an object") };
    let said = |field: &str| object.get(field).and_then(Value::as_str);
    if said("apiVersion") != Some("kubelet.config.k8s.io/v1beta1") || said("kind") != Some("KubeletConfiguration") {
        bail!("no kind KubeletConfiguration of kubelet.config.k8s.io/v1beta1");
    }
    schema.check_object("KubeletConfiguration", &object, "")?;
    Ok(object)
}

/// JSON merge patch, which is how the kubelet lays drop-ins over its file: objects merge, everything else is replaced.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Version;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    fn check(version: &str, text: &str) -> Result<(), String> {
        let version = Version::of(version).unwrap();
        decode(&Schema::of(version.fields), &format!("{HEAD}{text}")).map(drop).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_field_that_a_minor_does_not_have_is_named() {
        assert_eq!(check("1.31.0", "containerRuntimeEndpoint: unix:///x\n"), Ok(()));
        let error = check("1.18.0", "containerRuntimeEndpoint: unix:///x\n").unwrap_err();
        assert_eq!(error, "strict decoding error: unknown field \"containerRuntimeEndpoint\"");
        let error = check("1.31.0", "authentication:\n  x509:\n    clientCaFile: /x\n").unwrap_err();
        assert_eq!(error, "strict decoding error: unknown field \"authentication.x509.clientCaFile\"");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused() {
        assert!(check("1.37.0", "maxPods: \"110\"\n").is_err());
        assert!(check("1.37.0", "syncFrequency: 60\n").is_err());
        assert!(check("1.37.0", "syncFrequency: 1m\nfailSwapOn: false\nclusterDNS: [10.0.0.10]\n").is_ok());
    }

    #[test]
    fn durations_are_those_of_go() {
        for good in ["0", "20s", "1h30m", "1.5h", "300ms"] {
            assert!(is_duration(good), "{good}");
        }
        for bad in ["", "5", "5 s", "s", "1d"] {
            assert!(!is_duration(bad), "{bad}");
        }
    }

    #[test]
    fn drop_ins_merge_objects_and_replace_lists() {
        let object = |text: &str| match serde_json::from_str(text).unwrap() {
            Value::Object(object) => object,
            _ => unreachable!(),
        };
        let mut base = object(r#"{"a":{"x":1,"y":2},"l":[1,2]}"#);
        merge(&mut base, object(r#"{"a":{"y":3},"l":[9]}"#));
        assert_eq!(Value::Object(base), serde_json::json!({"a":{"x":1,"y":3},"l":[9]}));
    }
}
