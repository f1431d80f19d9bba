//! Logs: to journald with fields where it listens, to stderr otherwise. And one printer for chains of causes.

use std::error::Error;
use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// `MESSAGE_ID`s, one per kind of event. They are an interface: the catalog explains them, and people filter by them.
pub mod event {
    /// A transaction began.
    pub const TRANSACTION_BEGIN: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d01";
    /// A transaction ended with everything applied.
    pub const TRANSACTION_APPLIED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d02";
    /// A transaction ended with something failed.
    pub const TRANSACTION_DEGRADED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d03";
    /// A transaction was taken back.
    pub const TRANSACTION_UNDONE: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d04";
    /// Taking back failed.
    pub const UNDO_FAILED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d05";
    /// A run goes on where a crash ended another.
    pub const TRANSACTION_RESUMED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d06";
    /// A resource was changed.
    pub const RESOURCE_CHANGED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d10";
    /// A resource failed; its steps were undone.
    pub const RESOURCE_FAILED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d11";
    /// A resource cannot be brought to its state.
    pub const RESOURCE_BLOCKED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d12";
    /// A resource differs, and the policy is to say so.
    pub const DRIFT_FOUND: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d13";
    /// Somebody else changed what is ours.
    pub const CONFLICT: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d14";
    /// A resource was repaired too often and is left alone.
    pub const FLAPPING: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d15";
    /// A reboot is required.
    pub const REBOOT_REQUIRED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d16";
    /// The config is not valid.
    pub const CONFIG_INVALID: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d20";
    /// The first boot is done.
    pub const FIRST_BOOT_DONE: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d21";
    /// This system is a copy of another one.
    pub const CLONE_FOUND: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d22";

    /// Changes are on probation.
    pub const CONFIRM_ARMED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d30";
    /// Somebody wants them to stay.
    pub const CONFIRMED: &str = "8f0f1c6b5a9e4c27b4d5a1e3f2c60d31";

    /// All of them, for the test that compares them with the catalog.
    pub const ALL: [&str; 18] = [
        TRANSACTION_BEGIN,
        TRANSACTION_APPLIED,
        TRANSACTION_DEGRADED,
        TRANSACTION_UNDONE,
        UNDO_FAILED,
        TRANSACTION_RESUMED,
        RESOURCE_CHANGED,
        RESOURCE_FAILED,
        RESOURCE_BLOCKED,
        DRIFT_FOUND,
        CONFLICT,
        FLAPPING,
        REBOOT_REQUIRED,
        CONFIG_INVALID,
        FIRST_BOOT_DONE,
        CLONE_FOUND,
        CONFIRM_ARMED,
        CONFIRMED,
    ];
}

/// Target of messages that people get in another form already.
pub const JOURNAL_ONLY: &str = "journal";

/// Starts logging. Journald gets everything with its fields when stderr is connected to it, as in a unit.
pub fn start(level: LevelFilter) {
    let to_journal = connected_to_journal()
        && JournalLog::new()
            .is_ok_and(|logger| logger.with_syslog_identifier("nodeagent".to_owned()).install().is_ok());
    if !to_journal {
        // a logger that is set already is as good
        drop(log::set_boxed_logger(Box::new(Stderr)));
    }
    log::set_max_level(level);
}

/// One line per message, for people.
struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // what libraries say is for those who look for it
        metadata.target().starts_with("nodeagent") || log::max_level() >= LevelFilter::Debug
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_lowercase();
            // stderr may be closed; there is nobody left to tell
            drop(writeln!(std::io::stderr().lock(), "{level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// An error and its causes in one line. `Display` of our errors never repeats the cause, so nothing is said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // some libraries repeat their cause
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_everything_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("write state")]
        struct Outer(#[source] std::io::Error);

        let error = Outer(std::io::Error::other("no space"));
        assert_eq!(chain(&error), "write state: no space");
    }

    #[test]
    fn the_catalog_explains_every_event() {
        let catalog = include_str!("../../units/catalog/nodeagent.catalog");
        for id in event::ALL {
            assert!(catalog.contains(&format!("-- {id}\n")), "{id} is not in the catalog");
        }
        assert_eq!(catalog.matches("\n-- ").count(), event::ALL.len(), "the catalog explains what does not exist");
    }
}
