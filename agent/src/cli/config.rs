//! `agent config`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::failure::Failure;
use super::{Global, output, session};
use crate::config::tree::{Node, Step, Value, dotted};
use crate::config::{self, source};
use crate::exit::Exit;
use crate::host::{Ledger, Root};

/// Check the config, or show it with the file that each value comes from
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the host's config, or FILE alone; needs no privileges and touches nothing
    Check {
        /// A file, or a directory like /etc/nodeagent
        file: Option<PathBuf>,
    },
    /// Show every value with its origin
    Show,
}

/// One value, for JSON.
#[derive(Serialize)]
struct Shown {
    key: String,
    value: serde_json::Value,
    file: String,
    line: usize,
}

#[derive(Serialize)]
struct Checked {
    valid: bool,
    files: Vec<String>,
}

impl Config {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self.command {
            ConfigCommand::Check { file } => check(file, global),
            ConfigCommand::Show => show(global),
        }
    }
}

fn check(file: Option<PathBuf>, global: &Global) -> Result<Exit, Failure> {
    let config = match file {
        Some(file) => {
            let sources = source::given(&Root::live(Ledger::default())?, &file);
            config::resolve(&sources, &session::facts_here())?
        }
        None => session::load_config(&session::open_host(global)?, global)?,
    };
    if global.json {
        output::json(&Checked { valid: true, files: config.files });
    } else {
        output::say(&format!("the config is valid: {}", config.files.join(", ")));
    }
    Ok(Exit::Converged)
}

fn show(global: &Global) -> Result<Exit, Failure> {
    let config = session::load_config(&session::open_host(global)?, global)?;
    let mut shown = Vec::new();
    flatten(&config.tree, &mut Vec::new(), &mut shown);
    if global.json {
        output::json(&shown);
    } else {
        let width = shown.iter().map(|entry| entry.key.chars().count()).max().unwrap_or(0).min(60);
        for entry in &shown {
            let place = if entry.line == 0 { entry.file.clone() } else { format!("{}:{}", entry.file, entry.line) };
            output::say(&format!("{:width$} = {}  # {place}", entry.key, entry.value));
        }
    }
    Ok(Exit::Converged)
}

fn flatten(node: &Node, path: &mut Vec<Step>, shown: &mut Vec<Shown>) {
    match &node.value {
        Value::Table(table) => {
            for (key, child) in table {
                path.push(Step::Key(key.clone()));
                flatten(child, path, shown);
                path.pop();
            }
        }
        // arrays of tables have origins of their own inside
        Value::Array(nodes) if nodes.iter().any(|node| matches!(node.value, Value::Table(_))) => {
            for (index, child) in nodes.iter().enumerate() {
                path.push(Step::Index(index));
                flatten(child, path, shown);
                path.pop();
            }
        }
        value => {
            // whole files are long, and may be secret
            let is_content =
                matches!(path.as_slice(), [Step::Key(top), .., Step::Key(last)] if top == "file" && last == "content");
            let value = if is_content { "***".into() } else { json_of(value) };
            let file = node.origin.file.to_string();
            shown.push(Shown { key: dotted(path), value, file, line: node.origin.line });
        }
    }
}

fn json_of(value: &Value) -> serde_json::Value {
    match value {
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::Boolean(truth) => (*truth).into(),
        Value::Array(nodes) => nodes.iter().map(|node| json_of(&node.value)).collect(),
        Value::Table(table) => table.iter().map(|(key, node)| (key.clone(), json_of(&node.value))).collect(),
    }
}
