//! The `[Install]` section of unit files, systemd.unit(5), and the names of units.

/// Suffixes of unit names.
const TYPES: [&str; 11] =
    ["service", "socket", "target", "device", "mount", "automount", "swap", "timer", "path", "slice", "scope"];

/// What `[Install]` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Install {
    pub(super) alias: Vec<String>,
    pub(super) wanted_by: Vec<String>,
    pub(super) required_by: Vec<String>,
    pub(super) upheld_by: Vec<String>,
    pub(super) also: Vec<String>,
    pub(super) default_instance: Option<String>,
}

impl Install {
    /// Adds what a file says; an empty assignment forgets what came before.
    pub(super) fn read(&mut self, text: &str) {
        let mut in_install = false;
        for line in logical_lines(text) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with('[') {
                in_install = line == "[Install]";
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| in_install) else { continue };
            let list = match key.trim() {
                "Alias" => &mut self.alias,
                "WantedBy" => &mut self.wanted_by,
                "RequiredBy" => &mut self.required_by,
                "UpheldBy" => &mut self.upheld_by,
                "Also" => &mut self.also,
                "DefaultInstance" => {
                    self.default_instance = Some(value.trim().to_owned()).filter(|name| !name.is_empty());
                    continue;
                }
                _ => continue,
            };
            if value.trim().is_empty() {
                list.clear();
            }
            list.extend(value.split_whitespace().map(|word| word.trim_matches('"').to_owned()));
        }
    }

    /// True when enabling makes no link of the unit's own.
    pub(super) fn is_empty(&self) -> bool {
        self.alias.is_empty() && self.wanted_by.is_empty() && self.required_by.is_empty() && self.upheld_by.is_empty()
    }

    /// In the order of the link directories.
    pub(super) fn link_lists(&self) -> [&Vec<String>; 3] {
        [&self.wanted_by, &self.required_by, &self.upheld_by]
    }
}

/// A backslash at the end joins a line with the next; comment lines between are left out.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        if open && line.trim_start().starts_with(['#', ';']) {
            continue;
        }
        let (part, more) = match line.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (line, false),
        };
        match lines.last_mut().filter(|_| open) {
            Some(last) => {
                last.push(' ');
                last.push_str(part);
            }
            None => lines.push(part.to_owned()),
        }
        open = more;
    }
    lines
}

/// A unit file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnitFile {
    /// As asked for.
    pub(super) name: String,
    /// The file, behind all links.
    pub(super) path: String,
    pub(super) masked: bool,
    pub(super) install: Install,
}

impl UnitFile {
    pub(super) fn new(name: &str, path: &str) -> UnitFile {
        UnitFile { name: name.to_owned(), path: path.to_owned(), masked: false, install: Install::default() }
    }

    pub(super) fn masked(name: &str) -> UnitFile {
        UnitFile { masked: true, ..UnitFile::new(name, "/dev/null") }
    }

    /// The name that links get: a template's is that of its default instance; none when it has none.
    pub(super) fn enabled_name(&self) -> Option<String> {
        if !is_template(&self.name) {
            return Some(self.name.clone());
        }
        let instance = self.install.default_instance.as_ref()?;
        let (stem, suffix) = self.name.split_once("@.")?;
        Some(format!("{stem}@{instance}.{suffix}"))
    }

    /// Replaces the specifiers that make sense in `[Install]`.
    pub(super) fn expand(&self, text: &str) -> String {
        let name = self.enabled_name().unwrap_or_else(|| self.name.clone());
        let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
        let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
        let mut out = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some('n') => out.push_str(&name),
                Some('N') => out.push_str(stem),
                Some('p') => out.push_str(prefix),
                Some('i' | 'I') => out.push_str(instance),
                Some('j') => out.push_str(prefix.rsplit('-').next().unwrap_or(prefix)),
                Some('%') => out.push('%'),
                // depends on the machine that will boot: left as it is, which is a name that no unit has
                Some(other) => out.extend(['%', other]),
                None => out.push('%'),
            }
        }
        out
    }
}

/// `foo@.service`
pub(super) fn is_template(name: &str) -> bool {
    name.contains("@.")
}

/// `foo@.service` of `foo@bar.service`.
pub(super) fn template_of(name: &str) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.')?;
    let (prefix, instance) = stem.split_once('@')?;
    (!instance.is_empty()).then(|| format!("{prefix}@.{suffix}"))
}

/// Letters, digits and `:-_.\@`, with a type at the end.
pub(super) fn is_unit_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.' | b'\\' | b'@');
    let Some((stem, suffix)) = name.rsplit_once('.') else { return false };
    !stem.is_empty() && TYPES.contains(&suffix) && name.len() <= 255 && name.bytes().all(plain)
}

/// The last part of a path.
pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_sections_are_read_as_systemd_reads_them() {
        let mut install = Install::default();
        install
            .read("[Unit]\nWantedBy=no.target\n[Install]\n# c\nWantedBy=a.target \\\n; c\n  b.target\nAlso=x.socket\n");
        assert_eq!(install.wanted_by, ["a.target", "b.target"]);
        install.read("[Install]\nWantedBy=\nWantedBy=c.target\n");
        assert_eq!((install.wanted_by, install.also), (vec!["c.target".to_owned()], vec!["x.socket".to_owned()]));
    }

    #[test]
    fn specifiers_are_those_of_the_enabled_instance() {
        let mut unit = UnitFile::new("getty@.service", "/usr/lib/systemd/system/getty@.service");
        unit.install.default_instance = Some("tty1".into());
        assert_eq!(unit.enabled_name().unwrap(), "getty@tty1.service");
        assert_eq!(unit.expand("%p-%i.target %N %% %n"), "getty-tty1.target getty@tty1 % getty@tty1.service");
    }
}
