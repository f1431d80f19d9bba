//! What the running kernel can do.

/// Features that answers to clients depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Major and minor version.
    pub version: (u32, u32),
    /// Recursive mount attributes, hence recursive read-only mounts (5.12).
    pub mount_setattr: bool,
    /// Layers of an overlay with mapped ids (5.19), hence user namespaces for pods.
    pub mapped_layers: bool,
}

impl Kernel {
    /// Judges by `/proc/sys/kernel/osrelease`; what cannot be read can do nothing new.
    pub fn from_release(release: &str) -> Self {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0u32));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Kernel { version, mount_setattr: version >= (5, 12), mapped_layers: version >= (5, 19) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_follow_the_release() {
        for (release, expected) in [
            ("4.18.0-553.el8_10.x86_64", false),
            ("5.11.0", false),
            ("5.14.0-427.el9.x86_64", true),
            ("6.12.0-55.el10", true),
            ("", false),
        ] {
            assert_eq!(Kernel::from_release(release).mount_setattr, expected, "{release}");
        }
    }
}
