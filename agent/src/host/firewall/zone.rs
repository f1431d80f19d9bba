//! firewalld's zone files, for a host on which it does not run: edited in place, so that what others wrote stays.

use super::FirewallEntry;

/// Where an admin's zones are; one there hides the vendor's of the same name.
pub const ETC: &str = "/etc/firewalld/zones";
/// The vendor's.
pub const VENDOR: &str = "/usr/lib/firewalld/zones";
/// Which zone is the default.
pub const CONFIG: &str = "/etc/firewalld/firewalld.conf";

/// The default zone, as firewalld.conf has it.
pub fn default_zone(config: &str) -> Option<&str> {
    let mut settings = config.lines().rev().filter_map(|line| line.split_once('='));
    settings.find(|(key, _)| key.trim() == "DefaultZone").map(|(_, zone)| zone.trim()).filter(|zone| !zone.is_empty())
}

/// True when the zone's file has the entry.
pub fn has(text: &str, entry: &FirewallEntry) -> bool {
    elements(&without_comments(text)).any(|element| match entry {
        FirewallEntry::Source { source, .. } => {
            name(element) == "source" && attribute(element, "address") == Some(source.as_str())
        }
        FirewallEntry::Port { port, protocol, .. } => {
            name(element) == "port"
                && attribute(element, "port") == Some(port.as_str())
                && attribute(element, "protocol") == Some(protocol.as_str())
        }
    })
}

/// The text with the entry in it; none when it is no zone file. Values come from validated settings and need no escape.
pub fn with(text: &str, entry: &FirewallEntry) -> Option<String> {
    let end = text.rfind("</zone>")?;
    let line = match entry {
        FirewallEntry::Source { source, .. } => format!("  <source address=\"{source}\"/>\n"),
        FirewallEntry::Port { port, protocol, .. } => format!("  <port port=\"{port}\" protocol=\"{protocol}\"/>\n"),
    };
    Some(format!("{}{line}{}", &text[..end], &text[end..]))
}

/// The text without the entry: its line, as firewalld and we write it. What stands otherwise stays.
pub fn without(text: &str, entry: &FirewallEntry) -> String {
    let is_it = |line: &&str| {
        let line = line.trim();
        line.starts_with('<') && line.ends_with("/>") && line.matches('<').count() == 1 && has(line, entry)
    };
    text.split_inclusive('\n').filter(|line| !is_it(line)).collect()
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<!--") {
        out.push_str(before);
        rest = after.split_once("-->").map_or("", |(_, after)| after);
    }
    out + rest
}

/// What stands between `<` and `>`.
fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split('<').skip(1).filter_map(|part| part.split_once('>').map(|(element, _)| element))
}

fn name(element: &str) -> &str {
    element.split([' ', '\t', '\n', '/']).next().unwrap_or_default()
}

fn attribute<'t>(element: &'t str, wanted: &str) -> Option<&'t str> {
    let mut rest = element;
    while let Some((before, after)) = rest.split_once('=') {
        let name = before.split_whitespace().last().unwrap_or_default();
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let (value, tail) = after[1..].split_once(quote)?;
        if name == wanted {
            return Some(value);
        }
        rest = tail;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    // /usr/lib/firewalld/zones/public.xml of EL 9
    const PUBLIC: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<zone>\n  <short>Public</short>\n  <description>For use \
        in public areas.</description>\n  <!-- <port port=\"10250\" protocol=\"tcp\"/> -->\n  <service name=\"ssh\"/>\n  \
        <forward/>\n</zone>\n";

    fn port(port: &str, protocol: &str) -> FirewallEntry {
        FirewallEntry::Port { zone: "public".into(), port: port.into(), protocol: protocol.into() }
    }

    #[test]
    fn an_entry_is_put_in_once_and_the_rest_stays_byte_by_byte() {
        let kubelet = port("10250", "tcp");
        assert!(!has(PUBLIC, &kubelet), "a comment is none");
        let text = with(PUBLIC, &kubelet).unwrap();
        assert!(has(&text, &kubelet) && !has(&text, &port("10250", "udp")));
        assert_eq!(text.replace("  <port port=\"10250\" protocol=\"tcp\"/>\n</zone>", "</zone>"), PUBLIC);
        assert_eq!(without(&text, &kubelet), PUBLIC, "and out again");
        let source = FirewallEntry::Source { zone: "public".into(), source: "10.244.0.0/16".into() };
        assert!(has("<zone><source\n address='10.244.0.0/16' /></zone>", &source));
        assert_eq!(with("<html></html>", &source), None);
    }

    #[test]
    fn the_default_zone_is_the_last_one_that_is_set() {
        assert_eq!(default_zone("# DefaultZone=x\nDefaultZone=public\nMinimalMark=100\n"), Some("public"));
        assert_eq!(default_zone("DefaultZone = internal \n"), Some("internal"));
        assert_eq!(default_zone("DefaultZone=\n"), None);
    }
}
