#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| autoplay_relay::laws::reads(input));
