//! Bad files, made as bytes in memory, each with what a reader must say about it.
//!
//! One corpus for unit tests, end-to-end tests on the real programs and the seeds of the fuzz targets. The
//! bytes are written by hand ([`gguf`]), not by the project's writer, and every bad file is a sound one
//! ([`good`]) with one thing wrong, so that this one thing is the reason for which it is refused.

mod activations;
pub mod check;
mod coding;
pub mod families;
mod foreign;
pub mod gguf;
pub mod good;
mod json;
pub mod memory;
mod misplaced;
mod model;
mod parts;
mod structural;

pub use activations::{calibrations, imatrices, old_imatrices};
pub use coding::{coded, strays};
pub use foreign::foreign;
pub use json::{policies, sensitivities};
pub use misplaced::{misplaced, sound};
pub use model::models;
pub use parts::{Parts, parts};
pub use structural::{structure, truncated};

/// A bad file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What is wrong with it, in few words; unique within its list.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
    /// Parts of the one line with which a reader refuses it.
    pub says: Vec<&'static str>,
    /// Whether llama.cpp's loader refuses it as well. It reads some things that the project's readers do not
    /// take, never looks at others, and on two of its own stops by a signal.
    pub llama_refuses: bool,
}

impl Case {
    fn new(name: impl Into<String>, bytes: Vec<u8>, says: &[&'static str]) -> Self {
        Self { name: name.into(), bytes, says: says.to_vec(), llama_refuses: true }
    }

    fn of(name: impl Into<String>, file: &gguf::Gguf, says: &[&'static str]) -> Self {
        Self::new(name, file.bytes(), says)
    }

    /// The same, but llama.cpp's own code stops the process: without a coded tensor the patches have no part in it.
    fn stops_llama(self) -> Self {
        self.fine_for_llama()
    }

    /// The same, but no matter for llama.cpp's loader.
    fn fine_for_llama(self) -> Self {
        Self { llama_refuses: false, ..self }
    }
}

/// Every bad GGUF file of whatever kind.
#[must_use]
pub fn all_gguf() -> Vec<Case> {
    let models = [structure(), truncated(), foreign(), models(), coded(), strays(), misplaced()];
    [models.concat(), imatrices(), calibrations()].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn there_are_at_least_sixty_and_no_two_are_the_same() {
        let mut cases = all_gguf();
        cases.extend(policies());
        cases.extend(sensitivities());
        cases.extend(old_imatrices());
        let by_hand = cases.iter().filter(|c| !c.name.starts_with("cut after")).count();
        assert!(by_hand >= 60, "{by_hand}");
        let (mut names, mut files) = (HashSet::new(), HashSet::new());
        cases.extend(parts().into_iter().map(|p| {
            let others = p.others.into_iter().flat_map(|(name, bytes)| [name.into_bytes(), bytes]);
            let bytes = [p.name.into_bytes(), p.case.bytes].into_iter().chain(others);
            Case { bytes: bytes.flatten().collect(), ..p.case }
        }));
        for case in &cases {
            assert!(names.insert(&case.name), "{} is there twice", case.name);
            // An empty file is one for each kind of reader.
            let kind = case.name.split_once(": ").map(|(kind, _)| kind);
            assert!(files.insert((kind, &case.bytes)), "{}: the bytes of another", case.name);
        }
        assert!(cases.iter().all(|c| !c.says.is_empty()));
    }

    /// The layout that the format's description gives, spelled out once.
    #[test]
    fn bytes_are_those_of_the_format() {
        let mut file = gguf::Gguf::default().with("k", gguf::Value::u32(7));
        file.tensors.push(gguf::Tensor::f32("t", &[1], &[1.0]));
        let mut expected = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        expected.extend(b"\x01\0\0\0\0\0\0\0k\x04\0\0\0\x07\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0t\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        expected.resize(expected.len().next_multiple_of(32), 0);
        expected.extend(1.0f32.to_le_bytes());
        expected.resize(expected.len().next_multiple_of(32), 0);
        let encoded = file.encode();
        assert_eq!(encoded.bytes, expected);
        assert!(encoded.boundaries.is_sorted_by_key(|(_, end)| *end));
        assert_eq!(encoded.boundaries.last().map(|(_, end)| *end), Some(expected.len()));
    }
}
