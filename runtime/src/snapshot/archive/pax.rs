//! PAX records: `<length> <key>=<value>\n`, which replace what the header has no room for.

use super::sparse::MAX_EXTENTS;

/// Linux lists 64 KiB of names, and nobody uses more than a few.
const MAX_XATTRS: usize = 1024;
/// Attributes of one entry, from however many headers: Linux limits each to 64 KiB, and files have a few small ones.
const MAX_VALUES: usize = 1 << 20;

/// Values that apply to the next entry, or to all (global headers).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// GNU's sparse formats 0.0, 0.1 and 1.0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// Offsets and lengths in turn.
    pub map: Vec<u64>,
}

impl PaxSparse {
    pub(super) fn present(&self) -> bool {
        *self != PaxSparse::default()
    }
}

impl Pax {
    /// Adds the records of one extended header.
    pub(super) fn add(&mut self, mut records: &[u8]) -> Result<(), &'static str> {
        while !records.is_empty() {
            // some writers pad with NUL bytes
            if records.iter().all(|byte| *byte == 0) {
                break;
            }
            let space =
                records.iter().take(20).position(|byte| *byte == b' ').ok_or("extended header has no length")?;
            let length = decimal(&records[..space]).and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|length| *length > space + 1 && *length <= records.len());
            let length = length.ok_or("extended header has a wrong length")?;
            let (record, rest) = records.split_at(length);
            records = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or("extended header does not end in a newline")?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or("extended header has no value")?;
            self.set(&record[..equals], &record[equals + 1..])?;
        }
        if self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_VALUES {
            return Err("extended headers have too many attributes");
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || decimal(value).ok_or("unreadable number in an extended header");
        let id = || number().and_then(|id| u32::try_from(id).map_err(|_| "owner out of range in an extended header"));
        match key {
            b"path" => self.path = Some(no_nul(value)?),
            b"linkpath" => self.link = Some(no_nul(value)?),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(id()?),
            b"gid" => self.gid = Some(id()?),
            b"mtime" => self.mtime = Some(time(value).ok_or("unreadable time in an extended header")?),
            b"GNU.sparse.major" => self.sparse.major = Some(number()?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number()?),
            b"GNU.sparse.name" => self.sparse.name = Some(no_nul(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(number()?),
            b"GNU.sparse.map" => {
                for part in value.split(|byte| *byte == b',').filter(|part| !part.is_empty()) {
                    self.sparse.map.push(decimal(part).ok_or("unreadable sparse map")?);
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((no_nul(name)?, value.to_vec()));
                }
            }
        }
        if self.xattrs.len() > MAX_XATTRS {
            return Err("extended headers have too many attributes");
        }
        if self.sparse.map.len() > 2 * MAX_EXTENTS {
            return Err("extended headers have too many pieces of a sparse file");
        }
        Ok(())
    }
}

fn no_nul(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.contains(&0) { Err("NUL byte in an extended header") } else { Ok(value.to_vec()) }
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds with a fraction, possibly negative; nanoseconds count forward, as in a timespec.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    let mut nanoseconds = 0u32;
    for at in 0..9 {
        let digit = match fraction.get(at) {
            Some(digit @ b'0'..=b'9') => u32::from(digit - b'0'),
            Some(_) => return None,
            None => 0,
        };
        nanoseconds = nanoseconds * 10 + digit;
    }
    if !negative {
        return Some((seconds, nanoseconds));
    }
    if nanoseconds == 0 { Some((-seconds, 0)) } else { Some((-seconds - 1, 1_000_000_000 - nanoseconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_replace_what_the_header_says() {
        let mut pax = Pax::default();
        pax.add(b"30 mtime=1350244992.023960108\n12 path=a\nb\n28 SCHILY.xattr.user.x=\0=\n\0\n").unwrap();
        assert_eq!(pax.mtime, Some((1_350_244_992, 23_960_108)));
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(pax.xattrs, vec![(b"user.x".to_vec(), b"\0=\n\0".to_vec())]);
    }

    #[test]
    fn times_before_the_epoch_count_forward_in_nanoseconds() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b""), None);
    }

    #[test]
    fn many_headers_may_not_keep_more_than_one_could() {
        let record = |key: &str, size: usize| {
            let value = "v".repeat(size);
            let length = key.len() + size + 3;
            let digits = (length + length.to_string().len()).to_string().len();
            format!("{} {key}={value}\n", length + digits).into_bytes()
        };
        let mut pax = Pax::default();
        let refused = (0..2000).find_map(|number| pax.add(&record(&format!("SCHILY.xattr.user.{number}"), 1)).err());
        assert_eq!(refused, Some("extended headers have too many attributes"));
        let mut pax = Pax::default();
        let large = (0..40).map(|number| pax.add(&record(&format!("SCHILY.xattr.user.{number}"), 60_000)));
        assert_eq!(large.filter_map(Result::err).next(), Some("extended headers have too many attributes"));
        // the same one again and again is one
        let mut pax = Pax::default();
        assert!((0..40).all(|_| pax.add(&record("SCHILY.xattr.user.x", 60_000)).is_ok()));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for bad in [
            &b"5 a=b\n"[..],
            b"99 a=b\n",
            b"0 a=b\n",
            b"a=b\n",
            b"18446744073709551616 a=b\n",
            b"6 path\n",
            b"7 path=\0\n",
        ] {
            assert!(Pax::default().add(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Pax::default().add(&bytes);
        }
    }
}
