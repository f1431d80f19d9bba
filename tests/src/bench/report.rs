//! Figures of several subjects side by side.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::figures::Figure;

/// What one subject was measured at.
#[derive(Debug)]
pub struct Column {
    /// Name and version.
    pub subject: String,
    /// Its figures; every column has the same ones in the same order.
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
    for (row, figure) in first.figures.iter().enumerate() {
        let _ = write!(text, "{:<52}", format!("{} [{}]", figure.name, figure.unit));
        for (place, column) in columns.iter().enumerate() {
            let value = column.figures.get(row).map(|figure| figure.value).unwrap_or_default();
            let ratio = if place == 0 || figure.value <= 0.0 {
                String::new()
            } else {
                format!(" ({:.1}x)", value / figure.value)
            };
            let _ = write!(text, " {:>26}", format!("{value:.2}{ratio}"));
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
