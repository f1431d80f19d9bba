//! The protocol as released daemons and shims speak it: each line of the transcript must be read, and written the same.
// its helpers are as much test as the tests
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use nodeagent_shim::protocol::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a line and writes it again. Fields that this version adds may appear; nothing may be lost or change.
fn survives<T: DeserializeOwned + Serialize>(frame: &Value, line: usize) {
    let value: T = serde_json::from_value(frame.clone()).unwrap_or_else(|error| panic!("line {line}: {error}"));
    let again = serde_json::to_value(&value).unwrap();
    contains(&again, frame, &format!("line {line}"));
}

fn contains(whole: &Value, part: &Value, place: &str) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                let found = whole.get(key).unwrap_or_else(|| panic!("{place}: {key} is lost"));
                contains(found, value, &format!("{place}.{key}"));
            }
        }
        (Value::Array(whole), Value::Array(part)) => {
            assert_eq!(whole.len(), part.len(), "{place}");
            for (index, (whole, part)) in whole.iter().zip(part).enumerate() {
                contains(whole, part, &format!("{place}[{index}]"));
            }
        }
        _ => assert_eq!(whole, part, "{place}"),
    }
}

fn transcript(text: &str) {
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let (direction, frame) = line.split_once(' ').unwrap();
        let frame: Value = serde_json::from_str(frame).unwrap_or_else(|error| panic!("line {}: {error}", number + 1));
        match direction {
            "hello" => survives::<Hello>(&frame, number + 1),
            "daemon" => survives::<Request>(&frame, number + 1),
            "shim" => survives::<FromShim>(&frame, number + 1),
            other => panic!("line {}: {other}", number + 1),
        }
    }
}

#[test]
fn version_1_is_understood() {
    transcript(include_str!("protocol/version-1.txt"));
}

#[test]
fn every_call_answer_and_event_is_in_the_transcript() {
    let text = include_str!("protocol/version-1.txt");
    for tag in [
        "\"call\":\"setup\"",
        "\"call\":\"start\"",
        "\"call\":\"continue\"",
        "\"call\":\"signal\"",
        "\"call\":\"exec\"",
        "\"call\":\"reopen_log\"",
        "\"call\":\"list\"",
        "\"call\":\"forget\"",
        "\"call\":\"stop_pod\"",
        "\"call\":\"exit\"",
        "\"answer\":\"done\"",
        "\"answer\":\"started\"",
        "\"answer\":\"containers\"",
        "\"answer\":\"executed\"",
        "\"answer\":\"error\"",
        "\"event\":\"launched\"",
        "\"event\":\"exited\"",
    ] {
        assert!(text.contains(tag), "{tag}");
    }
}

#[test]
fn what_a_newer_side_adds_is_ignored() {
    let spec: LaunchSpec = serde_json::from_str(r#"{"container":"c","later":{"a":[1]},"process":{"new":1}}"#).unwrap();
    assert_eq!(spec, LaunchSpec { container: "c".into(), ..LaunchSpec::default() });
    let answer: Answer = serde_json::from_str(r#"{"answer":"error","kind":"melted","message":"m"}"#).unwrap();
    assert!(matches!(answer, Answer::Error { kind: ErrorKind::Other, .. }));
    let state: ContainerState = serde_json::from_str(r#"{"container":"c","pid":null,"started_at":1}"#).unwrap();
    assert_eq!((state.exit_code, state.oom_killed, state.message.as_str()), (None, false, ""));
}
