//! From a tree to typed fragments with serde, keeping what serde's usual text errors lose: the place, the key, and the
//! choices there would have been.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer, StringDeserializer};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};

use super::error::{ConfigError, Origin, nearest};
use super::tree::{Node, Step, Value, dotted};

/// More errors than this in one file are not reported one by one.
const MAX_ERRORS: usize = 100;

/// Decodes `node`, and on errors goes on without the offending values, so that all errors are found in one go.
pub fn decode<T: for<'de> Deserialize<'de>>(node: &Node) -> Result<T, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let mut rest = node.clone();
    let mut removed: Vec<Vec<Step>> = Vec::new();
    loop {
        match T::deserialize(&rest) {
            Ok(value) if errors.is_empty() => return Ok(value),
            Ok(_) => return Err(errors),
            Err(error) => {
                let path = error.path.clone();
                let key = error.missing.map(|key| [path.as_slice(), &[Step::Key(key.to_owned())]].concat());
                // a key that is only missing because its wrong value was taken away has been reported
                if !key.is_some_and(|key| removed.contains(&key)) {
                    errors.push(error.into_config_error(node));
                }
                if errors.len() >= MAX_ERRORS || !rest.remove(&path) {
                    return Err(errors);
                }
                removed.push(path);
            }
        }
    }
}

/// What serde found, with the way to it.
#[derive(Debug)]
pub struct DecodeError {
    path: Vec<Step>,
    origin: Option<Origin>,
    problem: String,
    hint: Option<String>,
    missing: Option<&'static str>,
}

impl DecodeError {
    fn new(problem: String, hint: Option<String>) -> DecodeError {
        DecodeError { path: Vec::new(), origin: None, problem, hint, missing: None }
    }

    /// Called on the way out, innermost first: the first place set is the most precise.
    fn below(mut self, step: Step, origin: &Origin) -> DecodeError {
        self.path.insert(0, step);
        self.origin.get_or_insert_with(|| origin.clone());
        self
    }

    fn into_config_error(self, root: &Node) -> ConfigError {
        ConfigError {
            origin: self.origin.unwrap_or_else(|| root.origin.clone()),
            key: dotted(&self.path),
            problem: self.problem,
            hint: self.hint,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> DecodeError {
        DecodeError::new(message.to_string(), None)
    }

    fn invalid_type(found: Unexpected<'_>, want: &dyn Expected) -> DecodeError {
        DecodeError::new(format!("wrong type: {}, want {want}", in_words(found)), None)
    }

    fn invalid_value(found: Unexpected<'_>, want: &dyn Expected) -> DecodeError {
        DecodeError::new(format!("wrong value: {}, want {want}", in_words(found)), None)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> DecodeError {
        let choices = expected.iter().map(|choice| format!("{choice:?}")).collect::<Vec<_>>().join(", ");
        let near = nearest(variant, expected).filter(|hint| hint.starts_with("did you mean"));
        DecodeError::new(format!("unknown value {variant:?}, want one of {choices}"), near)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> DecodeError {
        DecodeError::new(format!("unknown key {field:?}"), nearest(field, expected))
    }

    fn missing_field(field: &'static str) -> DecodeError {
        let error = DecodeError::new(format!("the key {field:?} is missing"), None);
        DecodeError { missing: Some(field), ..error }
    }
}

/// Texts are not repeated: they may be secrets.
fn in_words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Str(_) => "a string".to_owned(),
        Unexpected::Signed(number) => format!("the integer {number}"),
        Unexpected::Unsigned(number) => format!("the integer {number}"),
        Unexpected::Float(number) => format!("the float {number}"),
        Unexpected::Bool(truth) => format!("the boolean {truth}"),
        Unexpected::Seq => "an array".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(truth) => visitor.visit_bool(*truth),
            Value::Array(nodes) => visitor.visit_seq(Elements { nodes: nodes.iter().enumerate() }),
            Value::Table(table) => visitor.visit_map(Entries { entries: table.iter(), current: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.value {
            Value::String(text) => {
                let text: StrDeserializer<'_, DecodeError> = text.as_str().into_deserializer();
                text.deserialize_enum(name, variants, visitor)
            }
            other => {
                let choices = variants.iter().map(|choice| format!("{choice:?}")).collect::<Vec<_>>().join(", ");
                Err(DecodeError::new(format!("wrong type: {}, want one of {choices}", other.kind()), None))
            }
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

struct Elements<'de> {
    nodes: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> SeqAccess<'de> for Elements<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        let Some((index, node)) = self.nodes.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|error| error.below(Step::Index(index), &node.origin))
    }
}

struct Entries<'de> {
    entries: std::collections::btree_map::Iter<'de, String, Node>,
    current: Option<(&'de String, &'de Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        self.current = self.entries.next();
        let Some((key, node)) = self.current else { return Ok(None) };
        let text: StringDeserializer<DecodeError> = key.clone().into_deserializer();
        seed.deserialize(text).map(Some).map_err(|error| error.below(Step::Key(key.clone()), &node.origin))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let Some((key, node)) = self.current else {
            return Err(DecodeError::new("value before its key".to_owned(), None));
        };
        seed.deserialize(node).map_err(|error| error.below(Step::Key(key.clone()), &node.origin))
    }
}

/// A type that may be written short, as a scalar, or long, as a table.
pub fn from_table<'de, T: Deserialize<'de>, A: MapAccess<'de>>(map: A) -> Result<T, A::Error> {
    T::deserialize(MapAccessDeserializer::new(map))
}
