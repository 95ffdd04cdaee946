//! GGUF metadata keys, one home for each.

use crate::MatrixId;

/// BOOL: the file holds dictionary-coded tensors.
pub const ENABLED: &str = "statecells.enabled";
/// UINT32: version of the tensor format, [`FORMAT_VERSION`].
pub const VERSION: &str = "statecells.version";
/// STRING: the scheme that was asked for; single tensors may differ.
pub const SCHEME: &str = "statecells.scheme";
/// UINT32: atoms per dictionary where all tensors agree, else the largest.
pub const DICT_M: &str = "statecells.dict.M";
/// UINT32: codes per row where all tensors agree, else the largest.
pub const DICT_K: &str = "statecells.dict.k";
/// FLOAT32: learning rate of Oja's rule.
pub const DICT_ETA: &str = "statecells.dict.eta";
/// UINT32: passes over the samples.
pub const DICT_ITERS: &str = "statecells.dict.iters";
/// FLOAT32: `--gap-tol` of the build; infinity if none was given.
pub const DEFAULT_GAP_TOL: &str = "statecells.default_gap_tol";
/// FLOAT32: 10^9 bytes saved against the source file's own tensors.
pub const MEM_SAVED_GB: &str = "statecells.mem_saved_gb";
/// STRING: JSON record of how the file was made (tool, llama.cpp, arguments, input hash, seed).
pub const RECORD: &str = "statecells.record";

/// ARRAY of UINT64: fingerprint of the calibration text, the smallest hashes of its runs of 32 tokens.
pub const CALIBRATION_SHINGLES: &str = "statecells.calibration.shingle_hashes";

/// The tensor format this version reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// STRING `statecells.<tensor>.scheme`: how this tensor is coded.
#[must_use]
pub fn tensor_scheme(tensor: MatrixId) -> String {
    format!("statecells.{tensor}.scheme")
}

/// The tensor (`blk.3.ffn_up`) that `key` marks as coded, if it is a key as [`tensor_scheme`] makes them.
#[must_use]
pub fn coded_tensor(key: &str) -> Option<&str> {
    key.strip_prefix("statecells.")?.strip_suffix(".scheme")
}

/// FLOAT32 `statecells.<tensor>.gap`: its gap, see docs/shapes.md.
#[must_use]
pub fn tensor_gap(tensor: MatrixId) -> String {
    format!("statecells.{tensor}.gap")
}

/// FLOAT32 `statecells.<tensor>.bpw`: bits per weight of all its sidecars.
#[must_use]
pub fn tensor_bpw(tensor: MatrixId) -> String {
    format!("statecells.{tensor}.bpw")
}

/// ARRAY of UINT32 `statecells.<tensor>.shape`: inputs, outputs and, of experts, their number. Files of earlier versions have
/// none, but their matrices are those of plain FFNs, whose shape the model's own metadata tell.
#[must_use]
pub fn tensor_shape(tensor: MatrixId) -> String {
    format!("statecells.{tensor}.shape")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    #[test]
    fn the_key_of_a_coded_tensor_names_it() {
        let tensor = MatrixId { layer: 3, role: Role::Up };
        assert_eq!(coded_tensor(&tensor_scheme(tensor)), Some("blk.3.ffn_up"));
        for key in [SCHEME, ENABLED, &tensor_gap(tensor), "general.scheme"] {
            assert_eq!(coded_tensor(key), None, "{key}");
        }
    }
}
