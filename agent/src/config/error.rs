//! What is wrong with a config, and where.

use std::fmt;
use std::sync::Arc;

/// A place in a config file. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file, as people know it.
    pub file: Arc<str>,
    /// 0 when the whole file is meant.
    pub line: usize,
    /// 0 when the whole line is meant.
    pub column: usize,
}

impl Origin {
    /// The file as a whole.
    pub fn whole(file: &str) -> Origin {
        Origin { file: file.into(), line: 0, column: 0 }
    }

    /// The byte at `offset` of a file's text.
    pub fn at(file: &Arc<str>, text: &str, offset: usize) -> Origin {
        let before = &text[..floor_char_boundary(text, offset)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Origin {
            file: Arc::clone(file),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

fn floor_char_boundary(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (0, _) => write!(f, "{}", self.file),
            (line, 0) => write!(f, "{}:{line}", self.file),
            (line, column) => write!(f, "{}:{line}:{column}", self.file),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {}{problem}{}", key_prefix(key), hint_suffix(hint))]
pub struct ConfigError {
    /// Where.
    pub origin: Origin,
    /// Dotted key; empty when the file itself is the problem.
    pub key: String,
    /// What.
    pub problem: String,
    /// The nearest thing that would be right.
    pub hint: Option<String>,
}

fn key_prefix(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{key}: ") }
}

fn hint_suffix(hint: &Option<String>) -> String {
    hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"))
}

/// Everything that is wrong, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// "did you mean ...?" for the nearest of `choices`, and all of them when none is near.
pub fn nearest(wrong: &str, choices: &[&str]) -> Option<String> {
    let best = choices
        .iter()
        .map(|choice| (strsim::damerau_levenshtein(&wrong.to_lowercase(), &choice.to_lowercase()), choice))
        .min_by_key(|(distance, _)| *distance);
    match best {
        // a third of the word, and at least one slip, may differ
        Some((distance, choice)) if distance <= (wrong.chars().count() / 3).max(1) => {
            Some(format!("did you mean {choice:?}?"))
        }
        Some(_) => Some(format!("known here: {}", choices.join(", "))),
        None => None,
    }
}
