//! The matrices of experts: one dictionary for all, coded one after the other.

use std::sync::Arc;

use format::coo::Layout as CooLayout;
use format::sections::DICT;
use format::{CodecError, ExpertStack, MatrixShape, Sidecar, SidecarSpec};
use numerics::{Codec, EncodeContext};

use crate::{SectionsCodec, SectionsParts};

/// Rows that a dictionary for many matrices is learned from, at most.
pub const DICTIONARY_ROWS: usize = 4096;

/// Codes the matrices of all experts, each by itself, with the dictionary of the first or the one that was given.
///
/// To everybody else the rows of all experts are one matrix, see [`ExpertStack`].
#[derive(Clone, Debug)]
pub struct ExpertsCodec {
    codec: SectionsCodec,
    stack: ExpertStack,
}

impl ExpertsCodec {
    /// Codes every expert of `stack` with `codec`.
    #[must_use]
    pub fn new(codec: SectionsCodec, stack: ExpertStack) -> Self {
        Self { codec, stack }
    }

    /// Weights that are corrected one by one, in all matrices together.
    fn n_outliers(&self) -> usize {
        self.codec.params.n_outliers(self.stack.each) * self.stack.n_experts
    }

    fn check(&self, shape: MatrixShape) -> Result<(), CodecError> {
        let error = |reason: String| {
            let (name, value) = ("experts", self.stack.to_string());
            Err(CodecError::Parameter { name, value, shape, reason })
        };
        match self.stack.check() {
            Err(reason) => error(reason.to_string()),
            Ok(()) if self.stack.stacked() != shape => error("are of other shapes".to_owned()),
            Ok(()) => self.codec.params.check(self.stack.each),
        }
    }
}

impl Codec for ExpertsCodec {
    fn scheme(&self) -> &'static str {
        self.codec.scheme()
    }

    fn sidecars(&self, shape: MatrixShape) -> Result<Vec<SidecarSpec>, CodecError> {
        self.check(shape)?;
        let mut specs = self.codec.params.without_outliers(shape);
        specs.extend(CooLayout::Flat.specs(shape, self.n_outliers())?);
        Ok(specs)
    }

    fn encode(
        &self,
        weights: &[f32],
        shape: MatrixShape,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError> {
        let each = self.stack.each;
        self.check(shape)?;
        let codec = if self.codec.dictionary.is_some() {
            self.codec.clone()
        } else {
            let rows = spread(shape.d_out, DICTIONARY_ROWS);
            let sample: Vec<f32> = rows
                .iter()
                .flat_map(|row| &weights[row * each.d_in..(row + 1) * each.d_in])
                .copied()
                .collect();
            let sampled = MatrixShape::new(each.d_in, rows.len());
            let dictionary = self.codec.learn(&sample, sampled, context)?;
            self.codec.clone().with_dictionary(Arc::new(dictionary))
        };
        self.encode_by(weights, shape, context, |_| Ok(codec.clone()))
    }

    fn decode(&self, sidecars: &[Sidecar], shape: MatrixShape) -> Result<Vec<f32>, CodecError> {
        Ok(SectionsParts::read(sidecars, shape)?.decode())
    }
}

impl ExpertsCodec {
    /// As [`Codec::encode`], each expert by what `codec` gives for it: codecs with one dictionary, which may differ in what they
    /// know of the inputs.
    ///
    /// # Errors
    /// As [`Codec::encode`], and those of `codec`.
    ///
    /// # Panics
    /// If a codec has no dictionary.
    pub fn encode_by(
        &self,
        weights: &[f32],
        shape: MatrixShape,
        context: &EncodeContext<'_>,
        codec: impl Fn(usize) -> Result<SectionsCodec, CodecError>,
    ) -> Result<Vec<Sidecar>, CodecError> {
        let (specs, each) = (self.sidecars(shape)?, self.stack.each);
        let mut data: Vec<Vec<u8>> = specs.iter().map(|_| Vec::new()).collect();
        for (expert, weights) in weights.chunks_exact(each.n_weights()).enumerate() {
            let codec = codec(expert)?;
            assert!(codec.dictionary.is_some(), "all experts have one dictionary");
            let coded = codec.encode(weights, each, context)?;
            for (sidecar, all) in coded.iter().zip(&mut data) {
                match sidecar.spec.suffix {
                    DICT if expert > 0 => {}
                    suffix if suffix == CooLayout::Flat.idx_suffix() => {
                        let first = (expert * each.n_weights()) as i32; // checked by the layout
                        let moved = sidecar.data.as_chunks::<4>().0.iter();
                        let moved = moved.map(|b| (i32::from_le_bytes(*b) + first).to_le_bytes());
                        all.extend(moved.flatten());
                    }
                    _ => all.extend_from_slice(&sidecar.data),
                }
            }
        }
        let sidecar = |(spec, data)| Sidecar { spec, data };
        Ok(specs.into_iter().zip(data).map(sidecar).collect())
    }
}

/// At most `n` of `0..total`, spread evenly and ascending.
#[must_use]
pub fn spread(total: usize, n: usize) -> Vec<usize> {
    let n = n.min(total);
    let at = |i: usize| (i as u128 * total as u128 / n as u128) as usize;
    (0..n).map(at).collect()
}

#[cfg(test)]
mod tests {
    use numerics::ReferenceMatMul;

    use super::*;
    use crate::SectionsParams;

    const STACK: ExpertStack =
        ExpertStack { each: MatrixShape { d_in: 24, d_out: 64 }, n_experts: 5 };

    fn context() -> EncodeContext<'static> {
        EncodeContext { mul_mat: &ReferenceMatMul, importance: None, seed: 3, progress: &() }
    }

    fn weights(seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..STACK.stacked().n_weights()).map(|_| next() + next() + next()).collect()
    }

    fn codec(outlier_share: f64) -> SectionsCodec {
        SectionsCodec::new(SectionsParams { sections: 6, outlier_share, ..Default::default() })
    }

    fn energy(values: impl Iterator<Item = f32>) -> f64 {
        values.map(|v| f64::from(v).powi(2)).sum()
    }

    #[test]
    fn all_rows_come_back_about_as_near_as_from_a_dictionary_of_their_own() {
        let (w, shape) = (weights(1), STACK.stacked());
        for share in [0.0, 0.01] {
            let experts = ExpertsCodec::new(codec(share), STACK);
            let sidecars = experts.encode(&w, shape, &context()).unwrap();
            let specs = experts.sidecars(shape).unwrap();
            assert!(sidecars.iter().map(|s| &s.spec).eq(&specs));
            let off = |decoded: Vec<f32>| energy(w.iter().zip(&decoded).map(|(a, b)| a - b));
            let shared = off(experts.decode(&sidecars, shape).unwrap());
            let plain = codec(share);
            let whole = plain.encode(&w, shape, &context()).unwrap();
            let whole = off(plain.decode(&whole, shape).unwrap());
            let all = energy(w.iter().copied());
            assert!(shared < 1.1 * whole && shared < 0.05 * all, "{shared} {whole} of {all}");
        }
    }

    #[test]
    fn an_expert_has_the_same_code_whoever_stands_beside_it() {
        let (w, shape) = (weights(1), STACK.stacked());
        let learned = Arc::new(codec(0.0).learn(&w, shape, &context()).unwrap());
        let with =
            |stack| ExpertsCodec::new(codec(0.0).with_dictionary(Arc::clone(&learned)), stack);
        let all = with(STACK).encode(&w, shape, &context()).unwrap();
        let one = ExpertStack { n_experts: 1, ..STACK };
        let third = &w[2 * STACK.each.n_weights()..3 * STACK.each.n_weights()];
        let alone = with(one).encode(third, one.stacked(), &context()).unwrap();
        assert_eq!(all[0].data, alone[0].data);
        for (all, alone) in all.iter().zip(&alone).skip(1) {
            let n = alone.data.len();
            assert_eq!(all.data[2 * n..3 * n], alone.data, "{}", alone.spec.suffix);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let experts = ExpertsCodec::new(codec(0.0), STACK);
        let error = experts.sidecars(MatrixShape::new(24, 64)).unwrap_err().to_string();
        assert!(error.contains("24 x 64 x 5") && error.contains("other shapes"), "{error}");
        let each = MatrixShape::new(24, 40);
        let odd = ExpertsCodec::new(codec(0.0), ExpertStack { each, n_experts: 4 });
        let error = odd.sidecars(MatrixShape::new(24, 160)).unwrap_err().to_string();
        assert!(error.contains("multiples of 32"), "{error}");
    }

    #[test]
    fn rows_are_spread_evenly() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!((spread(3, 8), spread(0, 8)), (vec![0, 1, 2], vec![]));
    }
}
