//! Settings per host: containerd's `certs.d/<host>/hosts.toml`, and the certificates that Docker and containers tools
//! find in `certs.d/<host>/`.

use std::path::{Path, PathBuf};

use super::conf::{ConfError, text};

/// How to talk TLS to a host, beyond the platform's trust store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    /// Any certificate will do.
    pub skip_verify: bool,
    /// Files with additional authorities.
    pub ca: Vec<PathBuf>,
    /// Files with our certificate and its key, which may be the same.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// One place that a `hosts.toml` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub http: bool,
    /// `host[:port]`
    pub host: String,
    /// What comes before the repository, `/v2` unless overridden.
    pub base: String,
    /// Good for tags, too.
    pub resolve: bool,
    pub tls: Tls,
    pub headers: Vec<(String, String)>,
    /// The registry itself and not a copy.
    pub origin: bool,
    /// For explanations.
    pub why: String,
}

/// The places for a registry, in order; `None` when no directory says anything about it.
pub(crate) fn load(directories: &[PathBuf], registry: &str) -> Result<Option<Vec<Host>>, ConfError> {
    for directory in directories {
        for name in directory_names(registry).iter().map(String::as_str).chain(["_default"]) {
            let path = directory.join(name).join("hosts.toml");
            if let Some(text) = text(&path)? {
                return parse(&text, &path, registry).map(Some);
            }
        }
    }
    Ok(None)
}

/// Adds the certificates that lie in `<directory>/<host>/`: `*.crt` are authorities, `x.cert` with `x.key` is ours.
pub(crate) fn certificates(directories: &[PathBuf], host: &str, tls: &mut Tls) -> Result<(), ConfError> {
    for directory in directories {
        for name in directory_names(host) {
            let path = directory.join(name);
            let entries = match std::fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(source) => return Err(ConfError::Read { path, source }),
            };
            let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            files.sort();
            for file in files {
                match file.extension().and_then(|end| end.to_str()) {
                    Some("crt") => tls.ca.push(file),
                    Some("cert") => {
                        let key = file.with_extension("key");
                        if !key.exists() {
                            let what = "has no key beside it".to_owned();
                            return Err(ConfError::Value { path: file, what });
                        }
                        tls.client.get_or_insert((file, key));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

/// A colon is not welcome in every file system, so there are two spellings.
fn directory_names(host: &str) -> Vec<String> {
    match host.rsplit_once(':') {
        Some((name, port)) => vec![format!("{name}_{port}_"), host.to_owned()],
        None => vec![host.to_owned()],
    }
}

pub(super) fn parse(text: &str, path: &Path, registry: &str) -> Result<Vec<Host>, ConfError> {
    let table: toml::Table =
        toml::from_str(text).map_err(|source| ConfError::Parse { path: path.to_owned(), source: Box::new(source) })?;
    let reader = Reader { path };
    let mut hosts = Vec::new();
    // in the order of the file, which is the order of preference
    if let Some(entries) = reader.table(&table, "host")? {
        for (url, entry) in entries {
            let entry = entry.as_table().ok_or_else(|| reader.wrong(url, "is not a table"))?;
            hosts.extend(reader.host(url, entry, false)?);
        }
    }
    let own = format!("https://{}", if registry == "docker.io" { "registry-1.docker.io" } else { registry });
    let server = match table.get("server") {
        None => own.as_str(),
        Some(value) => value.as_str().ok_or_else(|| reader.wrong("server", "is not a string"))?,
    };
    hosts.extend(reader.host(server, &table, true)?);
    Ok(hosts)
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn wrong(&self, key: &str, what: &str) -> ConfError {
        ConfError::Value { path: self.path.to_owned(), what: format!("{key} {what}") }
    }

    fn table<'t>(&self, table: &'t toml::Table, key: &str) -> Result<Option<&'t toml::Table>, ConfError> {
        table.get(key).map(|value| value.as_table().ok_or_else(|| self.wrong(key, "is not a table"))).transpose()
    }

    fn flag(&self, table: &toml::Table, key: &str) -> Result<bool, ConfError> {
        table.get(key).map_or(Ok(false), |value| value.as_bool().ok_or_else(|| self.wrong(key, "is not true or false")))
    }

    /// One place; `None` when it is not good for pulling.
    fn host(&self, url: &str, table: &toml::Table, origin: bool) -> Result<Option<Host>, ConfError> {
        let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let parsed = reqwest::Url::parse(&full).map_err(|_| self.wrong(url, "is not a URL"))?;
        let http = match parsed.scheme() {
            "http" => true,
            "https" => false,
            _ => return Err(self.wrong(url, "is neither http nor https")),
        };
        let name = parsed.host_str().ok_or_else(|| self.wrong(url, "has no host"))?;
        let host = parsed.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        let capabilities = match table.get("capabilities") {
            None => vec!["pull", "resolve"],
            Some(value) => {
                let list = value.as_array().ok_or_else(|| self.wrong("capabilities", "is not a list"))?;
                list.iter().filter_map(toml::Value::as_str).collect()
            }
        };
        if !capabilities.contains(&"pull") {
            return Ok(None);
        }
        let path = parsed.path().trim_end_matches('/');
        let base = if self.flag(table, "override_path")? { path.to_owned() } else { format!("{path}/v2") };
        let mut headers = Vec::new();
        for (name, value) in self.table(table, "header")?.into_iter().flatten() {
            for value in self.strings(name, value)? {
                headers.push((name.clone(), value));
            }
        }
        let tls = Tls {
            skip_verify: self.flag(table, "skip_verify")?,
            ca: table
                .get("ca")
                .map_or(Ok(Vec::new()), |value| self.strings("ca", value))?
                .iter()
                .map(|ca| self.relative(ca))
                .collect(),
            client: self.client(table)?,
        };
        let place = if origin { "server".to_owned() } else { format!("[host.{url:?}]") };
        let why = format!("{place} in {}", self.path.display());
        Ok(Some(Host { http, host, base, resolve: capabilities.contains(&"resolve"), tls, headers, origin, why }))
    }

    /// `"both.pem"`, `["both.pem"]` or `[["cert.pem", "key.pem"]]`; the first one counts.
    fn client(&self, table: &toml::Table) -> Result<Option<(PathBuf, PathBuf)>, ConfError> {
        let Some(value) = table.get("client") else { return Ok(None) };
        let first = match value {
            toml::Value::Array(list) => list.first(),
            other => Some(other),
        };
        match first {
            None => Ok(None),
            Some(toml::Value::String(both)) => Ok(Some((self.relative(both), self.relative(both)))),
            Some(pair) => match self.strings("client", pair)?.as_slice() {
                [certificate, key] if !key.is_empty() => Ok(Some((self.relative(certificate), self.relative(key)))),
                [both, ..] => Ok(Some((self.relative(both), self.relative(both)))),
                [] => Err(self.wrong("client", "names no file")),
            },
        }
    }

    /// A string or a list of strings.
    fn strings(&self, key: &str, value: &toml::Value) -> Result<Vec<String>, ConfError> {
        let wrong = || self.wrong(key, "is neither a string nor a list of strings");
        match value {
            toml::Value::String(one) => Ok(vec![one.clone()]),
            toml::Value::Array(list) => {
                list.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
            }
            _ => Err(wrong()),
        }
    }

    fn relative(&self, file: &str) -> PathBuf {
        self.path.parent().map_or_else(|| PathBuf::from(file), |directory| directory.join(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_gives_its_places_in_order_and_the_server_last() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("r.example_5000_");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(
            own.join("hosts.toml"),
            r#"
            server = "https://r.example:5000"
            ca = "root.pem"
            [host."http://z-first.example:8080/proxy"]
            capabilities = ["pull"]
            [host."http://z-first.example:8080/proxy".header]
            x-team = ["a", "b"]
            [host."https://a-second.example/direct"]
            override_path = true
            skip_verify = true
            client = [["c.pem", "k.pem"]]
            [host."https://push-only.example"]
            capabilities = ["push"]
            "#,
        )
        .unwrap();
        let hosts = load(&[dir.path().to_owned()], "r.example:5000").unwrap().unwrap();
        let summary: Vec<_> = hosts
            .iter()
            .map(|host| (host.http, host.host.as_str(), host.base.as_str(), host.resolve, host.origin))
            .collect();
        assert_eq!(
            summary,
            [
                (true, "z-first.example:8080", "/proxy/v2", false, false),
                (false, "a-second.example", "/direct", true, false),
                (false, "r.example:5000", "/v2", true, true),
            ]
        );
        assert_eq!(hosts[0].headers, [("x-team".to_owned(), "a".to_owned()), ("x-team".to_owned(), "b".to_owned())]);
        assert_eq!(hosts[1].tls.client, Some((own.join("c.pem"), own.join("k.pem"))));
        assert!(hosts[1].tls.skip_verify && !hosts[2].tls.skip_verify);
        assert_eq!(hosts[2].tls.ca, [own.join("root.pem")]);
        assert_eq!(load(&[dir.path().to_owned()], "other.example").unwrap(), None);
    }

    #[test]
    fn default_applies_to_hosts_without_a_directory_and_errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let default = dir.path().join("_default");
        std::fs::create_dir(&default).unwrap();
        std::fs::write(default.join("hosts.toml"), "[host.'https://m.example']\n").unwrap();
        let hosts = load(&[dir.path().to_owned()], "docker.io").unwrap().unwrap();
        assert_eq!(hosts[0].host, "m.example");
        assert_eq!(hosts[1].host, "registry-1.docker.io");
        for bad in ["server = 5", "[host.'ftp://x']", "host = 1", "[host.'https://x']\nca = 1", "["] {
            std::fs::write(default.join("hosts.toml"), bad).unwrap();
            let error = load(&[dir.path().to_owned()], "docker.io").unwrap_err().to_string();
            assert!(error.contains("_default/hosts.toml"), "{error}");
        }
    }

    #[test]
    fn certificates_lie_beside_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("r.example:5000");
        std::fs::create_dir(&own).unwrap();
        for name in ["ca.crt", "me.cert", "me.key"] {
            std::fs::write(own.join(name), "").unwrap();
        }
        let mut tls = Tls::default();
        certificates(&[dir.path().to_owned()], "r.example:5000", &mut tls).unwrap();
        assert_eq!(tls.ca, [own.join("ca.crt")]);
        assert_eq!(tls.client, Some((own.join("me.cert"), own.join("me.key"))));
        std::fs::remove_file(own.join("me.key")).unwrap();
        assert!(certificates(&[dir.path().to_owned()], "r.example:5000", &mut Tls::default()).is_err());
    }
}
