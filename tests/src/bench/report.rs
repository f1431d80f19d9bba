//! Figures of several subjects side by side.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::figures::Figure;

/// What one subject was measured at.
#[derive(Debug)]
pub struct Column {
    /// Name and version.
    pub subject: String,
    /// Its figures; the first column has all there are.
    pub figures: Vec<Figure>,
}

/// A table for people; the last columns say how many times the first subject's value another one's is.
pub fn table(columns: &[Column]) -> String {
    let mut text = format!("{:<52}", "");
    for column in columns {
        let _ = write!(text, " {:>26}", column.subject);
    }
    text.push('\n');
    let Some(first) = columns.first() else { return text };
    for figure in &first.figures {
        let _ = write!(text, "{:<52}", format!("{} [{}]", figure.name, figure.unit));
        for (place, column) in columns.iter().enumerate() {
            let same = column.figures.iter().find(|one| one.name == figure.name);
            let ratio = |value: f64| {
                let known = place > 0 && figure.value > 0.0;
                if known { format!(" ({:.1}x)", value / figure.value) } else { String::new() }
            };
            let shown = same.map_or("-".to_owned(), |one| format!("{:.2}{}", one.value, ratio(one.value)));
            let _ = write!(text, " {shown:>26}");
        }
        text.push('\n');
    }
    text
}

/// The same for scripts.
pub fn json(columns: &[Column]) -> Value {
    json!(
        columns.iter().map(|column| json!({"subject": column.subject, "figures": column.figures})).collect::<Vec<_>>()
    )
}
