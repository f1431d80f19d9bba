//! The ELF file inside a bzImage. QEMU starts it directly, which spares seconds of emulated decompression.

use std::fs;

use anyhow::{Context, Result};

use super::build::filter;

const ELF: &[u8] = b"\x7fELF";
/// How it may be packed: the first bytes, and what unpacks it and leaves what follows alone.
const PACKINGS: [(&[u8], &str, &[&str]); 2] =
    [(b"\xfd7zXZ\0", "xz", &["-dcq", "--single-stream"]), (b"\x28\xb5\x2f\xfd", "zstd", &["-dcq"])];

/// Unpacks it; an image that is packed in an unknown way is returned as it is, which works too, slower.
pub fn unpack(image: &[u8]) -> Result<Vec<u8>> {
    let work = tempfile::NamedTempFile::new().context("create a temporary file")?;
    for (magic, program, arguments) in PACKINGS {
        for at in positions(image, magic) {
            fs::write(work.path(), image.get(at..).unwrap_or_default())?;
            // behind the kernel there are other things: what the program says about them is of no interest
            let unpacked = filter(program, arguments, work.path())?;
            if unpacked.starts_with(ELF) {
                return Ok(unpacked);
            }
        }
    }
    Ok(image.to_vec())
}

fn positions<'a>(image: &'a [u8], magic: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    image.windows(magic.len()).enumerate().filter(move |(_, window)| *window == magic).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_kernel_is_found_behind_other_bytes() -> Result<()> {
        let work = tempfile::NamedTempFile::new()?;
        fs::write(work.path(), [ELF, &[7; 5000]].concat())?;
        let packed = filter("xz", &["-c", "--check=crc32"], work.path())?;
        let image = [b"setup code \xfd7zXZ\0 not yet ".as_slice(), &packed, b"relocations"].concat();
        assert_eq!(unpack(&image)?, [ELF, &[7; 5000]].concat());
        Ok(())
    }

    #[test]
    fn an_image_in_an_unknown_packing_stays_as_it_is() -> Result<()> {
        assert_eq!(unpack(b"something else")?, b"something else");
        Ok(())
    }
}
