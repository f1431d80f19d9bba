//! Records of pods and containers that survive the daemon.
