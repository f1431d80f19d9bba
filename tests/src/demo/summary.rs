//! The table at the end: each resource, how it stands, how long it took.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

/// A table of what `agent status --json` says. Times are those of the changes in all stages; a resource that was only looked at
/// has that of the look.
pub fn table(status: &Value, durations: &BTreeMap<String, u64>) -> Result<String> {
    let resources = status["resources"].as_array().context("agent status --json has no list of resources")?;
    let mut rows = vec![["resource".to_owned(), "state".to_owned(), "time".to_owned(), String::new()]];
    for resource in resources {
        let id = resource["id"].as_str().context("a resource without an id")?;
        let state = resource["state"].as_str().context("a resource without a state")?;
        let looked = resource["duration_us"].as_u64().unwrap_or(0);
        let (state, time) = match durations.get(id) {
            Some(changed) if state == "converged" => ("changed", *changed),
            Some(changed) => (state, *changed),
            None => (state, looked),
        };
        let detail =
            if matches!(state, "converged" | "changed") { "" } else { resource["detail"].as_str().unwrap_or("") };
        rows.push([id.to_owned(), state.to_owned(), milliseconds(time), detail.to_owned()]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second, third) = (width(0), width(1), width(2));
    let lines = rows.iter().map(|[id, state, time, detail]| {
        format!("{id:first$}  {state:second$}  {time:>third$}  {detail}").trim_end().to_owned() + "\n"
    });
    Ok(lines.collect())
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{} ms", microseconds / 1000, microseconds % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_has_the_time_of_changes_and_the_reason_of_trouble() -> Result<()> {
        let status = json!({"resources": [
            {"id": "selinux/mode", "state": "converged", "detail": "permissive", "duration_us": 90},
            {"id": "package/kubelet", "state": "failed", "detail": "no such package", "duration_us": 1_200_000},
        ]});
        let durations = BTreeMap::from([("selinux/mode".to_owned(), 4_250)]);
        let expected = "\
resource         state         time\n\
selinux/mode     changed     4.2 ms\n\
package/kubelet  failed   1200.0 ms  no such package\n";
        assert_eq!(table(&status, &durations)?, expected);
        Ok(())
    }

    #[test]
    fn an_answer_of_another_kind_is_an_error() {
        assert!(table(&json!({"error": "no run has ended"}), &BTreeMap::new()).is_err());
    }
}
