//! Disks that hold only what differs from another: the header of an empty qcow2 file, so that no qemu-img is needed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Magic, version and the fields of version 3, as its specification counts them.
const HEADER_LENGTH: u32 = 104;

/// Creates a disk that differs in nothing from `base`, a raw or qcow2 file that must stay as it is from now on.
pub fn overlay(base: &Path, path: &Path) -> Result<()> {
    let base = base.canonicalize().with_context(|| format!("find {}", base.display()))?;
    let (size, format) = measure(&base)?;
    create(path, size, Some((&base, format)))
}

/// Creates an empty disk.
pub fn empty(path: &Path, size: u64) -> Result<()> {
    create(path, size, None)
}

/// Layout: header, refcount table, one refcount block, L1 table; a cluster each, the last of as many as it takes.
fn create(path: &Path, size: u64, base: Option<(&PathBuf, &str)>) -> Result<()> {
    // an L2 table is one cluster of 8-byte entries, and an L1 entry points to one
    let covered_by_l1_entry = CLUSTER * (CLUSTER / 8);
    let l1_entries = size.div_ceil(covered_by_l1_entry);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER).max(1);
    let clusters = 3 + l1_clusters;
    let name = base.map(|(base, _)| base.as_os_str().as_bytes()).unwrap_or_default();
    let format = base.map(|(_, format)| format.as_bytes()).unwrap_or_default();
    ensure!(name.len() < 1024, "{}: the name of its base is longer than the format allows", path.display());

    let mut extensions = Vec::new();
    if !format.is_empty() {
        extensions.extend(0xe279_2aca_u32.to_be_bytes()); // format of the base
        extensions.extend(u32::try_from(format.len())?.to_be_bytes());
        extensions.extend(format);
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    extensions.extend([0; 8]); // end of extensions
    let name_at = if name.is_empty() { 0 } else { u64::from(HEADER_LENGTH) + extensions.len() as u64 };

    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(3_u32.to_be_bytes());
    header.extend(name_at.to_be_bytes());
    header.extend(u32::try_from(name.len())?.to_be_bytes());
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // not encrypted
    header.extend(u32::try_from(l1_entries)?.to_be_bytes());
    header.extend((3 * CLUSTER).to_be_bytes()); // L1 table
    header.extend(CLUSTER.to_be_bytes()); // refcount table
    header.extend(1_u32.to_be_bytes()); // its clusters
    header.extend([0; 12]); // no snapshots
    header.extend([0; 24]); // no incompatible, compatible, autoclear features
    header.extend(4_u32.to_be_bytes()); // a refcount has 2^4 bits
    header.extend(HEADER_LENGTH.to_be_bytes());
    header.extend(extensions);
    header.extend(name);

    let mut refcount_table = vec![0; usize::try_from(CLUSTER)?];
    refcount_table.splice(..8, (2 * CLUSTER).to_be_bytes());
    let mut refcounts = vec![0; usize::try_from(CLUSTER)?];
    for cluster in 0..usize::try_from(clusters)? {
        refcounts.splice(cluster * 2..cluster * 2 + 2, 1_u16.to_be_bytes());
    }
    header.resize(usize::try_from(CLUSTER)?, 0);
    let mut file = File::create_new(path).with_context(|| format!("create {}", path.display()))?;
    for part in [header, refcount_table, refcounts] {
        file.write_all(&part).with_context(|| format!("write {}", path.display()))?;
    }
    file.set_len(clusters * CLUSTER).with_context(|| format!("resize {}", path.display()))
}

/// Size and format of an existing disk.
fn measure(path: &Path) -> Result<(u64, &'static str)> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(32).read_to_end(&mut head).with_context(|| format!("read {}", path.display()))?;
    if !head.starts_with(MAGIC) {
        return Ok((file.metadata()?.len(), "raw"));
    }
    let size = head.get(24..32).with_context(|| format!("{} ends in its header", path.display()))?;
    Ok((u64::from_be_bytes(size.try_into()?), "qcow2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_has_the_size_of_its_base_even_when_that_is_an_overlay() -> Result<()> {
        let work = tempfile::tempdir()?;
        let raw = work.path().join("raw");
        File::create(&raw)?.set_len(5 << 30)?;
        overlay(&raw, &work.path().join("first"))?;
        overlay(&work.path().join("first"), &work.path().join("second"))?;
        assert_eq!(measure(&raw)?, (5 << 30, "raw"));
        assert_eq!(measure(&work.path().join("second"))?, (5 << 30, "qcow2"));
        Ok(())
    }

    #[test]
    fn an_existing_disk_is_not_overwritten() -> Result<()> {
        let work = tempfile::NamedTempFile::new()?;
        assert!(empty(work.path(), 1 << 20).is_err());
        Ok(())
    }
}
