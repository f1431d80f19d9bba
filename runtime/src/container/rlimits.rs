//! Resource limits by name.

/// `RLIM_INFINITY`, as the kernel spells it.
const UNLIMITED: u64 = u64::MAX;

/// In the order of the kernel's numbers.
const NAMES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// A limit that cannot be set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RlimitError {
    /// No such resource.
    #[error("`{0}` is no resource limit")]
    Name(String),
    /// Not `soft:hard`.
    #[error("`{0}` is not `soft:hard` or one number (or `unlimited`)")]
    Value(String),
    /// Soft above hard.
    #[error("`{0}`: the soft limit is above the hard one")]
    Order(String),
}

/// The name of a resource.
pub fn name(number: u32) -> Option<&'static str> {
    NAMES.get(usize::try_from(number).ok()?).copied()
}

/// The resource's number with its soft and hard limit.
pub fn parse(name: &str, value: &str) -> Result<(u32, u64, u64), RlimitError> {
    let numbered = (0..).zip(NAMES).find(|(_, known)| *known == name);
    let (number, _) = numbered.ok_or_else(|| RlimitError::Name(name.to_owned()))?;
    let limit = |text: &str| match text.trim() {
        "unlimited" | "-1" => Ok(UNLIMITED),
        digits => digits.parse().map_err(|_| RlimitError::Value(value.to_owned())),
    };
    let (soft, hard) = match value.split_once(':') {
        Some((soft, hard)) => (limit(soft)?, limit(hard)?),
        None => (limit(value)?, limit(value)?),
    };
    if soft > hard {
        return Err(RlimitError::Order(value.to_owned()));
    }
    Ok((number, soft, hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_pairs_or_one_number() {
        assert_eq!(parse("nofile", "1024:524288"), Ok((7, 1024, 524_288)));
        assert_eq!(parse("core", "0"), Ok((4, 0, 0)));
        assert_eq!(parse("memlock", "unlimited"), Ok((8, u64::MAX, u64::MAX)));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse("nofiles", "1"), Err(RlimitError::Name("nofiles".into())));
        assert_eq!(parse("nofile", "many"), Err(RlimitError::Value("many".into())));
        assert_eq!(parse("nofile", "2:1"), Err(RlimitError::Order("2:1".into())));
    }
}
