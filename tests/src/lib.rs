//! What the suites stand on. Nothing in here asserts: it starts real parts, talks to them, and says what was left behind.

pub mod outside;
pub mod terminal;
pub mod vm;
