//! What a host is beside its kernel and packages: clock, name, networks, firewall, limits, registries.
//!
//! Both stages of these tables are here, as written and as settled, because each is small and only its own resource reads it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize};

use super::value::{InvalidValue, NodeName};

/// `[time]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TimeFragment {
    /// A time service is enabled and runs; without it the host's clock is left alone.
    pub require_sync: Option<bool>,
}

/// `[hostname]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HostnameFragment {
    /// The host's name, now and at boot; without it the name is left alone.
    pub name: Option<NodeName>,
}

/// `[network]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkFragment {
    /// "auto" (the interfaces of the usual pod networks), "keep", or a list of patterns.
    #[schemars(with = "Option<UnmanagedForm>")]
    pub unmanaged_interfaces: Option<Unmanaged>,
    /// nm-cloud-setup, which takes the routes of pod networks away, is stopped and disabled.
    pub disable_nm_cloud_setup: Option<bool>,
}

/// `[firewall]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FirewallFragment {
    /// manage, trusted, off or keep.
    pub mode: Option<FirewallMode>,
    /// Networks of pods, which are trusted.
    pub pod_cidrs: Option<Vec<Cidr>>,
    /// Networks of services, which are trusted.
    pub service_cidrs: Option<Vec<Cidr>>,
    /// Ports beside those that the node's role needs: "4789/udp".
    pub ports: Option<Vec<Port>>,
}

/// `[limits]`, for the kubelet and the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsFragment {
    /// Open files.
    pub nofile: Option<u64>,
    /// Processes.
    pub nproc: Option<u64>,
    /// Bytes that can be locked into memory.
    pub memlock: Option<u64>,
    /// Tasks of the unit's cgroup.
    pub tasks: Option<u64>,
}

/// `[[registries]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryFragment {
    /// Images whose name begins so; fragments merge by it.
    pub prefix: RegistryPlace,
    /// Where they really are.
    pub location: Option<RegistryPlace>,
    /// Plain HTTP, or certificates that nobody checks; needs accept_insecure too.
    pub insecure: Option<bool>,
    /// Says that `insecure` is meant.
    pub accept_insecure: Option<bool>,
    /// Nothing is pulled from there.
    pub blocked: Option<bool>,
    /// Asked first, in this order.
    pub mirrors: Option<Vec<RegistryPlace>>,
}

/// All of it, settled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostSettings {
    /// A time service has to run.
    pub time_sync: bool,
    /// The host's name; none is left alone.
    pub hostname: Option<NodeName>,
    /// Interfaces that NetworkManager has to leave alone.
    pub unmanaged: Unmanaged,
    /// nm-cloud-setup is stopped and disabled.
    pub disable_nm_cloud_setup: bool,
    /// The firewall.
    pub firewall: FirewallSettings,
    /// Limits of the kubelet and the runtime.
    pub limits: LimitSettings,
    /// Registries, sorted by prefix.
    pub registries: Vec<RegistrySettings>,
}

/// `[firewall]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FirewallSettings {
    /// What is done about it.
    pub mode: FirewallMode,
    /// Trusted networks.
    pub sources: Vec<Cidr>,
    /// Ports beside those of the role.
    pub ports: Vec<Port>,
}

/// `firewall.mode`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallMode {
    /// firewalld stays: networks of pods are trusted, the role's ports are open.
    Manage,
    /// firewalld stays, and lets everything pass.
    Trusted,
    /// No firewalld.
    Off,
    /// As the host has it.
    #[default]
    Keep,
}

/// `[limits]`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LimitSettings {
    /// Open files.
    pub nofile: Option<u64>,
    /// Processes.
    pub nproc: Option<u64>,
    /// Bytes that can be locked into memory.
    pub memlock: Option<u64>,
    /// Tasks of the unit's cgroup.
    pub tasks: Option<u64>,
}

/// One registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegistrySettings {
    /// Images whose name begins so.
    pub prefix: RegistryPlace,
    /// Where they really are.
    pub location: Option<RegistryPlace>,
    /// Plain HTTP, or certificates that nobody checks.
    pub insecure: bool,
    /// Nothing is pulled from there.
    pub blocked: bool,
    /// Asked first.
    pub mirrors: Vec<RegistryPlace>,
}

/// `network.unmanaged_interfaces`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unmanaged {
    /// Those of the usual pod networks.
    #[default]
    Auto,
    /// As the host has it.
    Keep,
    /// These.
    Only(Vec<String>),
}

/// How it is written, for the schema.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)] // only its shape is of use
enum UnmanagedForm {
    /// "auto" or "keep".
    Word(String),
    /// Patterns.
    List(Vec<String>),
}

impl<'de> Deserialize<'de> for Unmanaged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unmanaged, D::Error> {
        struct Words;
        impl<'de> serde::de::Visitor<'de> for Words {
            type Value = Unmanaged;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", \"keep\" or a list of patterns such as [\"cali*\"]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Unmanaged, E> {
                match text {
                    "auto" => Ok(Unmanaged::Auto),
                    "keep" => Ok(Unmanaged::Keep),
                    _ => Err(E::custom(format!("{text:?} is neither \"auto\" nor \"keep\" nor a list"))),
                }
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Unmanaged, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element::<String>()? {
                    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.*?".contains(&b);
                    // interface names have at most 15 bytes; a pattern may be a little longer
                    if name.is_empty() || name.len() > 31 || !name.bytes().all(plain) {
                        let problem = format!("{name:?} is no name of an interface, nor a pattern such as \"cali*\"");
                        return Err(serde::de::Error::custom(problem));
                    }
                    names.push(name);
                }
                Ok(Unmanaged::Only(names))
            }
        }
        deserializer.deserialize_any(Words)
    }
}

/// A value that is kept as it was written, once it has been understood.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
        #[schemars(transparent)]
        pub struct $name(String);

        impl $name {
            /// As written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

text_type! {
    /// A network: `10.244.0.0/16`.
    Cidr
}

super::value::deserialize_from_text!(Cidr, "a network in quotes, such as \"10.244.0.0/16\"");

impl FromStr for Cidr {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Cidr, InvalidValue> {
        let valid = text.split_once('/').is_some_and(|(address, length)| {
            let most = match address.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            length.parse::<u8>().is_ok_and(|length| length <= most)
        });
        match valid {
            true => Ok(Cidr(text.to_owned())),
            false => Err(InvalidValue(format!("{text:?} is no network; want ADDRESS/LENGTH, such as 10.244.0.0/16"))),
        }
    }
}

text_type! {
    /// A port, or a range, with its protocol: `10250/tcp`, `30000-32767/udp`.
    Port
}

super::value::deserialize_from_text!(Port, "a port with its protocol in quotes, such as \"4789/udp\"");

impl FromStr for Port {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Port, InvalidValue> {
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let valid = text.split_once('/').is_some_and(|(ports, protocol)| {
            let range = ports.split_once('-').map_or_else(
                || number(ports).is_some(),
                |(first, last)| matches!((number(first), number(last)), (Some(a), Some(b)) if a < b),
            );
            range && matches!(protocol, "tcp" | "udp" | "sctp")
        });
        match valid {
            true => Ok(Port(text.to_owned())),
            false => Err(InvalidValue(format!("{text:?} is no port; want NUMBER/PROTOCOL, such as 4789/udp"))),
        }
    }
}

impl Port {
    /// Number or range, and protocol.
    pub fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or((&self.0, "tcp"))
    }
}

text_type! {
    /// A registry, or a part of one: `registry.example.com:5000/team`.
    RegistryPlace
}

super::value::deserialize_from_text!(RegistryPlace, "a registry in quotes, such as \"registry.example.com:5000/team\"");

impl FromStr for RegistryPlace {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<RegistryPlace, InvalidValue> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_:/*".contains(&b);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(plain) || text.contains("//") || text.ends_with('/')
        {
            return Err(InvalidValue(format!(
                "{text:?} is no registry; want HOST[:PORT][/PATH] without a scheme, such as registry.example.com:5000"
            )));
        }
        Ok(RegistryPlace(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_or_refused_with_what_would_be_right() {
        for good in ["10.244.0.0/16", "fd00::/64"] {
            assert_eq!(good.parse::<Cidr>().unwrap().as_str(), good);
        }
        for bad in ["10.244.0.0", "10.244.0.0/33", "pods/16", ""] {
            assert!(bad.parse::<Cidr>().unwrap_err().to_string().contains("10.244.0.0/16"), "{bad}");
        }
        assert_eq!("30000-32767/udp".parse::<Port>().unwrap().parts(), ("30000-32767", "udp"));
        for bad in ["0/tcp", "80", "80/icmp", "90-80/tcp", "70000/tcp"] {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
        for bad in ["https://x", "x/", "", "a b"] {
            assert!(bad.parse::<RegistryPlace>().is_err(), "{bad}");
        }
        assert!("*.example.com".parse::<RegistryPlace>().is_ok());
    }
}
