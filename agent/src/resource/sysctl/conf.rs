//! sysctl.d(5): how the files are read, and which of them wins.

use crate::host::kernel::Parameter;

/// Directories in the order in which a name hides the same name further on.
pub const DIRS: [&str; 5] =
    ["/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"];

/// One line that means something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name below /proc/sys, with slashes; may be a glob.
    pub path: String,
    /// None takes the name out of what globs match.
    pub value: Option<String>,
    /// A failure to set it is of no interest.
    pub optional: bool,
}

impl Setting {
    fn is_glob(&self) -> bool {
        self.path.contains(['*', '?', '['])
    }
}

/// The settings of one file. Lines that mean nothing are passed over, as systemd-sysctl and sysctl(8) do.
pub fn parse(text: &str) -> Vec<Setting> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Setting> {
    let line = line.trim();
    if line.is_empty() || line.starts_with(['#', ';']) {
        return None;
    }
    let (optional, line) = match line.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (name, value) = match line.split_once('=') {
        Some((name, value)) => (name, Some(value.trim().to_owned())),
        // only with a dash does a name without a value mean something
        None if optional => (line, None),
        None => return None,
    };
    let path = normal_path(name.trim())?;
    Some(Setting { path, value, optional })
}

/// As [`Parameter::parse`], but globs pass.
fn normal_path(name: &str) -> Option<String> {
    if name.is_empty() {
        return None;
    }
    let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if slashes { name.to_owned() } else { name.chars().map(swap).collect() };
    Some(path.trim_start_matches('/').to_owned())
}

/// Who sets a parameter at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Winner {
    /// The file.
    pub file: String,
    /// To what.
    pub value: String,
}

/// The setting that counts in the end: of names that are written out the last one; only without such, the last glob that
/// matches and whose matches the name is not taken out of.
pub fn winner(files: &[(String, Vec<Setting>)], parameter: &Parameter) -> Option<Winner> {
    let mut plain = None;
    let mut glob = None;
    for (file, setting) in files.iter().flat_map(|(file, settings)| settings.iter().map(move |each| (file, each))) {
        let found = |value: &String| Some(Winner { file: file.clone(), value: value.clone() });
        if setting.is_glob() {
            if matches(&setting.path, parameter.path()) {
                glob = setting.value.as_ref().map(found).unwrap_or(glob);
            }
        } else if setting.path == parameter.path() {
            plain = Some(setting.value.as_ref().and_then(found));
        }
    }
    plain.unwrap_or(glob)
}

/// glob(7) over a path: `*` and `?` do not match a slash.
fn matches(pattern: &str, path: &str) -> bool {
    let (patterns, parts) = (pattern.split('/'), path.split('/'));
    patterns.clone().count() == parts.clone().count()
        && patterns.zip(parts).all(|(pattern, part)| matches_part(pattern.as_bytes(), part.as_bytes()))
}

fn matches_part(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            matches_part(rest, text) || text.split_first().is_some_and(|(_, tail)| matches_part(pattern, tail))
        }
        ([b'?', rest @ ..], [_, tail @ ..]) => matches_part(rest, tail),
        ([b'[', rest @ ..], [byte, tail @ ..]) => match rest.iter().position(|b| *b == b']') {
            Some(end) => in_set(&rest[..end], *byte) && matches_part(&rest[end + 1..], tail),
            None => *byte == b'[' && matches_part(rest, tail),
        },
        ([first, rest @ ..], [byte, tail @ ..]) => first == byte && matches_part(rest, tail),
        _ => false,
    }
}

fn in_set(set: &[u8], byte: u8) -> bool {
    let (negated, set) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let mut at = 0;
    let mut found = false;
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == b'-' {
            found |= (set[at]..=set[at + 2]).contains(&byte);
            at += 3;
        } else {
            found |= set[at] == byte;
            at += 1;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(texts: &[(&str, &str)]) -> Vec<(String, Vec<Setting>)> {
        texts.iter().map(|(name, text)| ((*name).to_owned(), parse(text))).collect()
    }

    fn wins(texts: &[(&str, &str)], key: &str) -> Option<(String, String)> {
        winner(&files(texts), &Parameter::parse(key).unwrap()).map(|winner| (winner.file, winner.value))
    }

    #[test]
    fn lines_are_read_as_the_manual_says() {
        let text = "# c\n ; c\n\nnet.ipv4.ip_forward=1\n -a.b = x y \nnet/ipv4/conf/eth0.1/forwarding = 0\nk.d = a=b\n-c.d\njunk\n= 5\nkernel.empty =\n";
        let read: Vec<(String, Option<String>, bool)> =
            parse(text).into_iter().map(|each| (each.path, each.value, each.optional)).collect();
        let expected = [
            ("net/ipv4/ip_forward", Some("1"), false),
            ("a/b", Some("x y"), true),
            ("net/ipv4/conf/eth0.1/forwarding", Some("0"), false),
            ("k/d", Some("a=b"), false),
            ("c/d", None, true),
            ("kernel/empty", Some(""), false),
        ];
        let expected: Vec<(String, Option<String>, bool)> =
            expected.iter().map(|(a, b, c)| ((*a).to_owned(), b.map(str::to_owned), *c)).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn the_last_plain_name_wins_and_any_plain_name_beats_a_glob() {
        let rp = "net.ipv4.conf.all.rp_filter";
        assert_eq!(
            wins(&[("a", "net.ipv4.conf.all.rp_filter=1"), ("b", "net/ipv4/conf/all/rp_filter=2")], rp),
            Some(("b".into(), "2".into()))
        );
        assert_eq!(
            wins(&[("a", "net.ipv4.conf.all.rp_filter=1"), ("b", "net.ipv4.conf.*.rp_filter=2")], rp),
            Some(("a".into(), "1".into()))
        );
        assert_eq!(wins(&[("b", "net.ipv4.conf.*.rp_filter=2")], rp), Some(("b".into(), "2".into())));
        assert_eq!(wins(&[("b", "net.ipv4.conf.*.rp_filter=2\n-net.ipv4.conf.all.rp_filter\n")], rp), None);
        assert_eq!(wins(&[("b", "net.ipv4.*.rp_filter=2")], rp), None);
    }

    #[test]
    fn globs_have_sets_and_single_characters() {
        for (pattern, text, yes) in [
            ("eth?", "eth0", true),
            ("eth[0-3]", "eth4", false),
            ("eth[!0-3]", "eth4", true),
            ("*", "", true),
            ("e*h*0", "eth0.100", true),
        ] {
            assert_eq!(matches(pattern, text), yes, "{pattern} {text}");
        }
    }
}
