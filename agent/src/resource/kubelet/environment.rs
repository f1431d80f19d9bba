//! The packages' environment files: flags of others that reach the kubelet, and the same text without those that it does not
//! know any more.

use super::version::Minor;

/// Files from which the packages' drop-in takes flags; a flag there beats our file.
pub const FILES: [&str; 2] = ["/etc/sysconfig/kubelet", "/var/lib/kubelet/kubeadm-flags.env"];

/// What can be done about flags that were removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stripped {
    /// There is none.
    Nothing,
    /// The text without them, and their names.
    Text(String, Vec<String>),
    /// This one stands in quotes of its own, which nobody but a person should take apart.
    ByHand(String),
}

/// Flags in the values of an environment file, systemd.exec(5): quotes around a value are no part of it.
pub fn flags(text: &str) -> Vec<String> {
    let words = values(text).flat_map(|(_, value)| value.split_whitespace());
    words.map(|word| word.trim_matches(QUOTES).replace(QUOTES, "")).filter(|word| word.starts_with("--")).collect()
}

/// Takes the flags out that this minor does not know; everything else stays byte by byte.
pub fn without_removed(text: &str, minor: Minor) -> Stripped {
    let (mut out, mut gone) = (String::with_capacity(text.len()), Vec::new());
    for (before, value) in values(text) {
        out.push_str(before);
        if let Err(word) = strip(value, minor, &mut out, &mut gone) {
            return Stripped::ByHand(word);
        }
    }
    match gone.is_empty() {
        true => Stripped::Nothing,
        false => Stripped::Text(out, gone),
    }
}

const QUOTES: [char; 2] = ['"', '\''];

/// Each line as what is no value (`NAME=`, a comment) and the value, line end included. After a backslash at the end of a line
/// the next one goes on with the value.
fn values(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut goes_on = false;
    text.split_inclusive('\n').map(move |line| {
        let continued = std::mem::replace(&mut goes_on, line.trim_end_matches('\n').ends_with('\\'));
        match line.find('=') {
            _ if continued => ("", line),
            _ if line.trim_start().starts_with(['#', ';']) => {
                // a comment is one line, whatever it ends with
                goes_on = false;
                (line, "")
            }
            Some(at) => line.split_at(at + 1),
            None => (line, ""),
        }
    })
}

/// One value, word by word. The word that could not be taken out is the error.
fn strip(value: &str, minor: Minor, out: &mut String, gone: &mut Vec<String>) -> Result<(), String> {
    // the value of `--flag value` goes with its flag
    let mut argument_follows = false;
    let mut drop_blanks = false;
    let mut rest = value;
    while !rest.is_empty() {
        let word_at = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        let (blanks, tail) = rest.split_at(word_at);
        let (word, tail) = tail.split_at(tail.find(char::is_whitespace).unwrap_or(tail.len()));
        rest = tail;
        let core = word.trim_matches(QUOTES);
        let is_argument =
            std::mem::take(&mut argument_follows) && !core.is_empty() && !core.starts_with('-') && core != "\\";
        let is_removed = core.starts_with("--") && minor.removed(core).is_some();
        if !is_argument && !is_removed {
            out.push_str(if drop_blanks && !word.is_empty() { "" } else { blanks });
            drop_blanks = false;
            out.push_str(word);
            continue;
        }
        let (opening, closing) = quotes_that_stay(word).ok_or_else(|| word.to_owned())?;
        if is_removed {
            argument_follows = !core.contains('=') && closing.is_empty();
            gone.push(core.replace(QUOTES, ""));
        }
        if !opening.is_empty() {
            out.push_str(blanks);
            out.push_str(opening);
        }
        out.push_str(closing);
        // the first word of a value has no blanks before it
        drop_blanks |= !opening.is_empty() || out.ends_with('=');
    }
    Ok(())
}

/// The quote that opens before a word and the one that closes after it, where they belong to the whole value.
fn quotes_that_stay(word: &str) -> Option<(&str, &str)> {
    let (opening, rest) = match word.starts_with(QUOTES) {
        true => word.split_at(1),
        false => ("", word),
    };
    let odd = |quote: &char| rest.matches(*quote).count() % 2 == 1;
    let open: Vec<char> = QUOTES.into_iter().filter(odd).collect();
    match open.as_slice() {
        [] => Some((opening, "")),
        // "--flag" alone is a whole value
        [quote] if rest.ends_with(*quote) => Some((opening, &rest[rest.len() - 1..])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kubernetes::KubernetesVersion;

    fn stripped(text: &str) -> Stripped {
        without_removed(text, "1.36".parse::<KubernetesVersion>().unwrap().into())
    }

    #[test]
    fn removed_flags_go_and_every_other_byte_stays() {
        for (before, after) in [
            ("KUBELET_EXTRA_ARGS=--container-runtime=remote\n", "KUBELET_EXTRA_ARGS=\n"),
            ("A=--v=2 --network-plugin=cni --x=y\n", "A=--v=2 --x=y\n"),
            ("A=--network-plugin=cni --v=2\n", "A=--v=2\n"),
            ("A=\"--network-plugin=cni --v=2\"\n", "A=\"--v=2\"\n"),
            ("A=\"--v=2 --network-plugin=cni\"\n", "A=\"--v=2\"\n"),
            ("A=\"--network-plugin=cni\"\n", "A=\"\"\n"),
            ("A='--cni-bin-dir /opt/cni/bin --v 2'", "A='--v 2'"),
            ("A=--alsologtostderr --v=2", "A=--v=2"),
            ("A=\"--v=2 \\\n  --container-runtime=remote \\\n  --x\"\n", "A=\"--v=2 \\\n \\\n  --x\"\n"),
            ("A=--pod-infra-container-image='k8s.gcr.io/pause:3.2' --v=2\n", "A=--v=2\n"),
        ] {
            let Stripped::Text(text, gone) = stripped(&format!("# --container-runtime=x\n{before}")) else {
                panic!("{before}: {:?}", stripped(before))
            };
            assert_eq!(text, format!("# --container-runtime=x\n{after}"));
            assert_eq!(gone.len(), 1, "{before}: {gone:?}");
            assert_eq!(stripped(&text), Stripped::Nothing, "{text}");
        }
    }

    #[test]
    fn what_a_kubelet_knows_or_a_person_has_quoted_is_left_alone() {
        for text in
            ["", "A=--v=2\n", "# --container-runtime=remote\n", "; x=--network-plugin=cni\n", "--network-plugin\n"]
        {
            assert_eq!(stripped(text), Stripped::Nothing, "{text}");
        }
        assert!(matches!(stripped("A=--docker-endpoint=\"unix:///a b\" --v=2\n"), Stripped::ByHand(_)));
    }

    proptest::proptest! {
        /// Whatever stands there: what is taken out is what was removed, and the rest keeps its order.
        #[test]
        fn words_of_others_survive_in_their_order(words in proptest::collection::vec(
            proptest::sample::select(vec!["--v=2", "--network-plugin=cni", "--node-ip=::1", "--container-runtime=remote", "--x"]), 0..8,
        ), quoted in proptest::bool::ANY) {
            let quote = if quoted { "\"" } else { "" };
            let text = format!("A={quote}{}{quote}\n", words.join(" "));
            let kept: Vec<String> = words.iter()
                .filter(|word| !word.contains("network-plugin") && !word.contains("runtime"))
                .map(|word| (*word).to_owned())
                .collect();
            let after = match stripped(&text) {
                Stripped::Text(after, gone) => {
                    proptest::prop_assert_eq!(gone.len() + kept.len(), words.len());
                    after
                }
                Stripped::Nothing => text.clone(),
                Stripped::ByHand(word) => panic!("{word}"),
            };
            proptest::prop_assert_eq!(flags(&after), kept);
            proptest::prop_assert_eq!(after.matches('"').count(), text.matches('"').count());
        }
    }
}
