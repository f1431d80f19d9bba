//! Where the data of sparse files belongs, checked before anybody seeks.

use super::Extent;
use super::header::number;
use super::pax::decimal;

/// More pieces than this are an attack on memory: 1 MiB of map.
pub(super) const MAX_EXTENTS: usize = 65_536;

/// Extents of GNU's old format: 24 bytes each, offset and length; an empty one ends the list.
pub(super) fn gnu(block: &[u8], extents: &mut Vec<Extent>) -> Result<(), &'static str> {
    for pair in block.chunks_exact(24) {
        if pair[0] == 0 && pair[12] == 0 {
            break;
        }
        let part = |field| number(field).and_then(|value| u64::try_from(value).ok()).ok_or("unreadable sparse map");
        push(extents, part(&pair[..12])?, part(&pair[12..])?)?;
    }
    Ok(())
}

/// Extents of the PAX formats 0.0 and 0.1: offsets and lengths in turn.
pub(super) fn pairs(map: &[u64]) -> Result<Vec<Extent>, &'static str> {
    let mut extents = Vec::new();
    if !map.len().is_multiple_of(2) {
        return Err("odd sparse map");
    }
    for pair in map.chunks_exact(2) {
        push(&mut extents, pair[0], pair[1])?;
    }
    Ok(extents)
}

/// The map of format 1.0, which stands before the data: lines of decimal numbers, the first is the count of pairs.
#[derive(Default)]
pub(super) struct MapReader {
    line: Vec<u8>,
    expected: Option<u64>,
    numbers: Vec<u64>,
}

impl MapReader {
    /// Takes one block; true when the map is complete.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<bool, &'static str> {
        for byte in block {
            if self.complete() {
                break;
            }
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err("unreadable sparse map");
                }
                continue;
            }
            let value = decimal(&self.line).ok_or("unreadable sparse map")?;
            self.line.clear();
            match self.expected {
                None if value <= MAX_EXTENTS as u64 => self.expected = Some(value),
                None => return Err("sparse map is too long"),
                Some(_) => self.numbers.push(value),
            }
        }
        Ok(self.complete())
    }

    fn complete(&self) -> bool {
        self.expected.is_some_and(|pairs| self.numbers.len() as u64 == pairs * 2)
    }

    pub(super) fn extents(self) -> Result<Vec<Extent>, &'static str> {
        pairs(&self.numbers)
    }
}

fn push(extents: &mut Vec<Extent>, offset: u64, length: u64) -> Result<(), &'static str> {
    if extents.len() >= MAX_EXTENTS {
        return Err("sparse map is too long");
    }
    extents.push(Extent { offset, length });
    Ok(())
}

/// Extents must ascend, stay within the file and have exactly the data that the archive holds for them.
pub(super) fn check(extents: &[Extent], real_size: u64, stored: u64) -> Result<(), &'static str> {
    let (mut end, mut sum) = (0u64, 0u64);
    for extent in extents {
        if extent.offset < end {
            return Err("sparse map goes backwards");
        }
        end = extent.offset.checked_add(extent.length).ok_or("sparse map overflows")?;
        sum += extent.length;
    }
    if end > real_size {
        return Err("sparse map goes beyond the file");
    }
    if sum != stored {
        return Err("sparse map does not match the data");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_lies_is_refused() {
        let extent = |offset, length| Extent { offset, length };
        assert!(check(&[extent(0, 5), extent(10, 5)], 20, 10).is_ok());
        assert!(check(&[extent(0, 5), extent(4, 5)], 20, 10).is_err());
        assert!(check(&[extent(0, 5), extent(16, 5)], 20, 10).is_err());
        assert!(check(&[extent(0, 5)], 20, 10).is_err());
        assert!(check(&[extent(u64::MAX, 5)], 20, 5).is_err());
    }

    #[test]
    fn a_map_before_the_data_may_span_blocks() {
        let mut reader = MapReader::default();
        assert_eq!(reader.block(b"2\n0\n5\n1"), Ok(false));
        assert_eq!(reader.block(b"0\n5\n\0\0\0"), Ok(true));
        assert_eq!(reader.extents().unwrap(), vec![Extent { offset: 0, length: 5 }, Extent { offset: 10, length: 5 }]);
        assert!(MapReader::default().block(b"99999999\n").is_err());
        assert!(MapReader::default().block(&[b'1'; 512]).is_err());
    }
}
