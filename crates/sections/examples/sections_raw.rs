//! Codes a matrix from a raw file of little-endian `f32` with the scheme `sections` and prints its errors.
//!
//! ```text
//! cargo run --release -p sections --example sections_raw -- FILE D_IN D_OUT [name=value ...]
//! ```
//! Names are the fields of `SectionsParams` (`sections=7 beam=8 rounds=2 outlier_share=0.001`), `seed`,
//! `moment=FILE`, the second moment of the inputs as raw `f32`, and `held_out=FILE`, one of other inputs
//! that is only measured on.

use std::sync::Arc;
use std::time::Instant;

use format::{MatrixShape, n_bytes};
use numerics::Moment;
use numerics::metrics::Metrics;
use numerics::{Codec, EncodeContext, MatMul, TiledMatMul};
use sections::{Metric, SectionsCodec, SectionsParams};

use numerics::testing::floats;

type Failure = Box<dyn std::error::Error>;

fn read_floats(file: &str) -> Result<Vec<f32>, Failure> {
    Ok(floats(&std::fs::read(file).map_err(|e| format!("{file}: {e}"))?))
}

/// `e H e^T / w H w^T` over all rows.
fn functional(w: &[f32], approx: &[f32], h: &[f32], d_in: usize) -> f64 {
    let energy = |rows: &[f32]| {
        let mut product = vec![0.0; rows.len()];
        TiledMatMul.mul_mat(h, rows, d_in, &mut product);
        product.iter().zip(rows).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let error: Vec<f32> = w.iter().zip(approx).map(|(w, a)| w - a).collect();
    energy(&error) / energy(w)
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, d_in, d_out, rest @ ..] = args.as_slice() else {
        return Err("usage: sections_raw FILE D_IN D_OUT [name=value ...]".into());
    };
    let shape = MatrixShape::new(d_in.parse()?, d_out.parse()?);
    let weights = read_floats(file)?;
    let (mut params, mut seed) = (SectionsParams::default(), 0);
    let (mut moment, mut held_out) = (None, None);
    for arg in rest {
        let (name, value) = arg.split_once('=').ok_or("use name=value")?;
        match name {
            "sections" => params.sections = value.parse()?,
            "beam" => params.beam = value.parse()?,
            "rounds" => params.rounds = value.parse()?,
            "outlier_share" => params.outlier_share = value.parse()?,
            "damping" => params.damping = value.parse()?,
            "max_samples" => params.max_samples = value.parse()?,
            "learn_rounds" => params.learn_rounds = value.parse()?,
            "seed" => seed = value.parse()?,
            "moment" => moment = Some(read_floats(value)?),
            "held_out" => held_out = Some(read_floats(value)?),
            _ => return Err(format!("unknown name '{name}'").into()),
        }
    }
    let mut codec = SectionsCodec::new(params);
    if let Some(moment) = &moment {
        let moment = Arc::new(Moment::whole(moment, shape.d_in));
        let metric = Metric::full(moment, 0.0, codec.params.damping, shape)?;
        codec = codec.with_metric(Arc::new(metric));
    }
    let context = EncodeContext { mul_mat: &TiledMatMul, importance: None, seed, progress: &() };
    let bytes = n_bytes(&codec.sidecars(shape)?).ok_or("size overflows")?;
    let start = Instant::now();
    let sidecars = codec.encode(&weights, shape, &context)?;
    let seconds = start.elapsed().as_secs_f64();
    let decoded = codec.decode(&sidecars, shape)?;
    let m = Metrics::compare(&weights, &decoded, shape, None);
    let bits = bytes as f64 * 8.0 / shape.n_weights() as f64;
    print!("S={} beam={}: ", codec.params.sections, codec.params.beam);
    print!("error {:.5} cosine {:.4} {bits:.3} bits per weight", m.rel_error, m.cos_mean);
    for (name, h) in [("fitted", &moment), ("held out", &held_out)] {
        if let Some(h) = h {
            print!(", {name} {:.5}", functional(&weights, &decoded, h, shape.d_in));
        }
    }
    println!(", {seconds:.2} s");
    Ok(())
}
