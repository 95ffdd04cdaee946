//! Parameters of the global-dictionary schemes and their bounds.

use format::global::{CODES, DICT, MAX_ATOMS, ROW_SCALE, VALS};
use format::{CodecError, ElementType, MatrixShape, Scheme, SidecarSpec};
use serde::{Deserialize, Serialize};

use crate::{DictType, Encoder};

/// Smallest default number of atoms.
pub const MIN_DEFAULT_ATOMS: usize = 64;

/// Parameters of a global dictionary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GlobalParams {
    /// `sign`, `sign+row_scale` or `sign+vals`.
    pub scheme: Scheme,
    /// Number of atoms M, 1..=32767; `None` means [`default_n_atoms`].
    pub m: Option<usize>,
    /// Slots per row, 1..=M: at most so many atoms make a row.
    pub k: usize,
    /// Learning rate of Oja's rule, for rows of mean square norm 1; above 0.
    pub eta: f32,
    /// Passes of Oja's rule over the sampled rows; without any, the atoms start as sampled rows.
    pub iters: usize,
    /// Rounds of refitting the atoms with the codes fixed and choosing the codes anew, after the passes.
    pub refine: usize,
    /// At most so many rows are learned from; at least 1.
    pub max_samples: usize,
    /// Type of the stored atoms.
    pub dict_type: DictType,
    /// Strength of the lateral decorrelation between winners, 0..=1; 0 is Oja's rule per winner, 1 is
    /// Oja's subspace rule on the winners.
    pub anti_hebb: f32,
    /// How the atoms of a row are chosen.
    pub encoder: Encoder,
}

impl Default for GlobalParams {
    fn default() -> Self {
        Self {
            scheme: Scheme::SignRowScale,
            m: None,
            k: 32,
            eta: 0.01,
            // measured: before a refit, passes after the first change the error by less than 0.001
            iters: 1,
            refine: 12,
            max_samples: 16384,
            dict_type: DictType::F16,
            anti_hebb: 0.0,
            encoder: Encoder::TopK,
        }
    }
}

/// Default number of atoms: `d_out / 8` rounded to the nearest power of two on the logarithmic scale
/// (1536 / 8 = 192 gives 256, 576 / 8 = 72 gives 64), at least 64, at most 16384.
#[must_use]
pub fn default_n_atoms(d_out: usize) -> usize {
    let exponent = (d_out as f64 / 8.0).log2().round().clamp(0.0, 14.0);
    (1usize << exponent as u32).max(MIN_DEFAULT_ATOMS)
}

impl GlobalParams {
    /// The number of atoms M for a matrix of `shape`.
    #[must_use]
    pub fn n_atoms(&self, shape: MatrixShape) -> usize {
        self.m.unwrap_or_else(|| default_n_atoms(shape.d_out))
    }

    /// Checks every parameter against `shape`.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] with the name of the flag.
    pub fn check(&self, shape: MatrixShape) -> Result<(), CodecError> {
        let error = |name, value: String, reason: String| {
            Err(CodecError::Parameter { name, value, shape, reason })
        };
        let m = self.n_atoms(shape);
        if !self.scheme.is_global() {
            let reason = "the scheme has no global dictionary".to_owned();
            return error("--scheme", self.scheme.to_string(), reason);
        }
        if shape.d_in == 0 || shape.d_out == 0 || shape.checked_n_weights().is_none() {
            return error("shape", shape.to_string(), "the matrix must not be empty".to_owned());
        }
        if !(1..=MAX_ATOMS).contains(&m) {
            return error("--dict-M", m.to_string(), format!("use 1 to {MAX_ATOMS} atoms"));
        }
        if !(1..=m).contains(&self.k) {
            let reason = format!("use 1 to M = {m}, or more atoms (--dict-M)");
            return error("--dict-k", self.k.to_string(), reason);
        }
        if !(self.eta > 0.0 && self.eta.is_finite()) {
            return error("--dict-eta", self.eta.to_string(), "use a number above 0".to_owned());
        }
        if self.max_samples == 0 {
            return error("--dict-max-samples", "0".to_owned(), "use at least 1 row".to_owned());
        }
        if !(0.0..=1.0).contains(&self.anti_hebb) {
            return error("--anti-hebb", self.anti_hebb.to_string(), "use 0 to 1".to_owned());
        }
        Ok(())
    }

    /// Sidecar tensors for a matrix of `shape`, in file order.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if the parameters do not fit.
    pub fn sidecars(&self, shape: MatrixShape) -> Result<Vec<SidecarSpec>, CodecError> {
        self.check(shape)?;
        let mut specs = vec![
            SidecarSpec::new(
                DICT,
                self.dict_type.element_type(),
                &[shape.d_in, self.n_atoms(shape)],
            ),
            SidecarSpec::new(CODES, ElementType::I16, &[self.k, shape.d_out]),
        ];
        if self.scheme.has_vals() {
            let dims = [self.k, shape.d_out];
            specs.push(SidecarSpec::new(VALS, ElementType::F16, &dims));
        }
        if self.scheme.has_row_scale() {
            let dims = [shape.d_out];
            specs.push(SidecarSpec::new(ROW_SCALE, ElementType::F16, &dims));
        }
        Ok(specs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_atoms_round_on_the_logarithmic_scale() {
        let cases = [
            (1, 64),
            (512, 64),
            (576, 64),
            (1536, 256),
            (5120, 512),
            (32768, 4096),
            (1 << 30, 16384),
        ];
        for (d_out, m) in cases {
            assert_eq!(default_n_atoms(d_out), m, "{d_out}");
        }
    }

    #[test]
    fn bounds_name_the_flag() {
        let shape = MatrixShape::new(8, 1024);
        let name = |p: GlobalParams| match p.check(shape) {
            Err(CodecError::Parameter { name, .. }) => name,
            other => panic!("{other:?}"),
        };
        let base = GlobalParams::default;
        assert_eq!(base().check(shape), Ok(()));
        assert_eq!(name(GlobalParams { m: Some(0), ..base() }), "--dict-M");
        assert_eq!(name(GlobalParams { m: Some(32768), ..base() }), "--dict-M");
        assert_eq!(name(GlobalParams { k: 0, ..base() }), "--dict-k");
        assert_eq!(name(GlobalParams { k: 129, ..base() }), "--dict-k");
        assert_eq!(name(GlobalParams { eta: f32::NAN, ..base() }), "--dict-eta");
        assert_eq!(name(GlobalParams { eta: 0.0, ..base() }), "--dict-eta");
        assert_eq!(name(GlobalParams { max_samples: 0, ..base() }), "--dict-max-samples");
        assert_eq!(name(GlobalParams { anti_hebb: 1.5, ..base() }), "--anti-hebb");
        assert_eq!(name(GlobalParams { scheme: Scheme::Sections, ..base() }), "--scheme");
        assert_eq!(GlobalParams { m: Some(32767), k: 32767, ..base() }.check(shape), Ok(()));
    }
}
