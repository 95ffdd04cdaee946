//! Lookups against decoding, and against products whose decoded tiles are all in a cache, batch by batch, one thread, in
//! turns, medians:
//! `cargo run --release -p statecells-kernels --example batches [SECTIONS...] [ISA...]`. Several
//! instruction sets run in turns too.
//!
//! Where the second begins to win is the constant of `Dispatch::route`. Each product includes what it
//! prepares from the inputs; codes of several matrices in turn, more than the caches hold.

use std::time::Instant;

use half::f16;
use statecells_kernels::{
    Atoms, Columns, Decoder, InputLayout, InputOutput, Inputs, Isa, Output, Scratch, SectionMatrix,
    SectionShape, TableBuilder, TableEntry, TableLayout, TableOutput, Tables, TileCache,
};

const D_IN: usize = 4096;
const D_OUT: usize = 4096;
const CODES: usize = 96 << 20;
/// Rounds of a batch of one token; larger batches have fewer.
const ROUNDS: usize = 60;
const WAYS: [&str; 3] = ["lookup", "decode", "cached"];
const TOKENS: [usize; 10] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 512];

/// One matrix in several copies, its dictionary and the inputs of a batch.
struct Workload<'a> {
    matrices: Vec<SectionMatrix<'a>>,
    /// The same with a cache that holds all of their tiles.
    cached: Vec<SectionMatrix<'a>>,
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

    fn lookup(&mut self, isa: Isa, i: usize) {
        let (n, layout) = (self.n_tokens(), *self.builder.layout());
        let x = Columns::contiguous(&self.x, D_IN).unwrap();
        let data = &mut self.prepared[..layout.bytes_per_token() * n];
        let mut out = TableOutput::split(data, &layout, n, 1).unwrap().remove(0);
        self.builder.build(isa, x, &mut out).unwrap();
        let tables = Tables::new(data, &layout, n).unwrap();
        let mut y = Output::whole(&mut self.y, D_OUT, n).unwrap();
        let matrix = &self.matrices[i % self.matrices.len()];
        matrix.product(isa, tables, x, &mut y, &mut self.scratch).unwrap();
    }

    fn decode(&mut self, isa: Isa, i: usize, cached: bool) {
        let n = self.n_tokens();
        let x = Columns::contiguous(&self.x, D_IN).unwrap();
        let data = &mut self.prepared[..self.inputs.bytes_per_token() * n];
        let mut out = InputOutput::split(data, &self.inputs, n, 1).unwrap().remove(0);
        self.decoder.round_inputs(isa, x, &mut out).unwrap();
        let inputs = Inputs::new(data, &self.inputs, n).unwrap();
        let mut y = Output::whole(&mut self.y, D_OUT, n).unwrap();
        let matrices = if cached { &self.cached } else { &self.matrices };
        let (matrix, scratch) = (&matrices[i % matrices.len()], &mut self.scratch);
        matrix.decoded_product(isa, &self.decoder, inputs, x, &mut y, scratch).unwrap();
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Gweights per second and token of every set and way, in turns: [set, way].
fn measure(
    sets: &[Isa],
    codes: &[u8],
    n_sections: usize,
    n_tokens: usize,
) -> Vec<[f64; WAYS.len()]> {
    let shape = SectionShape { d_in: D_IN, d_out: D_OUT, n_sections };
    let row_scale = vec![f16::ONE; D_OUT];
    let dict: Vec<f32> = (0..n_sections * 128).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
    let layout = TableLayout::new(D_IN, n_sections, 8, TableEntry::I8).unwrap();
    let matrices: Vec<SectionMatrix<'_>> = codes
        .chunks_exact(shape.code_bytes().unwrap())
        .map(|codes| SectionMatrix::new(shape, codes, &row_scale, None).unwrap())
        .collect();
    let (cache, mut cached) = (TileCache::new(usize::MAX), matrices.clone());
    cached.iter_mut().for_each(|matrix| matrix.keep_tiles(&cache));
    let mut workload = Workload {
        cached,
        matrices,
        builder: TableBuilder::new(layout, Atoms::F32(&dict)).unwrap(),
        decoder: Decoder::new(n_sections, Atoms::F32(&dict)).unwrap(),
        inputs: InputLayout::new(shape).unwrap(),
        x: (0..D_IN * n_tokens).map(|i| (i * 31 % 97) as f32 - 48.0).collect(),
        y: vec![0.0; D_OUT * n_tokens],
        prepared: vec![0; layout.bytes_per_token() * n_tokens],
        scratch: Scratch::new(),
    };
    let mut seconds = vec![[const { vec![] }; WAYS.len()]; sets.len()];
    for i in 0..workload.cached.len() {
        workload.decode(sets[0], i, true);
    }
    let mut products = 0..;
    for _ in 0..(ROUNDS / n_tokens).max(7) {
        for (&isa, seconds) in sets.iter().zip(&mut seconds) {
            for (way, seconds) in WAYS.into_iter().zip(seconds) {
                // No product finds its codes in a cache because the one before has read them.
                let i = products.next().unwrap();
                let start = Instant::now();
                match way {
                    "lookup" => workload.lookup(isa, i),
                    way => workload.decode(isa, i, way == "cached"),
                }
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let speed = |seconds| (D_IN * D_OUT * n_tokens) as f64 / median(seconds) * 1e-9;
    seconds.into_iter().map(|ways| ways.map(speed)).collect()
}

fn main() {
    let (mut sections, mut sets): (Vec<usize>, Vec<Isa>) = (vec![], vec![]);
    for name in std::env::args().skip(1) {
        match name.parse() {
            Ok(n_sections) => sections.push(n_sections),
            Err(_) => sets.push(name.parse().expect("no such set here")),
        }
    }
    if sections.is_empty() {
        sections.extend([4, 5, 6, 7, 8, 10, 12, 16]);
    }
    if sets.is_empty() {
        sets.push(Isa::detect());
    }
    let mut state = 1u64;
    let codes: Vec<u8> = (0..CODES)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as u8
        })
        .collect();
    for n_sections in sections {
        println!("S = {n_sections}, Gweights/s");
        let columns = TOKENS.map(|n| measure(&sets, &codes, n_sections, n));
        println!("{:20}{}", "tokens", TOKENS.map(|n| format!("{n:7}")).concat());
        for (i, isa) in sets.iter().enumerate() {
            for (j, way) in WAYS.iter().enumerate() {
                let cells: String = columns.iter().map(|c| format!("{:7.1}", c[i][j])).collect();
                println!("{:20}{cells}", format!("{isa} {way}"));
            }
        }
    }
}
