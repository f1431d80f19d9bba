//! The INI dialect of .repo files, as dnf reads it: sections, `key = value`, values that go on in indented lines.

/// One section, keys in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The repository's id.
    pub name: String,
    /// Keys in lower case. Of a key that stands twice the last counts.
    pub entries: Vec<(String, String)>,
}

impl Section {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A key that is true unless it says otherwise, or the other way round.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        match self.get(key).map(str::to_ascii_lowercase).as_deref() {
            Some("1" | "yes" | "true" | "on") => true,
            Some("0" | "no" | "false" | "off") => false,
            _ => default,
        }
    }

    /// A value that is a list: separated by blanks, commas or lines.
    pub fn list(&self, key: &str) -> Vec<&str> {
        self.get(key).unwrap_or_default().split([' ', '\t', ',', '\n']).filter(|word| !word.is_empty()).collect()
    }
}

/// The sections of a file. Lines that belong to none are passed over; the second value says that there were some: a file that
/// is no .repo at all, such as a saved error page.
pub fn parse(text: &str) -> (Vec<Section>, bool) {
    let mut sections: Vec<Section> = Vec::new();
    let mut junk = false;
    for line in text.lines() {
        let body = line.trim();
        if body.is_empty() || body.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(name, _)| name) {
            sections.push(Section { name: name.to_owned(), entries: Vec::new() });
            continue;
        }
        let Some(section) = sections.last_mut() else {
            junk = true;
            continue;
        };
        if line.starts_with([' ', '\t']) {
            match section.entries.last_mut() {
                Some((_, value)) => {
                    value.push('\n');
                    value.push_str(body);
                }
                None => junk = true,
            }
        } else if let Some((key, value)) = body.split_once('=') {
            section.entries.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        } else {
            junk = true;
        }
    }
    (sections, junk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_on_in_indented_lines() {
        let (sections, junk) = parse("# c\n[a]\nBaseURL = http://x/\n   http://y/\n;c\nenabled=0\n\n[b]\nname=B = b\n");
        assert!(!junk);
        assert_eq!(sections[0].list("baseurl"), ["http://x/", "http://y/"]);
        assert!(!sections[0].flag("enabled", true));
        assert_eq!((sections[1].name.as_str(), sections[1].get("name")), ("b", Some("B = b")));
        assert!(sections[1].flag("enabled", true));
    }

    #[test]
    fn a_page_that_is_no_repo_file_is_recognised() {
        assert!(parse("<!DOCTYPE html>\n<html>404</html>\n").1);
    }
}
