//! Images mounted as volumes. Each is held like the image of a container, under a name made from the container's id, so
//! that it cannot be removed while it is mounted, also across restarts of the daemon.

use super::spec::image_of;
use super::{ContainerError, ContainerRecord, SpecError};
use crate::image::Rootfs;
use crate::sandbox::Shared;

/// Between a container's id and the number of its volume.
const MARK: &str = ".volume-";

/// What an image is held by for the volume with that number.
fn holder(container: &str, number: usize) -> String {
    format!("{container}{MARK}{number}")
}

/// The container that a holder of an image belongs to.
pub fn container_of(holder: &str) -> &str {
    holder.split_once(MARK).map_or(holder, |(container, _)| container)
}

/// Makes the images ready that the container mounts, in the order of their mounts, and records which they are.
pub(super) async fn prepare(environment: &Shared, record: &mut ContainerRecord) -> Result<Vec<Rootfs>, ContainerError> {
    let names: Vec<String> = record.config.mounts.iter().filter_map(image_of).map(str::to_owned).collect();
    let mut volumes = Vec::with_capacity(names.len());
    for (number, name) in names.into_iter().enumerate() {
        let missing = || SpecError::ImageVolume(format!("image {name} is not here"));
        let image = environment.images.find(&name).ok_or_else(missing)?;
        let prepared = environment.images.prepare(&image.id, &holder(&record.id, number)).await;
        let failed = |source| ContainerError::Rootfs { id: record.id.clone(), source: Box::new(source) };
        volumes.push(prepared.map_err(failed)?);
        record.image_volumes.push(image.id.clone());
    }
    Ok(volumes)
}

/// Lets go of the images.
pub(super) async fn release(environment: &Shared, record: &ContainerRecord) -> Result<(), ContainerError> {
    // counted by what was asked for: the record may be older than the volumes
    for number in 0..record.config.mounts.iter().filter_map(image_of).count() {
        let released = environment.images.release(&holder(&record.id, number)).await;
        released.map_err(|source| ContainerError::Rootfs { id: record.id.clone(), source: Box::new(source) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_belongs_to_its_container() {
        assert_eq!(container_of(&holder("abc", 12)), "abc");
        assert_eq!(container_of("abc"), "abc");
    }
}
