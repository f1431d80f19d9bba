#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nodeagent_runtime::fuzzing::settings(bytes));
