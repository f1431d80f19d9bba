//! The guest's journal as it is written: what people want to see of it, and the events that the demonstration waits for.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The unit whose end is the end of the first boot.
const LAST: &str = "nodeagent-activate.service";

/// Prints the journal of the first boot, an entry a line, until the last unit's job has a result; or until cloud-init is done
/// without having installed us. Units by name: a pattern stands only for those that the journal knows already. In Python, as
/// mawk keeps a line to itself until it has more.
pub const FOLLOW: &str = r#"
fields=MESSAGE,UNIT,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER,JOB_RESULT,NODEAGENT_RESOURCE,NODEAGENT_DURATION_US,PRIORITY
python3 -c '
import subprocess, sys
for line in sys.stdin:
    print(line, end="", flush=True)
    if "\"JOB_RESULT\":" not in line:
        continue
    if "\"UNIT\":\"nodeagent-activate.service\"" in line:
        break
    cat = ["systemctl", "cat", "nodeagent-activate.service"]
    if "\"UNIT\":\"cloud-final.service\"" in line and subprocess.run(cat, capture_output=True).returncode:
        break
' < <(exec journalctl -b -f -n all -o json --output-fields=$fields \
  -u cloud-init-local -u cloud-init -u cloud-config -u cloud-final -u nodeagent-early -u nodeagent-prepare \
  -u nodeagent-runtime -u nodeagent-activate -u nodeagent-reconcile -u kubelet 2>/dev/null)
"#;

/// One journal entry, as far as it is of interest. A message that is not text is left out by the journal's JSON.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "MESSAGE", default, deserialize_with = "text")]
    message: String,
    #[serde(rename = "UNIT")]
    about: Option<String>,
    #[serde(rename = "_SYSTEMD_UNIT")]
    unit: Option<String>,
    #[serde(rename = "JOB_RESULT")]
    result: Option<String>,
    #[serde(rename = "NODEAGENT_RESOURCE")]
    resource: Option<String>,
    #[serde(rename = "NODEAGENT_DURATION_US")]
    duration_us: Option<String>,
}

/// Bytes that are no UTF-8 come as a list of numbers.
fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_str().unwrap_or_default().to_owned())
}

/// What has been read so far.
#[derive(Debug, Default)]
pub struct Reader {
    pending: Vec<u8>,
    /// Microseconds that changes of each resource took, over all stages.
    pub durations: BTreeMap<String, u64>,
    /// How the last unit's job ended: `done`, `failed`, `dependency` …
    pub result: Option<String>,
}

impl Reader {
    /// Takes the next piece of output; lines for people go to `show`: who says it, and what.
    pub fn take(&mut self, piece: &[u8], show: &mut dyn FnMut(&str, &str)) {
        self.pending.extend(piece);
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            if let Ok(entry) = serde_json::from_slice::<Entry>(&line) {
                self.note(&entry, show);
            }
        }
    }

    fn note(&mut self, entry: &Entry, show: &mut dyn FnMut(&str, &str)) {
        if let (Some(resource), Some(duration)) =
            (&entry.resource, entry.duration_us.as_ref().and_then(|d| d.parse::<u64>().ok()))
        {
            *self.durations.entry(resource.clone()).or_default() += duration;
        }
        if entry.about.as_deref() == Some(LAST) && entry.result.is_some() {
            self.result.clone_from(&entry.result);
        }
        let who = entry.about.as_deref().or(entry.unit.as_deref()).unwrap_or_default();
        let who = who.trim_end_matches(".service").trim_start_matches("nodeagent-");
        // cloud-init's own words are tables of addresses and keys
        let chatter = who.starts_with("cloud-") && entry.about.is_none();
        if !chatter && !entry.message.trim().is_empty() {
            show(who, entry.message.trim());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: &str = concat!(
        r#"{"MESSAGE":"Starting nodeagent: first boot…","UNIT":"nodeagent-prepare.service","_SYSTEMD_UNIT":"init.scope"}"#,
        "\n",
        r#"{"MESSAGE":"ci-info: |  eth0 |","_SYSTEMD_UNIT":"cloud-init.service"}"#,
        "\n",
        r#"{"MESSAGE":"selinux/mode: changed","_SYSTEMD_UNIT":"nodeagent-prepare.service","NODEAGENT_RESOURCE":"selinux/mode","NODEAGENT_DURATION_US":"1500"}"#,
        "\n",
        r#"{"MESSAGE":[27,91],"_SYSTEMD_UNIT":"kubelet.service"}"#,
        "\n",
        r#"{"MESSAGE":"Finished nodeagent…","UNIT":"nodeagent-activate.service","JOB_RESULT":"done"}"#,
        "\n",
    );

    #[test]
    fn entries_are_read_however_the_output_is_cut() {
        for size in [1, 7, 4096] {
            let (mut reader, mut seen) = (Reader::default(), Vec::new());
            for piece in ENTRIES.as_bytes().chunks(size) {
                reader.take(piece, &mut |who, what| seen.push(format!("{who}: {what}")));
            }
            let expected = [
                "prepare: Starting nodeagent: first boot…",
                "prepare: selinux/mode: changed",
                "activate: Finished nodeagent…",
            ];
            assert_eq!(seen, expected);
            assert_eq!(reader.durations["selinux/mode"], 1500);
            assert_eq!(reader.result.as_deref(), Some("done"));
        }
    }
}
