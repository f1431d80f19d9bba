//! The config, in three stages with three names.
//!
//! A [`fragment::Fragment`] is one file as written. The merged [`tree::Node`] is all files in their order, in which every
//! value knows where it came from. [`settings::Settings`] are validated and typed, and all that the rest of the agent
//! sees. Errors of all files are collected; nothing is touched before there are none.

pub mod check;
mod decode;
pub mod error;
pub mod fragment;
pub mod host;
pub mod init;
pub mod interpolate;
pub mod join;
pub mod kubernetes;
pub mod merge;
pub mod settings;
pub mod source;
pub mod tree;
pub mod value;

pub use error::{ConfigError, ConfigErrors, Origin};
pub use interpolate::Facts;

use fragment::Fragment;
use settings::Settings;
use tree::{Node, Value};

/// A config file's name and text, or why it could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// As people know it.
    pub file: String,
    /// Its text.
    pub text: Result<String, String>,
}

/// What every node gets; the lowest layer.
const BUILT_IN: &str = include_str!("defaults.toml");

/// Name of the lowest layer.
pub const BUILT_IN_FILE: &str = "built-in";

/// A config that holds.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the rest of the agent sees.
    pub settings: Settings,
    /// Every value with its file, for `config show`.
    pub tree: Node,
    /// The files, lowest first, without the built-in layer.
    pub files: Vec<String>,
}

/// From files, lowest first, to settings.
pub fn resolve(sources: &[Source], facts: &Facts) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let mut merged = layer(BUILT_IN_FILE, BUILT_IN, facts, &mut errors);
    for source in sources {
        match &source.text {
            Ok(text) => merged = merge::merge(merged, layer(&source.file, text, facts, &mut errors)),
            Err(problem) => errors.push(ConfigError {
                origin: Origin::whole(&source.file),
                key: String::new(),
                problem: problem.clone(),
                hint: None,
            }),
        }
    }
    // what is wrong within a file would only show again, as a contradiction that is none
    if !errors.is_empty() {
        return Err(ConfigErrors(errors));
    }
    let fragment: Fragment = decode::decode(&merged).map_err(ConfigErrors)?;
    let settings = check::check(fragment, &merged).map_err(ConfigErrors)?;
    Ok(Config { settings, tree: merged, files: sources.iter().map(|source| source.file.clone()).collect() })
}

/// One file, checked as far as it can be on its own.
fn layer(file: &str, text: &str, facts: &Facts, errors: &mut Vec<ConfigError>) -> Node {
    let (mut node, syntax) = tree::parse(file, text);
    if !syntax.is_empty() {
        // what follows a syntax error is in the wrong table as often as not
        errors.extend(syntax);
        return node;
    }
    let mut found = interpolate::interpolate(&mut node, facts);
    found.extend(decode::decode::<Fragment>(&node).err().unwrap_or_default());
    if let Value::Table(table) = &node.value {
        for (array, child) in table {
            let Value::Array(elements) = &child.value else { continue };
            for (first, second) in merge::duplicates(elements) {
                let name = merge::identity(second).unwrap_or_default();
                found.push(ConfigError {
                    origin: second.origin.clone(),
                    key: format!("{array}[{name}]"),
                    problem: format!("is given twice in this file, first at {}", first.origin),
                    hint: None,
                });
            }
        }
    }
    // people go through a file from top to bottom
    found.sort_by_key(|error| (error.origin.line, error.origin.column));
    errors.extend(found);
    node
}

/// Settings from one text, without the files of a host.
pub fn from_text(text: &str) -> Result<Settings, ConfigErrors> {
    let source = Source { file: "config.toml".to_owned(), text: Ok(text.to_owned()) };
    resolve(&[source], &Facts::default()).map(|config| config.settings)
}

#[cfg(test)]
mod tests;
