//! Laws that hold for any input: each law takes bytes, and panics if it is broken.
//!
//! In: bytes. Out: a panic if the law is broken. `fuzz/` looks for bytes that break a law. Its
//! corpus, inputs that it found and inputs written by hand, is tested by `cargo test`. Not a part
//! of the relay: compiled for tests and for fuzzing only.
//!
//! May use: `config`, `envelope`, `event`, `http`, `log`, `metrics`, `sse`.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a broken law is reported by a panic"
)]

mod configuration;
mod decoder;
mod envelope;
mod filters;
mod ids;
mod reads;

pub use self::{
    configuration::configuration, decoder::decoder, envelope::envelope, filters::filters, ids::ids,
    reads::reads,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a law for every input of its corpus.
    fn check_corpus(target: &str, law: fn(&[u8])) {
        let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let inputs: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(inputs.len() >= 5, "there is a corpus: {}", inputs.len());
        for path in inputs {
            println!("{}", path.display()); // shown when the law is broken
            law(&std::fs::read(path).unwrap());
        }
    }

    #[test]
    fn the_laws_of_the_decoder_hold_for_its_corpus() {
        check_corpus("decoder", decoder);
    }

    #[test]
    fn the_laws_of_the_envelope_hold_for_its_corpus() {
        check_corpus("envelope", envelope);
    }

    #[test]
    fn the_laws_of_ids_hold_for_their_corpus() {
        check_corpus("ids", ids);
    }

    #[test]
    fn the_laws_of_filters_hold_for_their_corpus() {
        check_corpus("filters", filters);
    }

    #[test]
    fn the_laws_of_reads_hold_for_their_corpus() {
        check_corpus("reads", reads);
    }

    #[test]
    fn the_laws_of_the_configuration_hold_for_its_corpus() {
        check_corpus("configuration", configuration);
    }
}
