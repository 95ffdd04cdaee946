//! Parameters of the `sections` scheme and their bounds.

use format::coo::Layout as CooLayout;
use format::{CodecError, ElementType, MatrixShape, SidecarSpec};
use numerics::coo::entries_for_share;
use serde::{Deserialize, Serialize};

use crate::beam::MAX_BEAM;
use format::sections::{ATOMS, BLOCK, DICT, MAX_SECTIONS, ROW_SCALE, SectionsLayout};

/// Parameters of a sections code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SectionsParams {
    /// Number of sections S, 1..=16: a weight takes S / 2 bits.
    pub sections: usize,
    /// Partial sums that survive a section of the search, 1..=64.
    pub beam: usize,
    /// Rounds of refitting atoms and scales with the winners fixed and searching the winners anew.
    pub rounds: usize,
    /// Times that every block is searched anew with all other blocks known, if there are off-diagonal moments.
    pub sweeps: usize,
    /// Share of the weights that are corrected one by one, 0..=0.1.
    pub outlier_share: f64,
    /// What is added to the diagonal of a second moment, as a share of its mean; 0..=1e6.
    pub damping: f64,
    /// At most so many blocks are learned from; at least 1.
    pub max_samples: usize,
    /// Joint steps of learning.
    pub learn_rounds: usize,
}

impl Default for SectionsParams {
    fn default() -> Self {
        Self {
            sections: 7,
            beam: 32,
            rounds: 2,
            sweeps: 2,
            outlier_share: 0.0,
            damping: 0.05,
            max_samples: 32768,
            learn_rounds: 10,
        }
    }
}

impl SectionsParams {
    /// Checks every parameter against `shape`.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] with the name of the flag.
    pub fn check(&self, shape: MatrixShape) -> Result<(), CodecError> {
        let error = |name, value: String, reason: String| {
            Err(CodecError::Parameter { name, value, shape, reason })
        };
        if shape.d_in == 0 || shape.d_out == 0 || shape.checked_n_weights().is_none() {
            return error("shape", shape.to_string(), "the matrix must not be empty".to_owned());
        }
        if !(1..=MAX_SECTIONS).contains(&self.sections) {
            return error("--S", self.sections.to_string(), format!("use 1 to {MAX_SECTIONS}"));
        }
        if !(1..=MAX_BEAM).contains(&self.beam) {
            return error("--beam", self.beam.to_string(), format!("use 1 to {MAX_BEAM}"));
        }
        if !(0.0..=0.1).contains(&self.outlier_share) {
            let reason = "use 0 to 0.1".to_owned();
            return error("--outliers", self.outlier_share.to_string(), reason);
        }
        if !(0.0..=1e6).contains(&self.damping) {
            return error("--damping", self.damping.to_string(), "use 0 to 1e6".to_owned());
        }
        if self.max_samples == 0 {
            return error("--dict-max-samples", "0".to_owned(), "use at least 1".to_owned());
        }
        Ok(())
    }

    /// Number of weights of a matrix of `shape` that are corrected one by one.
    #[must_use]
    pub fn n_outliers(&self, shape: MatrixShape) -> usize {
        entries_for_share(shape, self.outlier_share)
    }

    pub(crate) fn without_outliers(&self, shape: MatrixShape) -> Vec<SidecarSpec> {
        let layout = SectionsLayout { shape, sections: self.sections };
        vec![
            SidecarSpec::new(DICT, ElementType::F16, &[BLOCK, ATOMS, self.sections]),
            layout.codes(),
            SidecarSpec::new(ROW_SCALE, ElementType::F16, &[shape.d_out]),
        ]
    }

    /// Sidecar tensors for a matrix of `shape`, in file order.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] if the parameters do not fit, [`CodecError::Sidecar`] if the matrix is too
    /// large for outlier positions.
    pub fn sidecars(&self, shape: MatrixShape) -> Result<Vec<SidecarSpec>, CodecError> {
        self.check(shape)?;
        let mut specs = self.without_outliers(shape);
        specs.extend(CooLayout::Flat.specs(shape, self.n_outliers(shape))?);
        Ok(specs)
    }
}
