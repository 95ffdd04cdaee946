//! Lookups against decoding, batch by batch, one thread, in turns, medians:
//! `cargo run --release -p statecells-kernels --example batches [ISA...]`.
//!
//! Where the second begins to win is the constant of `Dispatch::route`. Each product includes what it
//! prepares from the inputs; codes of several matrices in turn, more than the caches hold.

use std::time::Instant;

use half::f16;
use statecells_kernels::{
    Atoms, Columns, Decoder, InputLayout, InputOutput, Inputs, Isa, Output, Scratch, SectionMatrix,
    SectionShape, TableBuilder, TableEntry, TableLayout, TableOutput, Tables,
};

const D_IN: usize = 4096;
const D_OUT: usize = 4096;
const CODES: usize = 96 << 20;
/// Rounds of a batch of one token; larger batches have fewer.
const ROUNDS: usize = 60;

/// One matrix in several copies, its dictionary and the inputs of a batch.
struct Workload<'a> {
    isa: Isa,
    matrices: Vec<SectionMatrix<'a>>,
    builder: TableBuilder,
    decoder: Decoder,
    inputs: InputLayout,
    x: Vec<f32>,
    y: Vec<f32>,
    prepared: Vec<u8>,
    scratch: Scratch,
}

impl Workload<'_> {
    fn n_tokens(&self) -> usize {
        self.x.len() / D_IN
    }

    fn lookup(&mut self, round: usize) {
        let (n, layout) = (self.n_tokens(), *self.builder.layout());
        let x = Columns::contiguous(&self.x, D_IN).unwrap();
        let data = &mut self.prepared[..layout.bytes_per_token() * n];
        let mut out = TableOutput::split(data, &layout, n, 1).unwrap().remove(0);
        self.builder.build(self.isa, x, &mut out).unwrap();
        let tables = Tables::new(data, &layout, n).unwrap();
        let mut y = Output::whole(&mut self.y, D_OUT, n).unwrap();
        let matrix = &self.matrices[round % self.matrices.len()];
        matrix.product(self.isa, tables, x, &mut y, &mut self.scratch).unwrap();
    }

    fn decode(&mut self, round: usize) {
        let n = self.n_tokens();
        let x = Columns::contiguous(&self.x, D_IN).unwrap();
        let data = &mut self.prepared[..self.inputs.bytes_per_token() * n];
        let mut out = InputOutput::split(data, &self.inputs, n, 1).unwrap().remove(0);
        self.decoder.round_inputs(self.isa, x, &mut out).unwrap();
        let inputs = Inputs::new(data, &self.inputs, n).unwrap();
        let mut y = Output::whole(&mut self.y, D_OUT, n).unwrap();
        let matrix = &self.matrices[round % self.matrices.len()];
        let scratch = &mut self.scratch;
        matrix.decoded_product(self.isa, &self.decoder, inputs, x, &mut y, scratch).unwrap();
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn measure(isa: Isa, codes: &[u8], n_sections: usize, n_tokens: usize) {
    let shape = SectionShape { d_in: D_IN, d_out: D_OUT, n_sections };
    let row_scale = vec![f16::ONE; D_OUT];
    let dict: Vec<f32> = (0..n_sections * 128).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
    let layout = TableLayout::new(D_IN, n_sections, 8, TableEntry::I8).unwrap();
    let mut workload = Workload {
        isa,
        matrices: codes
            .chunks_exact(shape.code_bytes().unwrap())
            .map(|codes| SectionMatrix::new(shape, codes, &row_scale, None).unwrap())
            .collect(),
        builder: TableBuilder::new(layout, Atoms::F32(&dict)).unwrap(),
        decoder: Decoder::new(n_sections, Atoms::F32(&dict)).unwrap(),
        inputs: InputLayout::new(shape).unwrap(),
        x: (0..D_IN * n_tokens).map(|i| (i * 31 % 97) as f32 - 48.0).collect(),
        y: vec![0.0; D_OUT * n_tokens],
        prepared: vec![0; layout.bytes_per_token() * n_tokens],
        scratch: Scratch::new(),
    };
    let mut seconds = [vec![], vec![]];
    for round in 0..(ROUNDS / n_tokens).max(5) {
        for (form, seconds) in seconds.iter_mut().enumerate() {
            let start = Instant::now();
            if form == 0 {
                workload.lookup(round);
            } else {
                workload.decode(round);
            }
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let [lookup, decode] = seconds.map(median);
    let speed = |seconds: f64| (D_IN * D_OUT * n_tokens) as f64 / seconds * 1e-9;
    println!(
        "{isa} S = {n_sections}, {n_tokens} tokens: lookup {:.1}, decode {:.1} Gweights/s per token, ratio {:.2}",
        speed(lookup),
        speed(decode),
        lookup / decode,
    );
}

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let sets: Vec<Isa> = match names.is_empty() {
        true => vec![Isa::detect()],
        false => names.iter().map(|name| name.parse().expect("no such set here")).collect(),
    };
    let mut state = 1u64;
    let codes: Vec<u8> = (0..CODES)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as u8
        })
        .collect();
    for isa in sets {
        for n_sections in [6, 8, 10, 12, 16] {
            for n_tokens in [1, 8, 16, 32, 64, 512] {
                measure(isa, &codes, n_sections, n_tokens);
            }
        }
    }
}
