//! A config file as a tree in which every value knows where it was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where its key stands; where the value starts when it has none.
    pub origin: Origin,
}

/// TOML's types.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text.
    String(String),
    /// Whole number.
    Integer(i64),
    /// Number with a fraction.
    Float(f64),
    /// Truth value.
    Boolean(bool),
    /// List.
    Array(Vec<Node>),
    /// Table; the order of keys means nothing in TOML.
    Table(BTreeMap<String, Node>),
}

impl Value {
    /// The type's name for messages, with its article.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Boolean(_) => "a boolean",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
        }
    }
}

/// One step from a node to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Into a table.
    Key(String),
    /// Into an array.
    Index(usize),
}

/// `kernel.sysctl."net.ipv4.ip_forward"`, `file[2].mode`
pub fn dotted(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                let bare = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                if !text.is_empty() {
                    text.push('.');
                }
                if bare {
                    text.push_str(key);
                } else {
                    text.push_str(&format!("{key:?}"));
                }
            }
            // people count from one
            Step::Index(index) => text.push_str(&format!("[{}]", index + 1)),
        }
    }
    text
}

impl Node {
    /// A table without keys.
    pub fn empty_table(origin: Origin) -> Node {
        Node { value: Value::Table(BTreeMap::new()), origin }
    }

    /// The child at `key`, when this is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Table(table) => table.get(key),
            _ => None,
        }
    }

    /// The node at a path of table keys.
    pub fn at(&self, keys: &[&str]) -> Option<&Node> {
        keys.iter().try_fold(self, |node, key| node.get(key))
    }

    /// Takes away what is at `path`, so that the rest can be looked at. False when nothing is there.
    pub fn remove(&mut self, path: &[Step]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        match (&mut self.value, first) {
            (Value::Table(table), Step::Key(key)) if rest.is_empty() => table.remove(key).is_some(),
            (Value::Table(table), Step::Key(key)) => table.get_mut(key).is_some_and(|node| node.remove(rest)),
            (Value::Array(array), Step::Index(index)) if rest.is_empty() && *index < array.len() => {
                array.remove(*index);
                true
            }
            (Value::Array(array), Step::Index(index)) => array.get_mut(*index).is_some_and(|node| node.remove(rest)),
            _ => false,
        }
    }
}

/// Tables and arrays within each other; a node's config needs six.
const MAX_DEPTH: usize = 32;

/// Reads a file's text. What can be read is returned even when there are errors, so that later checks find more.
pub fn parse(file: &str, text: &str) -> (Node, Vec<ConfigError>) {
    let file: Arc<str> = file.into();
    let (table, syntax) = DeTable::parse_recoverable(text);
    let mut reader = Reader { file, text, errors: Vec::new() };
    for error in &syntax {
        let origin = error.span().map_or_else(
            || Origin::whole(&reader.file),
            |span| Origin::at(&reader.file, text, span.start.min(text.len())),
        );
        // the parser's Display quotes the line, which may hold a secret
        let problem = format!("not TOML: {}", error.message());
        reader.errors.push(ConfigError { origin, key: String::new(), problem, hint: None });
    }
    let origin = Origin::whole(&reader.file);
    let value = reader.table(table.into_inner(), &mut Vec::new());
    (Node { value, origin }, reader.errors)
}

struct Reader<'t> {
    file: Arc<str>,
    text: &'t str,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn table(&mut self, table: DeTable<'_>, path: &mut Vec<Step>) -> Value {
        let mut children = BTreeMap::new();
        for (key, value) in table {
            let origin = Origin::at(&self.file, self.text, key.span().start);
            let key = key.into_inner().into_owned();
            path.push(Step::Key(key.clone()));
            let value = self.value(value, path);
            path.pop();
            if let Some(value) = value {
                children.insert(key, Node { value, origin });
            }
        }
        Value::Table(children)
    }

    fn value(&mut self, value: Spanned<DeValue<'_>>, path: &mut Vec<Step>) -> Option<Value> {
        let at = value.span().start;
        if path.len() > MAX_DEPTH {
            self.report(at, path, format!("more than {MAX_DEPTH} tables and arrays within each other"));
            return None;
        }
        Some(match value.into_inner() {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Boolean(truth) => Value::Boolean(truth),
            DeValue::Datetime(_) => {
                self.report(at, path, "dates and times are not used here; a text needs quotes".to_owned());
                return None;
            }
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => {
                    self.report(at, path, format!("{number} is outside the range of 64-bit integers"));
                    return None;
                }
            },
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => Value::Float(number),
                _ => {
                    self.report(at, path, format!("{} is no number that can be used here", number.as_str()));
                    return None;
                }
            },
            DeValue::Array(array) => {
                let mut nodes = Vec::new();
                for (index, element) in array.into_iter().enumerate() {
                    let origin = Origin::at(&self.file, self.text, element.span().start);
                    path.push(Step::Index(index));
                    let value = self.value(element, path);
                    path.pop();
                    nodes.extend(value.map(|value| Node { value, origin }));
                }
                Value::Array(nodes)
            }
            DeValue::Table(table) => self.table(table, path),
        })
    }

    fn report(&mut self, at: usize, path: &[Step], problem: String) {
        let origin = Origin::at(&self.file, self.text, at);
        self.errors.push(ConfigError { origin, key: dotted(path), problem, hint: None });
    }
}
