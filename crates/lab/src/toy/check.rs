//! Codes a problem, measures the error on real products and compares it with the prediction.

use anyhow::{Context, Result};
use clap::ValueEnum;
use format::{MatrixShape, Sidecar};
use numerics::{Codec, EncodeContext, ReferenceMatMul};
use seeddelta::SeedDelta;
use serde::Serialize;
use statecells_kernels::base::BaseOperator;

use crate::toy::plan::Case;
use crate::toy::problem::{Problem, make};

/// Standard deviations of noise and rounding that the error may be away from its expectation.
pub const Z: f64 = 3.0;
/// Half the distance of neighbouring numbers of single precision, relative.
const HALF_ULP: f64 = 1.0 / (1u32 << 24) as f64;
/// Share of the cases that must agree, in all and in each family.
pub const REQUIRED: f64 = 0.95;

/// Mistakes to make on purpose, to prove that the harness notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sabotage {
    /// No mistake.
    #[default]
    None,
    /// Leave the delta out.
    DropDelta,
    /// Move the delta by one column.
    ShiftDelta,
    /// Multiply every product by 1.01.
    Gain,
    /// Hand the inputs over in reverse order.
    ReverseInput,
}

/// Result of one case.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// Expected gap: root of the predicted squared error over the energy of the exact products.
    pub expected_gap: f64,
    /// Measured gap.
    pub gap: f64,
    /// Distance of measured from predicted squared error, in units of the tolerance; at most 1 passes.
    pub deviation: f64,
    /// Size of the tensors.
    pub bytes: usize,
    /// Whether they agree.
    pub passed: bool,
}

/// Runs `case` with the given seed; `None` if it has no closed form.
///
/// # Errors
/// If the codec refuses the matrix or its own tensors.
pub fn run(case: &Case, seed: u64, sabotage: Sabotage) -> Result<Option<Outcome>> {
    let Some(problem) = make(case, seed) else { return Ok(None) };
    let measured = measure(case, &problem, sabotage).with_context(|| case.to_string())?;
    Ok(Some(judge(case, &problem, &measured)))
}

/// Energies over a complete set of inputs.
struct Measured {
    /// Of the differences of the products.
    error: f64,
    /// Of the exact products.
    total: f64,
    bytes: usize,
}

/// Codes the matrix, stores and reads it, and applies it to the inputs `diag(sqrt(h)) q_j` for an
/// orthonormal basis q. Over the whole basis the squared errors of the products add up to
/// `sum h_i (W - W^)[r, i]^2` exactly: nothing is sampled.
fn measure(case: &Case, problem: &Problem, sabotage: Sabotage) -> Result<Measured> {
    let shape = case.shape;
    let context = EncodeContext {
        mul_mat: &ReferenceMatMul,
        importance: problem.importance.as_deref(),
        seed: 0,
        progress: &(),
    };
    let mut sidecars = case.codec.encode(&problem.weights, shape, &context)?;
    let bytes = sidecars.iter().map(|s| s.data.len()).sum();
    spoil(&mut sidecars, sabotage, shape);
    let model = SeedDelta::from_sidecars(&sidecars, shape)?;
    let base = BaseOperator::new(model.base().clone());
    let (mut error, mut total) = (0.0, 0.0);
    let mut product = vec![0.0f32; shape.d_out];
    for j in 0..shape.d_in {
        let mut x = cosine(shape.d_in, j, problem.importance.as_deref());
        let exact: Vec<f64> = problem.weights.chunks(shape.d_in).map(|w| dot(w, &x)).collect();
        if sabotage == Sabotage::ReverseInput {
            x.reverse();
        }
        base.product(&x, &mut product);
        model.delta().add_product(&x, &mut product);
        if sabotage == Sabotage::Gain {
            product.iter_mut().for_each(|y| *y *= 1.01);
        }
        for (y, exact) in product.iter().zip(exact) {
            error += (f64::from(*y) - exact).powi(2);
            total += exact * exact;
        }
    }
    Ok(Measured { error, total, bytes })
}

/// Mistakes that are made in the tensors.
fn spoil(sidecars: &mut Vec<Sidecar>, sabotage: Sabotage, shape: MatrixShape) {
    match sabotage {
        Sabotage::DropDelta => sidecars.retain(|s| !s.spec.suffix.starts_with("delta_")),
        Sabotage::ShiftDelta => {
            for s in sidecars.iter_mut().filter(|s| s.spec.suffix == "delta_idx") {
                let Some(idx) = s.to_i16() else { continue };
                let k = s.spec.dims[0];
                // down where the row starts after column 0, else up where it ends before the last
                let shifted = idx.chunks(k).flat_map(|row| {
                    let room_above = usize::from(row[k - 1].unsigned_abs()) + 1 < shape.d_in;
                    let by = if row[0] > 0 { -1 } else { i16::from(room_above) };
                    row.iter().map(move |i| i + by)
                });
                *s = Sidecar::from_i16("delta_idx", &s.spec.dims, &shifted.collect::<Vec<_>>());
            }
        }
        Sabotage::None | Sabotage::Gain | Sabotage::ReverseInput => {}
    }
}

/// Vector j of the orthonormal cosine basis (DCT-II), times sqrt(h).
fn cosine(n: usize, j: usize, importance: Option<&[f32]>) -> Vec<f32> {
    let scale = if j == 0 { 1.0 / n as f64 } else { 2.0 / n as f64 }.sqrt();
    let angle = std::f64::consts::PI * j as f64 / n as f64;
    let at = |i: usize| {
        let root = importance.map_or(1.0, |h| f64::from(h[i]).sqrt());
        (scale * root * (angle * (i as f64 + 0.5)).cos()) as f32
    };
    (0..n).map(at).collect()
}

fn dot(w: &[f32], x: &[f32]) -> f64 {
    w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
}

fn judge(case: &Case, problem: &Problem, measured: &Measured) -> Outcome {
    let Measured { error, total, bytes } = *measured;
    let expected = problem.prediction.energy.max(0.0);
    // float error e adds at most (sqrt(E) + e)^2 - E
    let float = float_error(case.shape.d_in) * total.sqrt();
    let tolerance =
        Z * problem.prediction.variance.sqrt() + 2.0 * expected.sqrt() * float + float * float;
    let deviation = (error - expected).abs() / tolerance.max(f64::MIN_POSITIVE);
    // NaN products are infinitely wrong
    let deviation = if deviation.is_nan() { f64::INFINITY } else { deviation };
    Outcome {
        case: case.clone(),
        expected_gap: (expected / total).sqrt(),
        gap: (error / total).sqrt(),
        deviation,
        bytes,
        passed: deviation <= 1.0,
    }
}

/// Error to allow for products in single precision, relative to the root of their energy: the errors of a
/// sum of d_in terms walk at random, twice their expected distance, and some units for the FFT.
fn float_error(d_in: usize) -> f64 {
    HALF_ULP * (4.0 + 2.0 * (d_in as f64).sqrt())
}
