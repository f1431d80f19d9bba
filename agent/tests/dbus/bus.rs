//! A message bus of the test's own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use zbus::connection;

use super::mock::{PATH, job_path};

/// A dbus-daemon of the test's own.
pub struct PrivateBus {
    child: Child,
    pub address: String,
}

impl PrivateBus {
    /// None where the program is not installed.
    pub fn start(dir: &Path) -> Option<PrivateBus> {
        let config = dir.join("bus.conf");
        let text = format!(
            "<busconfig><type>system</type><listen>unix:path={}/bus</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
            dir.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("dbus-daemon: {error}"),
        };
        let mut address = String::new();
        // the line comes when the bus listens
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut address).unwrap();
        Some(PrivateBus { child, address: address.trim().to_owned() })
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends the end of a job as somebody who is not systemd.
pub async fn spoof(bus: &PrivateBus, id: u32, result: &str) {
    let connection = connection::Builder::address(bus.address.as_str()).unwrap().build().await.unwrap();
    let body = (id, job_path(id), "x.service", result);
    let interface = "org.freedesktop.systemd1.Manager";
    connection.emit_signal(None::<&str>, PATH, interface, "JobRemoved", &body).await.unwrap();
}
