//! Time of coding a few rows for a second moment of many inputs, nearly all of which is the factorization:
//! `cargo run --release -p statecells --example factor [INPUTS]`.

use std::sync::Arc;
use std::time::Instant;

use codec::{Codec, EncodeContext, ReferenceMatMul};
use format::MatrixShape;
use statecells::sections::Moment;
use statecells::{SectionsCodec, SectionsParams};

const ROWS: usize = 32;

fn main() {
    let d: usize = std::env::args().nth(1).map_or(8960, |n| n.parse().expect("a number of inputs"));
    let moment = (0..d * d).map(|at| {
        let apart = (at / d).abs_diff(at % d) as f32;
        if apart == 0.0 { 2.0 } else { (-apart / 50.0).exp() * (apart * 0.37).cos() }
    });
    let moment = Arc::new(Moment::whole(moment.collect(), d));
    let params =
        SectionsParams { beam: 1, rounds: 0, learn_rounds: 1, ..SectionsParams::default() };
    let codec = SectionsCodec::new(params).with_second_moment(moment);
    let shape = MatrixShape::new(d, ROWS);
    let weights: Vec<f32> =
        (0..d * ROWS).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
    let context =
        EncodeContext { mul_mat: &ReferenceMatMul, importance: None, seed: 0, progress: &() };
    let start = Instant::now();
    let sidecars =
        codec.encode(&weights, shape, &context).expect("the moment is positive definite");
    println!("{d} inputs: {:.1} s, {} tensors", start.elapsed().as_secs_f64(), sidecars.len());
}
