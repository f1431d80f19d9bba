//! Standard output and error of the commands.

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl ColorChoice {
    /// Whether standard output is coloured.
    pub fn resolve(self) -> bool {
        match self {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }
}

/// What a stretch of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Comes into being.
    Add,
    /// Goes away.
    Remove,
    /// Changes.
    Change,
    /// Somebody should look.
    Trouble,
    /// Beside the point.
    Faint,
}

/// Text in its tone.
pub fn tone(text: &str, tone: Tone, color: bool) -> String {
    if !color {
        return text.to_owned();
    }
    let code = match tone {
        Tone::Add => "32",
        Tone::Remove => "31",
        Tone::Change => "33",
        Tone::Trouble => "1;31",
        Tone::Faint => "2",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => say(&text),
        Err(error) => complain(&format!("encode JSON: {error}")),
    }
}

/// Prints to standard output. A reader that has seen enough closes it; that is no error of ours.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{}", text.trim_end_matches('\n')));
}

/// Prints to standard error.
pub fn complain(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "agent: {text}"));
}
