//! Writes a small random model: `random_model OUT.gguf [FFN_TYPE] [LAYERS N_EMBD N_FF] [no-gate]`.

use std::path::Path;

use ggml::Type;
use test_models::{Model, Spectrum};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, default| args.get(i).map_or(default, |a| a.parse().expect("a number"));
    let model = Model {
        n_layers: number(3, 2),
        n_embd: number(4, 64),
        n_ff: number(5, 192),
        has_gate: args.get(6).is_none(),
        ffn_type: args.get(2).map_or(Type::F32, |n| Type::from_name(n).expect("a ggml type")),
        spectrum: Spectrum::Power { exponent: 0.5, rank: 32 },
        ..Model::default()
    };
    model.write(Path::new(&args[1])).expect("the file can be written");
}
