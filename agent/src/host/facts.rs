//! What a config may name: who this host is.

use std::net::{IpAddr, UdpSocket};

use super::{Host, RootError};
use crate::config::Facts;

impl Host {
    /// Machine id, name and address, as far as they are known. A tree that does not run has no name and address yet.
    pub fn facts(&self) -> Result<Facts, RootError> {
        let machine_id = self.root.read_text("/etc/machine-id")?.map(|text| text.trim().to_owned());
        let machine_id = machine_id.filter(|id| !id.is_empty() && id != "uninitialized");
        if self.is_offline() {
            return Ok(Facts { machine_id, hostname: None, ip: None });
        }
        let hostname = self.root.read_text("/proc/sys/kernel/hostname")?.map(|text| text.trim().to_owned());
        let hostname = hostname.filter(|name| !name.is_empty() && name != "(none)");
        Ok(Facts { machine_id, hostname, ip: outward_address() })
    }
}

/// The source address that the kernel would use towards a host far away. Connecting a datagram socket sends nothing; the
/// addresses are those reserved for documentation.
fn outward_address() -> Option<IpAddr> {
    let towards = |local: &str, far: &str| {
        let socket = UdpSocket::bind((local, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    };
    towards("0.0.0.0", "192.0.2.1").or_else(|| towards("::", "2001:db8::1"))
}
