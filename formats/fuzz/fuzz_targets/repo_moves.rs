#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pgkeep_formats::fuzzing::repo::moves(bytes));
