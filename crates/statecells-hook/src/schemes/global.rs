//! Matrices with one dictionary over the whole input: the host projects on the atoms, this adds entries
//! of the projection.

use format::global::{CODES, DICT, ROW_SCALE, VALS};
use format::{ElementType, MatrixShape, Scheme};
use half::f16;
use statecells_kernels::{Columns, GatherMatrix, GatherShape, Isa, Output, Part};

use crate::buffer::{SharedOutput, bytes_of};
use crate::error::HookError;
use crate::product::{Call, Plan, Product, with_scratch};
use crate::schemes::Coded;
use crate::sidecars::Sidecars;

/// With an F16 dictionary ggml rounds the input to F16, which ends at 65504. Inputs above this are scaled down by
/// a power of two, which costs no precision, and the result is scaled back.
const MAX_INPUT: f32 = 32768.0;

/// F16 keeps 11 bits of an input; the rest is multiplied by this and projected as a column of its own, so that the
/// projection is as good as with inputs in F32.
const REST_SCALE: f32 = 2048.0;

fn parse(scheme: &str) -> Result<Scheme, HookError> {
    scheme.parse().map_err(|_| HookError::unknown_scheme(scheme))
}

/// A matrix of one of the schemes `sign`, `sign+row_scale`, `sign+vals`.
#[derive(Debug)]
pub struct GlobalMatrix {
    d_in: usize,
    /// Whether the host multiplies in F16, so that large inputs are to be scaled.
    half_input: bool,
    isa: Isa,
    rows: GatherMatrix<'static>,
}

impl Coded for GlobalMatrix {
    fn plan(scheme: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Plan, HookError> {
        let scheme = parse(scheme)?;
        let dict = sidecars.need(DICT)?;
        let m = dict.dims()[1];
        dict.expect(&[ElementType::F16, ElementType::F32], &[shape.d_in, m])?;
        if m == 0 || m > i16::MAX as usize {
            return Err(dict.error(format!("{m} atoms, outside 1..=32767")));
        }
        let codes = sidecars.need(CODES)?;
        let k = codes.dims()[0];
        codes.expect(&[ElementType::I16], &[k, shape.d_out])?;
        if k == 0 || k > m {
            return Err(codes.error(format!("{k} codes per row for {m} atoms")));
        }
        let optional = [
            (VALS, scheme.has_vals(), vec![k, shape.d_out]),
            (ROW_SCALE, scheme.has_row_scale(), vec![shape.d_out]),
        ];
        for (suffix, wanted, dims) in optional {
            match (sidecars.get(suffix), wanted) {
                (Some(tensor), true) => tensor.expect(&[ElementType::F16], &dims)?,
                (None, true) => return Err(HookError::sidecar(suffix, "missing")),
                (Some(tensor), false) => {
                    return Err(tensor.error(format!("not a part of scheme {scheme}")));
                }
                (None, false) => {}
            }
        }
        let half_input = dict.element() == ElementType::F16;
        Ok(Plan {
            prepared_ne0: if half_input { shape.d_in } else { 0 },
            prepared_columns: if half_input { 2 } else { 1 },
            prepared_type: ElementType::F32,
            project: true,
        })
    }

    fn new(scheme: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Self, HookError> {
        Self::plan(scheme, shape, sidecars)?;
        let dict = sidecars.need(DICT)?;
        let half_input = dict.element() == ElementType::F16;
        let finite = match dict.element() {
            ElementType::F16 => dict.f16()?.iter().all(|v| v.is_finite()),
            _ => dict.f32()?.iter().all(|v| v.is_finite()),
        };
        if !finite {
            return Err(dict.error("an atom is not finite"));
        }
        let codes = sidecars.need(CODES)?;
        let of = |suffix: &str| -> Result<Option<&'static [f16]>, HookError> {
            sidecars.get(suffix).map(|s| s.f16()).transpose()
        };
        let size = GatherShape { n_atoms: dict.dims()[1], k: codes.dims()[0], d_out: shape.d_out };
        let rows = GatherMatrix::new(size, codes.i16()?, of(VALS)?, of(ROW_SCALE)?)?;
        let isa = Isa::from_env().map_err(|e| HookError::Environment(e.to_string()))?;
        Ok(Self { d_in: shape.d_in, half_input, isa, rows })
    }
}

impl Product for GlobalMatrix {
    /// Splits this thread's tokens of x, scaled where they are too large for F16: what F16 keeps of a token in one
    /// column, and the rest in the next.
    fn prepare(&self, x: &[f32], call: Call, out: &SharedOutput<u8>) -> Result<(), HookError> {
        if !self.half_input || out.len() != 2 * size_of_val(x) {
            return Err(HookError::Call("prepare: buffer does not fit"));
        }
        // SAFETY: `out` is twice as many writable bytes as `x`; the alignment is checked; each token belongs to one
        // thread.
        let out = unsafe { SharedOutput::new(out.as_mut_ptr().cast::<f32>(), 2 * x.len())? };
        let d_in = self.d_in;
        for t in (call.ith..call.n_tokens).step_by(call.nth) {
            let token = &x[t * d_in..(t + 1) * d_in];
            // SAFETY: the columns of tokens are disjoint and these are this thread's.
            let columns = unsafe { out.part(2 * t * d_in..2 * (t + 1) * d_in)? };
            let scale = 1.0 / input_scale(token);
            let (kept, rest) = columns.split_at_mut(d_in);
            for ((kept, rest), x) in kept.iter_mut().zip(rest).zip(token) {
                *kept = f16::from_f32(x * scale).to_f32();
                *rest = (x * scale - *kept) * REST_SCALE;
            }
        }
        Ok(())
    }

    /// Computes this thread's rows from the projection `prepared`: [M, n_tokens] F32, or with two columns per token
    /// what F16 kept and the rest.
    fn apply(
        &self,
        x: &[f32],
        prepared: &[u8],
        call: Call,
        out: &SharedOutput<f32>,
    ) -> Result<(), HookError> {
        let size = self.rows.shape();
        let n = size.n_atoms * call.n_tokens * if self.half_input { 2 } else { 1 };
        if prepared.len() != n * size_of::<f32>() {
            return Err(HookError::Call("apply: projection has another size"));
        }
        // SAFETY: `prepared` is n floats long; bytes_of checks the alignment; every bit pattern is an f32.
        let p = unsafe { bytes_of(prepared.as_ptr().cast::<f32>(), n)? };
        let sums = self.half_input.then(|| add_rests(p, size.n_atoms));
        let p = sums.as_deref().unwrap_or(p);
        let p = Columns::new(p, size.n_atoms, call.n_tokens, size.n_atoms)?;
        let scales = self.half_input.then(|| token_scales(x, self.d_in)).flatten();
        let part = Part::new(call.ith, call.nth)?;
        // SAFETY: `out` is [d_out, n_tokens], shared only by the threads of this call, each with its own `ith`.
        let mut y = unsafe {
            Output::from_raw(out.as_mut_ptr(), size.d_out, call.n_tokens, size.d_out, part)?
        };
        with_scratch(|scratch| {
            Ok(self.rows.product(self.isa, p, scales.as_deref(), &mut y, scratch)?)
        })
    }
}

/// Projections [M, n_tokens] from those of the two columns of every token.
fn add_rests(p: &[f32], n_atoms: usize) -> Vec<f32> {
    let token = |p: &[f32]| -> Vec<f32> {
        let (kept, rest) = p.split_at(n_atoms);
        kept.iter().zip(rest).map(|(kept, rest)| kept + rest / REST_SCALE).collect()
    };
    p.chunks_exact(2 * n_atoms).flat_map(token).collect()
}

/// The power of two by which a token is divided before it is rounded to F16.
fn input_scale(token: &[f32]) -> f32 {
    let peak = token.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if peak <= MAX_INPUT || !peak.is_finite() {
        return 1.0;
    }
    (peak / MAX_INPUT).log2().ceil().exp2()
}

/// Scales of all tokens, `None` if all are 1.
fn token_scales(x: &[f32], d_in: usize) -> Option<Vec<f32>> {
    let scales: Vec<f32> = x.chunks_exact(d_in).map(input_scale).collect();
    scales.iter().any(|&s| s != 1.0).then_some(scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inputs_beyond_half_precision_are_scaled() {
        assert_eq!(input_scale(&[0.0, -32768.0]), 1.0);
        for peak in [32769.0f32, 1e6, 3e38, f32::MAX] {
            let scale = input_scale(&[1.0, -peak]);
            assert!(peak / scale <= MAX_INPUT && peak / scale > MAX_INPUT / 4.0, "{peak}: {scale}");
            assert_eq!(scale.log2().fract(), 0.0);
        }
        assert_eq!(input_scale(&[f32::NAN, 1.0]), 1.0);
        assert_eq!(input_scale(&[f32::INFINITY]), 1.0);
    }
}
