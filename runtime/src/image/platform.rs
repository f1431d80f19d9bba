//! Which of several builds of an image runs on this host.

use std::fmt;

use serde::Deserialize;

/// A platform as indexes and configs name it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

impl Platform {
    /// This host, with the newest variant that its processor has.
    pub(crate) fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", Some(amd64_variant())),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// How well an image for `offered` runs here: higher is better, `None` is not at all.
    pub(crate) fn rank(&self, offered: &Platform) -> Option<u32> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let level = |variant: &Option<String>, default: u32| match variant.as_deref() {
            None | Some("") => Some(default),
            Some(variant) => variant.strip_prefix('v').and_then(|number| number.parse().ok()),
        };
        // what an image without a variant means by convention
        let default = match self.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        };
        let (have, want) = (level(&self.variant, default)?, level(&offered.variant, default)?);
        (want <= have).then_some(want)
    }
}

#[cfg(target_arch = "x86_64")]
fn amd64_variant() -> &'static str {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt");
    let v3 = v2 && has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("f16c");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => "v4",
        (_, true, _) => "v3",
        (true, ..) => "v2",
        _ => "v1",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_variant() -> &'static str {
    "v1"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
    }

    #[test]
    fn the_newest_variant_that_the_host_can_run_is_best() {
        let host = platform("linux/arm/v7");
        assert!(host.rank(&platform("linux/arm/v7")) > host.rank(&platform("linux/arm/v6")));
        assert_eq!(host.rank(&platform("linux/arm/v8")), None);
        assert_eq!(host.rank(&platform("linux/arm")), Some(7));
        assert_eq!(host.rank(&platform("linux/arm64")), None);
        assert_eq!(host.rank(&platform("windows/arm/v7")), None);
        let host = platform("linux/amd64/v3");
        assert_eq!(host.rank(&platform("linux/amd64")), Some(1));
        assert_eq!(host.rank(&platform("linux/amd64/v3")), Some(3));
        assert_eq!(host.rank(&platform("linux/amd64/v4")), None);
        assert_eq!(host.rank(&platform("linux/amd64/odd")), None);
    }

    #[test]
    fn this_host_can_run_its_own_images() {
        let host = Platform::host();
        assert!(host.rank(&Platform { variant: None, ..host.clone() }).is_some());
    }
}
