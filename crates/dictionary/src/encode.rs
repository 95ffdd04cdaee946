//! From a matrix and learned atoms to sidecar tensors.

use format::{CodecError, MatrixShape, Scheme, Sidecar, f16_clamped};
use half::f16;
use numerics::{EncodeContext, check_finite};
use rayon::prelude::*;

use super::fit::{Fitter, RowFit, Scratch};
use super::gram::Gram;
use super::samples::BATCH;
use super::selection::Selection;
use super::{GlobalParams, learn};
use crate::DictType;
use crate::metric::Metric;
use format::global::{CODES, DICT, ROW_SCALE, VALS};
use numerics::linalg::{dot, normalize};

/// Learns a dictionary for `weights` and encodes them.
pub(super) fn learned(
    params: &GlobalParams,
    weights: &[f32],
    shape: MatrixShape,
    context: &EncodeContext<'_>,
) -> Result<Vec<Sidecar>, CodecError> {
    let metric = prepare(params, weights, shape, context)?;
    let atoms = learn::learn(params, weights, params.n_atoms(shape), &metric, context);
    // a refit for `sign` leaves atoms with the norm that signs need
    let known = params.scheme == Scheme::Sign && params.refine > 0;
    Ok(Fit { params, weights, shape, metric: &metric, context }.run(atoms, known))
}

/// Encodes `weights` with the directions `atoms`.
pub(super) fn with_atoms(
    params: &GlobalParams,
    weights: &[f32],
    atoms: &[f32],
    shape: MatrixShape,
    context: &EncodeContext<'_>,
) -> Result<Vec<Sidecar>, CodecError> {
    let metric = prepare(params, weights, shape, context)?;
    let m = params.n_atoms(shape);
    if atoms.len() != shape.d_in * m || atoms.iter().any(|a| !a.is_finite()) {
        let reason = "the given atoms are not M finite vectors of d_in".to_owned();
        return Err(CodecError::Parameter {
            name: "--dict-M",
            value: m.to_string(),
            shape,
            reason,
        });
    }
    let mut atoms = atoms.to_vec();
    for atom in atoms.chunks_exact_mut(shape.d_in) {
        let peak = atom.iter().fold(f32::MIN_POSITIVE, |m, a| m.max(a.abs()));
        atom.iter_mut().for_each(|a| *a /= peak);
        metric.rescale(atom);
        normalize(atom);
    }
    Ok(Fit { params, weights, shape, metric: &metric, context }.run(atoms, false))
}

fn prepare(
    params: &GlobalParams,
    weights: &[f32],
    shape: MatrixShape,
    context: &EncodeContext<'_>,
) -> Result<Metric, CodecError> {
    params.check(shape)?;
    assert_eq!(weights.len(), shape.n_weights(), "weights do not fill {shape}");
    check_finite(weights, shape)?;
    Metric::new(weights, shape, context.importance)
}

/// What storing `v` in half precision leaves of it.
fn round_f16(v: f32) -> f32 {
    f16_clamped(v).to_f32()
}

/// One matrix on its way to sidecars.
struct Fit<'a> {
    params: &'a GlobalParams,
    weights: &'a [f32],
    shape: MatrixShape,
    metric: &'a Metric,
    context: &'a EncodeContext<'a>,
}

/// Most batches of rows used to choose the norm of the atoms of scheme `sign`.
const NORM_BATCHES: usize = 64;

/// Rounds of choosing signs and norm in turn.
const NORM_ROUNDS: usize = 4;

impl Fit<'_> {
    /// `atoms`, [d_in, m], are in the scaled space; `known_norm` if their common norm already suits rows
    /// without factors.
    fn run(&self, mut atoms: Vec<f32>, known_norm: bool) -> Vec<Sidecar> {
        let d_in = self.shape.d_in;
        let gain = if self.has_factors() {
            self.balanced_gain(&atoms)
        } else {
            self.sign_gain(&atoms, known_norm)
        };
        let round = |a: f32| if self.params.dict_type == DictType::F16 { round_f16(a) } else { a };
        atoms.par_chunks_exact_mut(d_in).for_each(|atom| {
            self.metric.unscale(atom);
            atom.iter_mut().for_each(|a| *a = round(*a * gain));
        });
        let mut sidecars = vec![self.dict_sidecar(&atoms)];
        // the file's atoms, in the scaled space
        atoms.par_chunks_exact_mut(d_in).for_each(|atom| {
            self.metric.rescale(atom);
            if !self.has_factors() {
                atom.iter_mut().for_each(|a| *a *= self.metric.unit);
            }
        });
        let mut tables = Tables::new(self.params, self.shape.d_out);
        self.for_each_fit(Some("encode"), &atoms, (self.params.scheme, 1), |fits| {
            tables.append(&fits, self.unit());
        });
        tables.finish(&mut sidecars);
        sidecars
    }

    /// Whether the file holds a coefficient or a scale, so that the norm of the atoms is free.
    fn has_factors(&self) -> bool {
        self.params.scheme.has_vals() || self.params.scheme.has_row_scale()
    }

    /// What fitted factors are divided by when they are stored: rows are fitted times the metric's unit.
    fn unit(&self) -> f32 {
        if self.has_factors() { self.metric.unit } else { 1.0 }
    }

    /// A power of two for the atoms that puts them and their coefficients at the same size, so that both
    /// stay within half precision for weights as small or as large as possible.
    fn balanced_gain(&self, atoms: &[f32]) -> f32 {
        let d_in = self.shape.d_in;
        let mut raw = vec![0.0; d_in];
        let (mut sum, mut n, mut peak) = (0.0f64, 0usize, 0.0f32);
        for atom in atoms.chunks_exact(d_in) {
            raw.copy_from_slice(atom);
            self.metric.unscale(&mut raw);
            let largest = raw.iter().fold(0.0f32, |m, a| m.max(a.abs()));
            if largest > 0.0 {
                sum += f64::from(dot(&raw, &raw));
                n += d_in;
                peak = peak.max(largest);
            }
        }
        if n == 0 {
            return 1.0;
        }
        let atom_size = (sum / n as f64).sqrt();
        // rows have about d_in entries of size 1 in the scaled space
        let row_size = (d_in as f64).sqrt() / f64::from(self.metric.unit);
        let highest = (32768.0 / f64::from(peak)).log2().floor();
        let gain = (row_size / atom_size).sqrt().log2().round().min(highest);
        gain.clamp(-100.0, 100.0).exp2() as f32
    }

    /// The norm of the atoms that suits coefficients of +1 and -1 best: least squares on the signs, the
    /// signs chosen anew, and so on.
    fn sign_gain(&self, atoms: &[f32], known: bool) -> f32 {
        let n_batches = self.shape.d_out.div_ceil(BATCH);
        let step = n_batches.div_ceil(NORM_BATCHES);
        let mut gain = 1.0f32;
        // without a norm to start from, the first signs are chosen under a scale per row
        let mut scheme = if known { Scheme::Sign } else { Scheme::SignRowScale };
        for _ in 0..NORM_ROUNDS {
            let scaled: Vec<f32> = atoms.iter().map(|a| a * gain).collect();
            let (mut dot, mut square) = (0.0, 0.0);
            self.for_each_fit(None, &scaled, (scheme, step), |fits| {
                dot += fits.iter().map(|f| f.dot).sum::<f64>();
                square += fits.iter().map(|f| f.square).sum::<f64>();
            });
            if !(dot > 0.0 && square > 0.0) {
                break;
            }
            gain *= (dot / square) as f32;
            scheme = Scheme::Sign;
        }
        gain / self.metric.unit
    }

    /// The sidecar of the `atoms` that the file will hold.
    fn dict_sidecar(&self, atoms: &[f32]) -> Sidecar {
        let dims = [self.shape.d_in, atoms.len() / self.shape.d_in];
        match self.params.dict_type {
            DictType::F16 => {
                let atoms: Vec<f16> = atoms.par_iter().map(|a| f16_clamped(*a)).collect();
                Sidecar::from_f16(DICT, &dims, &atoms)
            }
            DictType::F32 => Sidecar::from_f32(DICT, &dims, atoms),
        }
    }

    /// Fits every `step`-th batch of [`BATCH`] rows, in order, and hands the fits to `sink`.
    fn for_each_fit(
        &self,
        stage: Option<&str>,
        atoms: &[f32],
        (scheme, step): (Scheme, usize),
        mut sink: impl FnMut(Vec<RowFit>),
    ) {
        let (d_in, params) = (self.shape.d_in, self.params);
        let m = atoms.len() / d_in;
        let select = Selection { scheme, encoder: params.encoder, k: params.k };
        let gram = Gram::for_rows(select, self.shape.d_out, atoms, d_in, self.context.mul_mat);
        let fitter = Fitter::new(select, gram, atoms, d_in);
        let unit = f64::from(self.unit());
        let round = |c: f64| f64::from(round_f16((c / unit) as f32)) * unit;
        let (mut x, mut y) = (vec![0.0; d_in * BATCH], vec![0.0; m * BATCH]);
        if let Some(stage) = stage {
            self.context.progress.stage(stage, self.shape.d_out as u64);
        }
        for rows in self.weights.chunks(d_in * BATCH).step_by(step) {
            let n = rows.len() / d_in;
            let (x, y) = (&mut x[..n * d_in], &mut y[..n * m]);
            self.metric.scale(rows, x);
            self.context.mul_mat.mul_mat(atoms, x, d_in, y);
            let fit = |scratch: &mut Scratch, y: &[f32]| fitter.fit(y, &round, scratch);
            sink(y.par_chunks_exact(m).map_init(Scratch::default, fit).collect());
            if stage.is_some() {
                self.context.progress.advance(n as u64);
            }
        }
    }
}

/// The tensors that grow row by row.
struct Tables {
    k: usize,
    codes: Vec<i16>,
    vals: Option<Vec<f16>>,
    row_scale: Option<Vec<f16>>,
}

impl Tables {
    fn new(params: &GlobalParams, d_out: usize) -> Self {
        let slots = || Vec::with_capacity(params.k * d_out);
        Self {
            k: params.k,
            codes: Vec::with_capacity(params.k * d_out),
            vals: params.scheme.has_vals().then(slots),
            row_scale: params.scheme.has_row_scale().then(|| Vec::with_capacity(d_out)),
        }
    }

    fn append(&mut self, fits: &[RowFit], unit: f32) {
        for fit in fits {
            let store = |c: f32| f16_clamped((f64::from(c) / f64::from(unit)) as f32);
            let mut terms = fit.terms.clone();
            terms.sort_unstable_by_key(|t| t.0);
            // what rounds to zero takes no slot
            terms.retain(|t| self.vals.is_none() || store(t.1) != f16::ZERO);
            let code = |&(atom, c): &(u32, f32)| {
                let code = i16::try_from(atom + 1).expect("M was checked");
                if c < 0.0 { -code } else { code }
            };
            let end = self.codes.len() + self.k;
            self.codes.extend(terms.iter().map(code));
            self.codes.resize(end, 0);
            if let Some(vals) = &mut self.vals {
                vals.extend(terms.iter().map(|t| store(t.1.abs())));
                vals.resize(end, f16::ZERO);
            }
            if let Some(row_scale) = &mut self.row_scale {
                row_scale.push(store(fit.scale));
            }
        }
    }

    fn finish(self, sidecars: &mut Vec<Sidecar>) {
        let d_out = self.codes.len() / self.k;
        sidecars.push(Sidecar::from_i16(CODES, &[self.k, d_out], &self.codes));
        sidecars.extend(self.vals.map(|v| Sidecar::from_f16(VALS, &[self.k, d_out], &v)));
        sidecars.extend(self.row_scale.map(|v| Sidecar::from_f16(ROW_SCALE, &[d_out], &v)));
    }
}
