//! Artifacts: what a registry keeps that is no container image, such as models, charts or policies. Their blobs are files,
//! and that is how a container sees them when they are mounted as a volume: as they are, under their titles.
//!
//! In the store each file is a layer with this one file in it. So artifacts are pulled, resumed, shared, counted and
//! collected like images.

use super::manifest::{Descriptor, Manifest, ManifestError};
use crate::content::Digest;
use crate::snapshot::Around;

const TITLE: &str = "org.opencontainers.image.title";
const MAX_TITLE: usize = 4096;
const MAX_NAME: usize = 255;
/// Blocks of archives, and two of them at the end.
const BLOCK: u64 = 512;

/// Stands for the digest of the unpacked layer: what the file is called is part of what the layer is.
pub(super) fn identity(layer: &Descriptor) -> Result<Digest, ManifestError> {
    Ok(Digest::of(format!("artifact file\0{}\0{}", title(layer)?, layer.digest).as_bytes()))
}

/// The identities of all files.
pub(super) fn identities(manifest: &Manifest) -> Result<Vec<Digest>, ManifestError> {
    manifest.layers.iter().map(identity).collect()
}

/// The archive around one file's bytes.
pub(super) fn around(layer: &Descriptor) -> Result<Around, ManifestError> {
    let title = title(layer)?;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(layer.size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    let written = builder.append_pax_extensions([("path", title.as_bytes())]);
    written.map_err(|_| ManifestError::Title(title.clone()))?;
    let mut head = builder.get_ref().clone();
    head.extend_from_slice(header.as_bytes());
    let padding = layer.size.next_multiple_of(BLOCK) - layer.size + 2 * BLOCK;
    Ok(Around { head, tail: vec![0; usize::try_from(padding).unwrap_or(0)] })
}

/// The file's name: its title, or its digest when it has none.
fn title(layer: &Descriptor) -> Result<String, ManifestError> {
    let Some(title) = layer.annotations.get(TITLE).filter(|title| !title.is_empty()) else {
        return Ok(format!("sha256-{}", layer.digest.hex()));
    };
    let name = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= MAX_NAME && !part.contains('\0') && !part.starts_with(".wh.")
    };
    if title.len() > MAX_TITLE || !title.split('/').all(name) || layer.size > i64::MAX as u64 {
        return Err(ManifestError::Title(title.chars().take(200).collect()));
    }
    Ok(title.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(title: Option<&str>) -> Descriptor {
        let annotations = title.map(|title| (TITLE.to_owned(), title.to_owned())).into_iter().collect();
        let digest = Digest::of(b"x");
        Descriptor { media_type: String::new(), digest, size: 1, platform: None, annotations }
    }

    #[test]
    fn a_file_is_called_by_its_title_as_long_as_that_is_a_name() {
        assert_eq!(title(&file(Some("models/a b.gguf"))).unwrap(), "models/a b.gguf");
        assert_eq!(title(&file(None)).unwrap(), format!("sha256-{}", Digest::of(b"x").hex()));
        assert_ne!(identity(&file(Some("a"))).unwrap(), identity(&file(Some("b"))).unwrap());
        for bad in ["/etc/passwd", "../x", "a/../b", "a//b", "a/", ".wh.a", "x/.wh..wh..opq", "a\0b"] {
            assert!(matches!(identity(&file(Some(bad))), Err(ManifestError::Title(_))), "{bad:?}");
        }
        assert!(identity(&file(Some(&"n".repeat(256)))).is_err());
    }

    #[test]
    fn the_archive_around_a_file_is_one_that_tar_reads() {
        let long = "n".repeat(200);
        let around = around(&file(Some(&long))).unwrap();
        let bytes = [&around.head[..], b"x", &around.tail].concat();
        assert_eq!(bytes.len() % 512, 0);
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!((entries.len(), entries[0].path_bytes().as_ref()), (1, long.as_bytes()));
    }
}
