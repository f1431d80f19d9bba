//! `WWW-Authenticate`: what a registry wants to see before it answers.

/// One way to prove oneself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from somewhere else.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Parses one header value, which may hold several challenges. Schemes that we do not know are left out.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let (scheme, after) = token(rest);
        if scheme.is_empty() {
            break;
        }
        let (parameters, after) = parameters(after);
        rest = after;
        let get =
            |name: &str| parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            challenges.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
        }
    }
    challenges
}

/// `key=value` pairs up to the next scheme, which is a word without `=`.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let start = rest.trim_start_matches([' ', '\t', ',']);
        let (key, after) = token(start);
        let after = after.trim_start();
        let Some(value) = after.strip_prefix('=').filter(|_| !key.is_empty()) else {
            return (found, start);
        };
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (word, after) = token(value);
                (word.to_owned(), after)
            }
        };
        found.push((key.to_owned(), value));
        rest = after;
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| c.is_ascii_whitespace() || matches!(c, ',' | '=' | '"')).unwrap_or(text.len());
    text.split_at(end)
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.into(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn challenges_of_real_registries_are_understood() {
        assert_eq!(
            parse(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#
            ),
            [bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"))]
        );
        assert_eq!(parse(r#"Basic realm="Registry Realm""#), [Challenge::Basic]);
        assert_eq!(parse("basic"), [Challenge::Basic]);
        assert_eq!(
            parse(r#"Negotiate, Basic realm=x, Bearer realm="https://r/t" , service = s"#),
            [Challenge::Basic, bearer("https://r/t", Some("s"), None)]
        );
        assert_eq!(parse(r#"Bearer realm="a\"b"#), [bearer("a\"b", None, None)]);
        assert_eq!(parse("Bearer service=x"), []);
        assert_eq!(parse(",,="), []);
    }

    proptest::proptest! {
        #[test]
        fn any_header_ends(text in "\\PC{0,120}") {
            let _ = parse(&text);
        }
    }
}
