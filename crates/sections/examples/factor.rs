//! Time of factoring a second moment of many inputs: `cargo run --release -p sections --example factor [INPUTS]`.

use std::sync::Arc;
use std::time::Instant;

use numerics::{FactoredMoment, Moment};

/// As of the encoder.
const DAMPING: f64 = 0.05;

fn main() {
    let d: usize = std::env::args().nth(1).map_or(8960, |n| n.parse().expect("a number of inputs"));
    let moment = Arc::new(Moment::from_fn(d, d, |i, j| {
        let apart = i.abs_diff(j) as f32;
        if apart == 0.0 { 2.0 } else { (-apart / 50.0).exp() * (apart * 0.37).cos() }
    }));
    let start = Instant::now();
    let factored = FactoredMoment::new(moment, 0.0, DAMPING).expect("the diagonal is not zero");
    println!(
        "{d} inputs: {:.1} s, first of the factor {}",
        start.elapsed().as_secs_f64(),
        factored.factor_block(0)[0][0]
    );
}
