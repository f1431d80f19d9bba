//! Where log records go: the journal with their fields when it listens, else standard error.

use std::fmt::Write as _;
use std::io::Write as _;

use log::kv::{Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The journal's socket refused.
    #[error("cannot log to the journal")]
    Journal(#[source] std::io::Error),
    /// Somebody was first.
    #[error("logging is already set up")]
    Twice(#[source] log::SetLoggerError),
}

/// Sends log records to the journal when standard error is connected to it, else to standard error as text.
pub fn init(level: LevelFilter) -> Result<(), TelemetryError> {
    if systemd_journal_logger::connected_to_journal() {
        systemd_journal_logger::JournalLog::new()
            .map_err(TelemetryError::Journal)?
            .with_syslog_identifier("nodeagent-runtime".to_owned())
            .install()
            .map_err(TelemetryError::Twice)?;
    } else {
        log::set_logger(&StandardError).map_err(TelemetryError::Twice)?;
    }
    log::set_max_level(level);
    Ok(())
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // writing to a String cannot fail
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // one write per record keeps lines of several threads whole; nobody is left to tell when it fails
        let _ = std::io::stderr().write_all(line(record).as_bytes());
    }

    fn flush(&self) {}
}

fn line(record: &Record<'_>) -> String {
    let mut line = format!("{:<5} {}", record.level(), record.args());
    // a field that cannot be printed is left out
    let _ = record.key_values().visit(&mut Fields(&mut line));
    line.push('\n');
    line
}

struct Fields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the record")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_told_in_order() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "cannot read the record: disk on fire");
    }

    #[test]
    fn a_line_ends_with_its_fields() {
        let fields = [("id", Value::from("abc")), ("code", Value::from(3))];
        let record = Record::builder()
            .level(log::Level::Info)
            .args(format_args!("container started"))
            .key_values(&fields)
            .build();
        assert_eq!(line(&record), "INFO  container started id=abc code=3\n");
    }
}
