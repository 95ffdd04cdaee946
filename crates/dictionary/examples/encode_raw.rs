//! Encodes a matrix from a raw file of little-endian `f32` and prints its errors.
//!
//! ```text
//! cargo run --release -p dictionary --example encode_raw -- FILE D_IN D_OUT [name=value ...]
//! ```
//! Names are the fields of `GlobalParams` (`scheme=sign+vals m=256 k=16 encoder=omp`), and `seed`.

use std::time::Instant;

use dictionary::{GlobalCodec, GlobalParams};
use format::{MatrixShape, n_bytes};
use numerics::metrics::Metrics;
use numerics::{Codec, EncodeContext, TiledMatMul};

use numerics::testing::floats;

type Failure = Box<dyn std::error::Error>;

fn parse(args: &[String]) -> Result<(GlobalParams, u64), Failure> {
    let (mut params, mut seed) = (GlobalParams::default(), 0);
    for arg in args {
        let (name, value) = arg.split_once('=').ok_or("use name=value")?;
        match name {
            "scheme" => params.scheme = value.parse()?,
            "m" => params.m = Some(value.parse()?),
            "k" => params.k = value.parse()?,
            "eta" => params.eta = value.parse()?,
            "iters" => params.iters = value.parse()?,
            "refine" => params.refine = value.parse()?,
            "max_samples" => params.max_samples = value.parse()?,
            "dict_type" => params.dict_type = value.parse()?,
            "anti_hebb" => params.anti_hebb = value.parse()?,
            "encoder" => params.encoder = value.parse()?,
            "seed" => seed = value.parse()?,
            _ => return Err(format!("unknown name '{name}'").into()),
        }
    }
    Ok((params, seed))
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, d_in, d_out, rest @ ..] = args.as_slice() else {
        return Err("usage: encode_raw FILE D_IN D_OUT [name=value ...]".into());
    };
    let shape = MatrixShape::new(d_in.parse()?, d_out.parse()?);
    let weights = floats(&std::fs::read(file).map_err(|e| format!("{file}: {e}"))?);
    let (params, seed) = parse(rest)?;
    let codec = GlobalCodec::new(params);
    let context = EncodeContext { mul_mat: &TiledMatMul, importance: None, seed, progress: &() };
    let bytes = n_bytes(&codec.sidecars(shape)?).ok_or("size overflows")?;
    let start = Instant::now();
    let sidecars = codec.encode(&weights, shape, &context)?;
    let seconds = start.elapsed().as_secs_f64();
    let m = Metrics::compare(&weights, &codec.decode(&sidecars, shape)?, shape, None);
    let bits = bytes as f64 * 8.0 / shape.n_weights() as f64;
    println!(
        "{} M={} k={} {}: error {:.4} gap {:.4} cosine {:.4} (5th percentile {:.4}) {bits:.2} bits per weight, {seconds:.2} s",
        codec.scheme(),
        codec.params.n_atoms(shape),
        codec.params.k,
        codec.params.encoder,
        m.rel_error,
        m.gap,
        m.cos_mean,
        m.cos_p05
    );
    Ok(())
}
