//! The line to QEMU itself (QMP).

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// QEMU answers at once, or not at all.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// A monitor that is ready for commands.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
    /// Those that came while an answer was awaited.
    events: VecDeque<Value>,
}

impl Monitor {
    /// Over an accepted connection.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        let mut monitor = Self { reader: BufReader::new(stream), events: VecDeque::new() };
        monitor.message()?; // its greeting
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Executes a command and waits for its answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.reader.get_mut(), "{request}").with_context(|| format!("tell QEMU to {command}"))?;
        loop {
            let mut message = self.message()?;
            if let Some(error) = message.get("error") {
                bail!("QEMU: {command}: {}", error["desc"]);
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            self.events.push_back(message);
        }
    }

    /// Writes the state of devices (`migrate`) or reads it (`migrate-incoming`). Memory stays in its file.
    pub fn migrate(&mut self, command: &str, devices: &Path) -> Result<()> {
        let path = devices.to_string_lossy();
        ensure!(!path.contains('\''), "{path}: cannot be in a folder with a quote in its name");
        let uri = match command {
            "migrate" => format!("exec:cat > '{path}'"),
            _ => format!("exec:cat '{path}'"),
        };
        let capability = |name: &str| json!({"capability": name, "state": true});
        let capabilities = json!({"capabilities": [capability("x-ignore-shared"), capability("events")]});
        self.execute("migrate-set-capabilities", capabilities)?;
        self.execute(command, json!({"uri": uri}))?;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.message()?,
            };
            match event["data"]["status"].as_str() {
                _ if event["event"] != "MIGRATION" => {}
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("QEMU: {command} of {path}: {event}"),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).context("read QEMU's answer")?;
        ensure!(length > 0, "QEMU went away");
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
    }
}
