//! The test host: a virtual machine that looks like CentOS Stream, made of Debian packages.
//!
//! - [`recipe`]: what an image is made of, and the name that follows from it
//! - [`cache`]: where images are kept, one builder at a time
//! - [`build`]: from packages to kernel, initrd and disk; [`kernel`] unpacks the first
//! - [`qcow2`]: disks that hold only what differs from another
//! - [`machine`]: a running machine: boot, commands, reboot, power cut; [`hardware`] is what QEMU is told about it
//! - [`channel`], [`monitor`]: the lines to the guest's commands and to QEMU
//! - [`saved`]: a booted machine kept in files, for starting in less than a second
//! - [`process`]: programs that end with this one

pub mod build;
pub mod cache;
pub mod channel;
pub mod hardware;
pub mod kernel;
pub mod machine;
pub mod monitor;
pub mod process;
pub mod qcow2;
pub mod recipe;
pub mod saved;

pub use cache::Image;
pub use channel::Answer;
pub use hardware::{Forward, Hardware, OFFER_ADDRESS};
pub use machine::Machine;
pub use recipe::Suite;
pub use saved::{Saved, Unsaved};
