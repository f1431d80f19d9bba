//! The config, in three stages with three names: a fragment (one file as written), the merged tree (every value knows
//! its file) and [`settings::Settings`] (validated; all that the rest of the agent sees).

pub mod kubernetes;
pub mod settings;
pub mod value;
