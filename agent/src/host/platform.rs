//! What kind of system a root holds. Read from its files, so that it works on a tree that does not run.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::Host;
use super::root::{Root, RootError};

/// Where distributions keep `libsystemd-shared-VERSION.so`, whose name tells systemd's version without running anything.
const SYSTEMD_LIBRARY_DIRS: [&str; 4] = [
    "/usr/lib/systemd",
    "/usr/lib64/systemd",
    "/usr/lib/x86_64-linux-gnu/systemd",
    "/usr/lib/aarch64-linux-gnu/systemd",
];

/// Distributions whose `VERSION_ID` follows EL.
const EL_IDS: [&str; 6] = ["centos", "rhel", "rocky", "almalinux", "ol", "eurolinux"];

/// The majors that are supported.
const EL_MAJORS: [u32; 3] = [8, 9, 10];

/// Why a system's kind is unknown or unsupported.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// A file could not be read.
    #[error("read the system's identity")]
    Read(#[source] RootError),
    /// There is no os-release file.
    #[error("neither /etc/os-release nor /usr/lib/os-release exists: this is no system that the agent knows")]
    NoOsRelease,
    /// The system is not one of those that the agent can provision.
    #[error(
        "{name} is not supported; supported are CentOS Stream, RHEL, Rocky, AlmaLinux and Oracle Linux 8, 9 and 10"
    )]
    Unsupported {
        /// The system's own name.
        name: String,
    },
    /// The running system is not run by systemd.
    #[error("this system is not run by systemd; use --root to prepare a tree that is not running")]
    NoSystemd,
}

/// Which cgroup hierarchy the system uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupMode {
    /// The unified hierarchy alone.
    V2,
    /// Controllers on v1, with or without a v2 tree beside them.
    V1,
    /// A tree that does not run.
    Unknown,
}

/// A system's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `ID` of os-release: `centos`.
    pub id: String,
    /// `ID_LIKE`, as a list.
    pub id_like: Vec<String>,
    /// `PRETTY_NAME`.
    pub name: String,
    /// `VERSION_ID`: `9` or `9.4`.
    pub version: String,
    /// systemd's version, such as 252; none when it is not installed.
    pub systemd: Option<u32>,
    /// `uname -r`, offline the newest installed kernel; empty when there is none.
    pub kernel: String,
    /// In Rust's words: `x86_64`, `aarch64`. The machine's, offline that of the build machine.
    pub arch: &'static str,
    /// cgroup hierarchy.
    pub cgroups: CgroupMode,
}

impl Platform {
    /// CentOS Stream of this version, for tests.
    #[cfg(test)]
    pub(crate) fn example(version: &str, cgroups: CgroupMode) -> Platform {
        Platform {
            id: "centos".into(),
            id_like: vec![],
            name: format!("CentOS Stream {version}"),
            version: version.into(),
            systemd: Some(252),
            kernel: "5.14".into(),
            arch: "x86_64",
            cgroups,
        }
    }

    /// Reads it.
    pub fn detect(host: &Host) -> Result<Platform, PlatformError> {
        let root = &host.root;
        let text = match root.read_text("/etc/os-release").map_err(PlatformError::Read)? {
            Some(text) => text,
            None => {
                root.read_text("/usr/lib/os-release").map_err(PlatformError::Read)?.ok_or(PlatformError::NoOsRelease)?
            }
        };
        let mut fields = parse_os_release(&text);
        let mut field = |name: &str| fields.remove(name).unwrap_or_default();
        let id = field("ID");
        let pretty = field("PRETTY_NAME");
        Ok(Platform {
            name: if pretty.is_empty() { id.clone() } else { pretty },
            id,
            id_like: field("ID_LIKE").split_whitespace().map(str::to_owned).collect(),
            version: field("VERSION_ID"),
            systemd: systemd_version(root).map_err(PlatformError::Read)?,
            kernel: host.kernel.release().to_owned(),
            arch: std::env::consts::ARCH,
            cgroups: cgroup_mode(root).map_err(PlatformError::Read)?,
        })
    }

    /// 9 of CentOS Stream 9; none for systems that are no EL.
    pub fn el_major(&self) -> Option<u32> {
        let is_el = EL_IDS.contains(&self.id.as_str());
        let major = self.version.split('.').next()?.parse().ok()?;
        (is_el && EL_MAJORS.contains(&major)).then_some(major)
    }

    /// An error unless the agent knows how to provision this system.
    pub fn supported(&self) -> Result<(), PlatformError> {
        match self.el_major() {
            Some(_) => Ok(()),
            None => Err(PlatformError::Unsupported { name: self.name.clone() }),
        }
    }
}

/// True when systemd runs this system: its own test, sd_booted(3).
pub fn run_by_systemd(root: &Root) -> Result<bool, RootError> {
    Ok(!root.is_offline() && root.link_metadata("/run/systemd/system")?.is_some())
}

/// `uname -r`.
pub(super) fn running_kernel(root: &Root) -> Result<String, RootError> {
    Ok(root.read_text("/proc/sys/kernel/osrelease")?.unwrap_or_default().trim().to_owned())
}

/// In a chroot `uname -r` is the installer's kernel: the one that will boot is the newest that has modules.
pub fn newest_kernel(root: &Root) -> Result<Option<String>, RootError> {
    let mut newest: Option<String> = None;
    for release in root.list("/lib/modules")?.unwrap_or_default() {
        let has_modules = root.exists(&format!("/lib/modules/{release}/modules.dep"))?;
        let newer = newest.as_ref().is_none_or(|old| compare_versions(&release, old) == Ordering::Greater);
        if has_modules && newer {
            newest = Some(release);
        }
    }
    Ok(newest)
}

fn cgroup_mode(root: &Root) -> Result<CgroupMode, RootError> {
    if root.is_offline() {
        return Ok(CgroupMode::Unknown);
    }
    let unified = root.exists("/sys/fs/cgroup/cgroup.controllers")?;
    Ok(if unified { CgroupMode::V2 } else { CgroupMode::V1 })
}

fn systemd_version(root: &Root) -> Result<Option<u32>, RootError> {
    for dir in SYSTEMD_LIBRARY_DIRS {
        for name in root.list(dir)?.unwrap_or_default() {
            let digits = name.strip_prefix("libsystemd-shared-").unwrap_or_default();
            let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
            if let Ok(version) = digits.parse() {
                return Ok(Some(version));
            }
        }
    }
    Ok(None)
}

/// os-release(5): assignments as a shell would read them, without expansion.
fn parse_os_release(text: &str) -> BTreeMap<String, String> {
    let assignment = |line: &str| {
        let (name, value) = line.trim().split_once('=')?;
        if name.starts_with('#') {
            return None;
        }
        let value = value.trim();
        let quoted =
            value.len() >= 2 && (value.starts_with('"') || value.starts_with('\'')) && value.ends_with(&value[..1]);
        let inner = if quoted { &value[1..value.len() - 1] } else { value };
        Some((name.to_owned(), inner.replace("\\\"", "\"").replace("\\$", "$").replace("\\\\", "\\")))
    };
    text.lines().filter_map(assignment).collect()
}

/// Compares versions as rpm does: runs of digits by value, runs of letters by byte, digits are newer than letters.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        a = a.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        b = b.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let (Some(first), Some(other)) = (a.chars().next(), b.chars().next()) else {
            return a.len().min(1).cmp(&b.len().min(1));
        };
        if first.is_ascii_digit() != other.is_ascii_digit() {
            return if first.is_ascii_digit() { Ordering::Greater } else { Ordering::Less };
        }
        let run = |text: &str| {
            text.bytes()
                .take_while(|b| b.is_ascii_digit() == first.is_ascii_digit() && b.is_ascii_alphanumeric())
                .count()
        };
        let ((x, rest_a), (y, rest_b)) = (a.split_at(run(a)), b.split_at(run(b)));
        let order = if first.is_ascii_digit() {
            let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            x.cmp(y)
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_are_unquoted() {
        let fields = parse_os_release(
            "NAME=\"CentOS Stream\"\nVERSION_ID='9'\n# ID=no\nID=centos\nPRETTY_NAME=\"a \\\"b\\\"\"\n\nEMPTY=\nQ=\"\n",
        );
        assert_eq!(fields["NAME"], "CentOS Stream");
        assert_eq!(fields["VERSION_ID"], "9");
        assert_eq!(fields["ID"], "centos");
        assert_eq!(fields["PRETTY_NAME"], "a \"b\"");
        assert_eq!(fields["Q"], "\"");
    }

    #[test]
    fn versions_compare_as_rpm_compares_them() {
        for (older, newer) in [
            ("5.14.0-427.el9.x86_64", "5.14.0-503.el9.x86_64"),
            ("5.14.0-70.el9", "5.14.0-427.el9"),
            ("6.12.0-55.el10", "6.12.0-55.1.el10"),
            ("1.9", "1.10"),
            ("1.a", "1.1"),
            ("", "1"),
        ] {
            assert_eq!(compare_versions(older, newer), Ordering::Less, "{older} < {newer}");
            assert_eq!(compare_versions(newer, older), Ordering::Greater, "{newer} > {older}");
        }
        assert_eq!(compare_versions("1.010", "1.10"), Ordering::Equal);
        assert_eq!(compare_versions("1_0", "1.0"), Ordering::Equal);
    }
}
