//! `${machine_id}`, `${hostname}` and `${ip}` in values, and nothing else: a config is not a program.

use std::net::IpAddr;

use super::error::{ConfigError, nearest};
use super::tree::{Node, Step, Value, dotted};

/// What values may name. None is what is not known: a tree that is being built has no hostname yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `/etc/machine-id`
    pub machine_id: Option<String>,
    /// The kernel's host name.
    pub hostname: Option<String>,
    /// The address that the host uses towards the outside.
    pub ip: Option<IpAddr>,
}

const NAMES: [&str; 3] = ["machine_id", "hostname", "ip"];

impl Facts {
    fn get(&self, name: &str) -> Option<Option<String>> {
        match name {
            "machine_id" => Some(self.machine_id.clone()),
            "hostname" => Some(self.hostname.clone()),
            "ip" => Some(self.ip.map(|ip| ip.to_string())),
            _ => None,
        }
    }
}

/// Replaces the names in every text of `node`.
pub fn interpolate(node: &mut Node, facts: &Facts) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    walk(node, facts, &mut Vec::new(), &mut errors);
    errors
}

fn walk(node: &mut Node, facts: &Facts, path: &mut Vec<Step>, errors: &mut Vec<ConfigError>) {
    match &mut node.value {
        Value::String(text) => match expand(text, facts) {
            Ok(expanded) => *text = expanded,
            Err((problem, hint)) => {
                errors.push(ConfigError { origin: node.origin.clone(), key: dotted(path), problem, hint });
            }
        },
        Value::Array(nodes) => {
            for (index, node) in nodes.iter_mut().enumerate() {
                path.push(Step::Index(index));
                walk(node, facts, path, errors);
                path.pop();
            }
        }
        Value::Table(table) => {
            for (key, node) in table {
                path.push(Step::Key(key.clone()));
                walk(node, facts, path, errors);
                path.pop();
            }
        }
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => {}
    }
}

fn expand(text: &str, facts: &Facts) -> Result<String, (String, Option<String>)> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            // $${name} is a literal ${name}
            out.push_str(before);
            out.push_str("${");
            rest = &from[2..];
            continue;
        }
        out.push_str(before);
        let Some((name, after)) = from[2..].split_once('}') else {
            return Err(("\"${\" without its \"}\"".to_owned(), Some("write $${ for a literal ${".to_owned())));
        };
        match facts.get(name) {
            Some(Some(value)) => out.push_str(&value),
            Some(None) => return Err((format!("${{{name}}} is not known on this root"), None)),
            None => {
                let near = nearest(name, &NAMES).unwrap_or_default();
                let hint = format!("{near}{}write $${{{name}}} for a literal", if near.is_empty() { "" } else { "; " });
                return Err((format!("unknown name ${{{name}}}"), Some(hint)));
            }
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { machine_id: Some("0123".into()), hostname: Some("node-1".into()), ip: None }
    }

    #[test]
    fn names_are_replaced_and_doubled_dollars_are_kept() {
        let cases = [
            ("plain $HOME $", "plain $HOME $"),
            ("${hostname}.example", "node-1.example"),
            ("a${machine_id}b${hostname}", "a0123bnode-1"),
            ("$${hostname}", "${hostname}"),
            ("$${hostname} ${hostname}", "${hostname} node-1"),
            ("", ""),
        ];
        for (text, want) in cases {
            assert_eq!(expand(text, &facts()).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_an_error_that_says_what_could() {
        assert_eq!(expand("${ip}", &facts()).unwrap_err().0, "${ip} is not known on this root");
        let (problem, hint) = expand("${hostnme}", &facts()).unwrap_err();
        assert_eq!(problem, "unknown name ${hostnme}");
        assert_eq!(hint.unwrap(), "did you mean \"hostname\"?; write $${hostnme} for a literal");
        assert!(expand("${hostname", &facts()).is_err());
    }
}
