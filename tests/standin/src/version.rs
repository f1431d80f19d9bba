//! Which Kubernetes this stand-in plays, and what that version knows: one binary serves all packages.

use anyhow::{Context, bail};

/// Where the package says which version it is.
const VERSION_FILE: &str = "/usr/share/standin-kubelet/version";

/// The version of the package and the tables of its minor.
pub struct Version {
    /// As in `1.31.0`.
    pub text: String,
    /// As in 31.
    pub minor: u32,
    /// `flag switch|value` lines.
    pub flags: &'static str,
    /// `type field kind` lines.
    pub fields: &'static str,
}

impl Version {
    /// Reads the version of the installed package; `STANDIN_VERSION` says another one in tests.
    pub fn installed() -> anyhow::Result<Version> {
        let text = match std::env::var("STANDIN_VERSION") {
            Ok(text) => text,
            Err(_) => std::fs::read_to_string(VERSION_FILE).with_context(|| format!("read {VERSION_FILE}"))?,
        };
        Version::of(text.trim())
    }

    /// The tables for `text`. Only those minors can be played whose tables were taken from the sources.
    pub fn of(text: &str) -> anyhow::Result<Version> {
        let minor = text.split('.').nth(1).and_then(|minor| minor.parse().ok()).context("version without a minor")?;
        let (flags, fields) = match minor {
            18 => (include_str!("../tables/flags-1.18.txt"), include_str!("../tables/config-1.18.txt")),
            31 => (include_str!("../tables/flags-1.31.txt"), include_str!("../tables/config-1.31.txt")),
            37 => (include_str!("../tables/flags-1.37.txt"), include_str!("../tables/config-1.37.txt")),
            _ => bail!("no tables for Kubernetes {text}: 1.18, 1.31 or 1.37"),
        };
        Ok(Version { text: text.to_owned(), minor, flags, fields })
    }
}
