//! Command line flags, judged as pflag does: a flag that the version does not know ends the kubelet.

use std::collections::BTreeMap;

use anyhow::bail;

/// Flags with their last value; a switch without one is `true`.
#[derive(Debug, Default)]
pub struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Parses `arguments` by the table of a version.
    pub fn parse(table: &str, arguments: impl Iterator<Item = String>) -> anyhow::Result<Flags> {
        let known: BTreeMap<&str, &str> =
            table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' ')).collect();
        let mut flags = Flags::default();
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                bail!("unknown command {argument:?}");
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let value = match (known.get(name), value) {
                (None, _) => bail!("failed to parse kubelet flag: unknown flag: --{name}"),
                (Some(_), Some(value)) => value,
                (Some(&"switch"), None) => "true".to_owned(),
                // the kubelet prints its version whether or not a value follows
                (Some(_), None) if name == "version" => "true".to_owned(),
                (Some(_), None) => match arguments.next() {
                    Some(value) => value,
                    None => bail!("failed to parse kubelet flag: flag needs an argument: --{name}"),
                },
            };
            flags.0.insert(name.to_owned(), value);
        }
        Ok(flags)
    }

    /// The value of a flag.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Version;

    fn parse(version: &str, arguments: &[&str]) -> anyhow::Result<Flags> {
        Flags::parse(Version::of(version)?.flags, arguments.iter().map(|a| (*a).to_owned()))
    }

    #[test]
    fn a_flag_that_was_removed_ends_the_kubelet_of_the_newer_minor_only() {
        assert!(parse("1.18.0", &["--container-runtime=remote"]).is_ok());
        let error = parse("1.31.0", &["--container-runtime=remote"]).unwrap_err().to_string();
        assert_eq!(error, "failed to parse kubelet flag: unknown flag: --container-runtime");
        assert!(parse("1.31.0", &["--pod-infra-container-image=x"]).is_ok());
        assert!(parse("1.37.0", &["--pod-infra-container-image=x"]).is_err());
    }

    #[test]
    fn a_value_follows_after_an_equals_sign_or_a_blank() {
        let flags = parse("1.31.0", &["--config=/a", "--config-dir", "/b", "--fail-swap-on=false"]).unwrap();
        assert_eq!(flags.get("config"), Some("/a"));
        assert_eq!(flags.get("config-dir"), Some("/b"));
        assert_eq!(flags.get("fail-swap-on"), Some("false"));
        assert!(parse("1.31.0", &["--config"]).is_err());
        assert!(parse("1.18.0", &["--config-dir", "/b"]).is_err());
    }
}
