//! Seeds of single tensors.

use format::{InputId, MatrixId};
use sha2::{Digest, Sha256};

/// Seed for everything random about `tensor`.
///
/// It depends on the global seed and the tensor's name only, so a tensor is coded alike whichever
/// others are built with it, before it or in another run.
#[must_use]
pub fn tensor_seed(seed: u64, tensor: MatrixId) -> u64 {
    named_seed(seed, &tensor.stem())
}

/// Seed for everything random that the matrices which read `input` have in common.
#[must_use]
pub fn input_seed(seed: u64, input: InputId) -> u64 {
    named_seed(seed, &format!("{}.input", input.stem()))
}

fn named_seed(seed: u64, name: &str) -> u64 {
    let hash = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    u64::from_le_bytes(hash[..8].try_into().expect("a SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use format::Role;

    use super::*;

    #[test]
    fn seeds_differ_by_tensor_and_by_seed() {
        let tensor = |layer, role| MatrixId { layer, role };
        let seeds: std::collections::BTreeSet<u64> = [1, 2]
            .into_iter()
            .flat_map(|seed| {
                Role::ALL.into_iter().flat_map(move |role| {
                    (0..40).map(move |layer| tensor_seed(seed, tensor(layer, role)))
                })
            })
            .collect();
        assert_eq!(seeds.len(), 2 * Role::ALL.len() * 40);
    }

    #[test]
    fn the_seed_of_a_tensor_is_part_of_the_format() {
        // A changed value means that old builds can no longer be grown with --resume.
        let tensor = MatrixId { layer: 3, role: Role::Up };
        assert_eq!(tensor_seed(42, tensor), u64::from_le_bytes(KNOWN));
    }

    /// First bytes of `printf '\x2a\0\0\0\0\0\0\0blk.3.ffn_up' | sha256sum`.
    const KNOWN: [u8; 8] = [0x43, 0xf7, 0xa0, 0xbb, 0xb3, 0x54, 0xdb, 0x47];
}
