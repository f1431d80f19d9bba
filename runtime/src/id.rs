//! Identifiers of pods and containers.

use std::fs::File;
use std::io::{self, Read};

/// 32 random bytes as 64 lower-case hex digits: what cAdvisor takes for the id of a container.
pub fn random() -> io::Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether a text is an identifier of ours; it may then be part of a path.
pub fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_long_and_different() {
        let (one, other) = (random().unwrap(), random().unwrap());
        assert!(is_id(&one) && is_id(&other));
        assert_ne!(one, other);
        assert!(
            !is_id("../x")
                && !is_id(&one[1..])
                && !is_id(&one.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A"))
        );
    }
}
