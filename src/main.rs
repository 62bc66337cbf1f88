//! `autoplay-relay`: see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    autoplay_relay::main()
}
