//! What plugins answer to ADD, in the forms of all versions, brought into one.

use super::version::CniVersion;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::net::IpAddr;

/// Most addresses or interfaces that a result may have.
const MAX_ENTRIES: usize = 256;

/// An answer to ADD.
#[derive(Debug, Clone, PartialEq)]
pub struct AddResult {
    /// interfaces that plugins made or use
    pub interfaces: Vec<Interface>,
    /// addresses with the interface they are on
    pub ips: Vec<Address>,
    /// as answered, with `cniVersion`: input of the next plugin, of CHECK and of DEL
    pub raw: Value,
}

/// An interface, in the pod or on the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// its name
    pub name: String,
    /// hardware address
    #[serde(default)]
    pub mac: String,
    /// the namespace it is in; empty on the host
    #[serde(default)]
    pub sandbox: String,
}

/// An address of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// the address
    pub ip: IpAddr,
    /// length of the network's prefix
    pub prefix: u8,
    /// first hop
    pub gateway: Option<IpAddr>,
    /// index into the interfaces
    pub interface: Option<usize>,
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// not JSON or not of the form that the version wants
    #[error("answer is not a CNI result: {text:?}")]
    Json {
        /// how it begins
        text: String,
        /// what is wrong
        #[source]
        source: serde_json::Error,
    },
    /// an address without length or with letters
    #[error("answer has the address {0:?}")]
    Address(String),
    /// an index beyond the list
    #[error("answer refers to interface {0}, which it does not have")]
    Interface(i64),
    /// more of something than a pod can have
    #[error("answer has {0} entries")]
    TooMany(usize),
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<WrittenAddress>>,
}

/// 0.3 and 0.4 have `version: "4"` besides, which the address says anyway.
#[derive(Deserialize)]
struct WrittenAddress {
    address: String,
    gateway: Option<String>,
    interface: Option<i64>,
}

impl AddResult {
    /// Understands what a plugin wrote when spoken to in `version`.
    pub fn parse(text: &[u8], version: CniVersion) -> Result<Self, ResultError> {
        let json_error = |source| ResultError::Json { text: beginning(text), source };
        let mut object: Map<String, Value> = serde_json::from_slice(text).map_err(json_error)?;
        // some plugins forget it; the next one refuses a previous result without
        let stated = object.get("cniVersion").and_then(Value::as_str).is_some_and(|stated| !stated.is_empty());
        if !stated {
            object.insert("cniVersion".to_owned(), version.as_str().into());
        }
        Self::from_value(Value::Object(object)).map_err(|error| match error {
            ResultError::Json { source, .. } => json_error(source),
            other => other,
        })
    }

    /// Understands a result that was kept.
    pub fn from_value(raw: Value) -> Result<Self, ResultError> {
        let written = Written::deserialize(&raw)
            .map_err(|source| ResultError::Json { text: beginning(raw.to_string().as_bytes()), source })?;
        let interfaces = written.interfaces.unwrap_or_default();
        let addresses = written.ips.unwrap_or_default();
        let most = interfaces.len().max(addresses.len());
        if most > MAX_ENTRIES {
            return Err(ResultError::TooMany(most));
        }
        let ips = addresses.iter().map(|address| understand(address, interfaces.len())).collect::<Result<_, _>>()?;
        Ok(Self { interfaces, ips, raw })
    }

    /// The addresses that are the pod's: on interface `name` inside a namespace, or, where plugins do not say on which
    /// interface, all. In the order given, each once.
    pub fn pod_ips(&self, name: &str) -> Vec<IpAddr> {
        let on_pod_interface = |address: &&Address| {
            let interface = address.interface.and_then(|index| self.interfaces.get(index));
            interface.is_some_and(|interface| interface.name == name && !interface.sandbox.is_empty())
        };
        let mut found: Vec<_> = self.ips.iter().filter(on_pod_interface).collect();
        if found.is_empty() {
            found = self.ips.iter().collect();
        }
        let mut ips = Vec::with_capacity(found.len());
        for address in found {
            if !ips.contains(&address.ip) {
                ips.push(address.ip);
            }
        }
        ips
    }
}

fn understand(written: &WrittenAddress, interfaces: usize) -> Result<Address, ResultError> {
    let bad = || ResultError::Address(written.address.clone());
    let (ip, prefix) = written.address.split_once('/').ok_or_else(bad)?;
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    if prefix > if ip.is_ipv4() { 32 } else { 128 } {
        return Err(bad());
    }
    let gateway = match written.gateway.as_deref() {
        None | Some("") => None,
        Some(text) => Some(text.parse().map_err(|_| ResultError::Address(text.to_owned()))?),
    };
    let interface = match written.interface {
        None => None,
        Some(index) => match usize::try_from(index) {
            Ok(place) if place < interfaces => Some(place),
            _ => return Err(ResultError::Interface(index)),
        },
    };
    Ok(Address { ip, prefix, gateway, interface })
}

/// Enough of an answer to recognise it in an error.
fn beginning(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(200)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<AddResult, ResultError> {
        AddResult::parse(text.as_bytes(), CniVersion::V0_4_0)
    }

    /// Answer of Debian's bridge and host-local, dual stack, spoken to in 0.4.0.
    const V0_4: &str = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"br0","mac":"a2:0e:00:00:00:01"},
        {"name":"veth1234","mac":"a2:0e:00:00:00:02"},{"name":"eth0","mac":"a2:0e:00:00:00:03","sandbox":"/run/netns/x"}],
        "ips":[{"version":"4","interface":2,"address":"10.1.0.2/24","gateway":"10.1.0.1"},
        {"version":"6","interface":2,"address":"fd00::2/64","gateway":"fd00::1"}],
        "routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#;

    #[test]
    fn forms_of_all_versions_give_the_same() {
        let old = parse(V0_4).unwrap();
        let new = V0_4.replace(r#""version":"4","#, "").replace(r#""version":"6","#, "").replace("0.4.0", "1.0.0");
        let new = parse(&new).unwrap();
        assert_eq!((&old.interfaces, &old.ips), (&new.interfaces, &new.ips));
        assert_eq!(old.pod_ips("eth0"), ["10.1.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        assert_eq!((old.ips[0].prefix, old.ips[0].gateway), (24, Some("10.1.0.1".parse().unwrap())));
        assert_eq!(old.raw["routes"][0]["dst"], "0.0.0.0/0");
    }

    #[test]
    fn addresses_of_host_interfaces_are_not_the_pods() {
        let result = parse(
            r#"{"interfaces":[{"name":"eth0"},{"name":"eth0","sandbox":"/n"},{"name":"net1","sandbox":"/n"}],
            "ips":[{"address":"10.0.0.1/8","interface":0},{"address":"10.0.0.3/8","interface":2},
                   {"address":"10.0.0.2/8","interface":1},{"address":"10.0.0.2/8","interface":1}]}"#,
        )
        .unwrap();
        assert_eq!(result.pod_ips("eth0"), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn plugins_that_name_no_interface_or_no_version_are_understood() {
        // as calico 3.15 answers
        let result = parse(r#"{"ips":[{"version":"4","address":"10.2.0.7/32"}],"dns":{}}"#).unwrap();
        assert_eq!(result.pod_ips("eth0"), ["10.2.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(result.raw["cniVersion"], "0.4.0");
        let empty = parse(r#"{"cniVersion":"1.0.0","interfaces":null,"ips":null}"#).unwrap();
        assert!(empty.pod_ips("eth0").is_empty());
        assert_eq!(empty.raw["cniVersion"], "1.0.0");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "ok",
            "[]",
            r#"{"ips":[{}]}"#,
            r#"{"ips":[{"address":"10.0.0.1"}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/33"}]}"#,
            r#"{"ips":[{"address":"pod/24"}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/24","gateway":"x"}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/24","interface":0}]}"#,
            r#"{"interfaces":[{"name":"a"}],"ips":[{"address":"10.0.0.1/24","interface":-1}]}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        let many = vec![r#"{"address":"10.0.0.1/24"}"#; MAX_ENTRIES + 1].join(",");
        assert!(matches!(parse(&format!(r#"{{"ips":[{many}]}}"#)), Err(ResultError::TooMany(257))));
        let Err(ResultError::Json { text, .. }) = parse(&"x".repeat(5000)) else { panic!() };
        assert_eq!(text.len(), 200);
    }

    proptest! {
        #[test]
        fn rubbish_is_an_error_and_no_panic(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
