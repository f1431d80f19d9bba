//! What happened to containers, for those who listen.
