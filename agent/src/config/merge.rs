//! Stage two: several files as one tree, in which each value still knows its file.
//!
//! A later file wins per key. Tables merge key by key; arrays of tables merge by their `name` (a file: by its `path`, a registry: by its
//! `prefix`);
//! any other array is replaced as a whole, because nobody can tell which elements were meant to stay.

use super::tree::{Node, Value};

/// What tells the tables of an array apart, most telling first.
const IDENTITY: [&str; 3] = ["name", "path", "prefix"];

/// `later` over `earlier`.
pub fn merge(earlier: Node, later: Node) -> Node {
    match (earlier.value, later.value) {
        (Value::Table(mut below), Value::Table(above)) => {
            for (key, node) in above {
                let merged = match below.remove(&key) {
                    Some(old) => merge(old, node),
                    None => node,
                };
                below.insert(key, merged);
            }
            Node { value: Value::Table(below), origin: later.origin }
        }
        (Value::Array(below), Value::Array(above)) if by_identity(&below) && by_identity(&above) => {
            Node { value: Value::Array(merge_arrays(below, above)), origin: later.origin }
        }
        (_, value) => Node { value, origin: later.origin },
    }
}

fn merge_arrays(mut below: Vec<Node>, above: Vec<Node>) -> Vec<Node> {
    for node in above {
        let same = below.iter().position(|old| identity(old).is_some() && identity(old) == identity(&node));
        match same {
            Some(index) => {
                let old = below.remove(index);
                below.insert(index, merge(old, node));
            }
            None => below.push(node),
        }
    }
    below
}

/// Whether every element is a table with a name.
fn by_identity(nodes: &[Node]) -> bool {
    nodes.iter().all(|node| identity(node).is_some())
}

/// The name by which a table of an array is known.
pub fn identity(node: &Node) -> Option<&str> {
    IDENTITY.iter().find_map(|key| match node.get(key).map(|node| &node.value) {
        Some(Value::String(text)) => Some(text.as_str()),
        _ => None,
    })
}

/// Names that one file gives twice: the second is a slip, not an override.
pub fn duplicates(nodes: &[Node]) -> Vec<(&Node, &Node)> {
    let mut found = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let first = nodes[..index].iter().find(|other| identity(other).is_some() && identity(other) == identity(node));
        found.extend(first.map(|first| (first, node)));
    }
    found
}
