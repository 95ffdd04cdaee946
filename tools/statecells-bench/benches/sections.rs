//! The sections product with its table building, one thread, codes from memory: 4096 x 4096 and the
//! FFN shapes of SmolLM2-135M. Throughput is in weights times tokens per second.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use statecells_kernels::{
    Atoms, Columns, Isa, Output, Scratch, SectionMatrix, SectionShape, SparseMatrix, TableBuilder,
    TableEntry, TableLayout, TableOutput, Tables,
};

/// Codes of all matrices together: more than the caches hold.
const TOTAL_CODE_BYTES: usize = 96 << 20;

fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as u32
}

/// A dictionary, input and buffers for one shape.
struct Workload {
    builder: TableBuilder,
    x: Vec<f32>,
    tables: Vec<u8>,
    n_tokens: usize,
}

impl Workload {
    fn new(shape: SectionShape, group: usize, entry: TableEntry, n_tokens: usize) -> Self {
        let layout = TableLayout::new(shape.d_in, shape.n_sections, group, entry).unwrap();
        let dict: Vec<f32> =
            (0..shape.n_sections * 128).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let builder = TableBuilder::new(layout, Atoms::F32(&dict)).unwrap();
        let n = shape.d_in * n_tokens;
        let x = (0..n).map(|i| (i * 31 % 97) as f32 / 50.0 - 1.0).collect();
        Self { builder, x, tables: vec![0; layout.bytes_per_token() * n_tokens], n_tokens }
    }

    fn build(&mut self, d_in: usize) {
        let x = Columns::contiguous(&self.x, d_in).unwrap();
        let layout = *self.builder.layout();
        let outputs = TableOutput::split(&mut self.tables, &layout, self.n_tokens, 1).unwrap();
        for mut output in outputs {
            self.builder.build(Isa::detect(), x, &mut output).unwrap();
        }
    }

    fn product(&self, matrix: &SectionMatrix<'_>, y: &mut [f32], scratch: &mut Scratch) {
        let shape = matrix.shape();
        let x = Columns::contiguous(&self.x, shape.d_in).unwrap();
        let tables = Tables::new(&self.tables, self.builder.layout(), self.n_tokens).unwrap();
        let mut y = Output::whole(y, shape.d_out, self.n_tokens).unwrap();
        matrix.product(Isa::detect(), tables, x, &mut y, scratch).unwrap();
    }
}

fn sections(c: &mut Criterion) {
    let mut state = 1;
    let codes: Vec<u8> = (0..TOTAL_CODE_BYTES).map(|_| random(&mut state) as u8).collect();
    for (d_in, d_out, n_sections) in [(4096, 4096, 6), (1536, 576, 7), (576, 1536, 7)] {
        let shape = SectionShape { d_in, d_out, n_sections };
        let row_scale = vec![f16::ONE; d_out];
        let outliers: Vec<i32> = (0..d_in * d_out).step_by(997).map(|i| i as i32).collect();
        let vals = vec![f16::ONE; outliers.len()];
        let outliers = SparseMatrix::from_flat(d_in, d_out, &outliers, &vals).unwrap();
        let matrices: Vec<SectionMatrix<'_>> = codes
            .chunks_exact(shape.code_bytes().unwrap())
            .map(|codes| SectionMatrix::new(shape, codes, &row_scale, None).unwrap())
            .collect();
        let name = format!("sections {d_in}x{d_out} S={n_sections}");
        let mut group = c.benchmark_group(name);
        group.sample_size(20);
        for (n_tokens, blocks, entry) in [
            (1, 4, TableEntry::I8),
            (1, 8, TableEntry::I8),
            (1, 16, TableEntry::I8),
            (1, 8, TableEntry::I16),
            (4, 8, TableEntry::I8),
            (64, 4, TableEntry::I8),
            (64, 8, TableEntry::I8),
            (64, 16, TableEntry::I8),
            (64, 8, TableEntry::I16),
        ] {
            let mut workload = Workload::new(shape, blocks, entry, n_tokens);
            let mut y = vec![0.0; d_out * n_tokens];
            let mut scratch = Scratch::new();
            group.throughput(Throughput::Elements((d_in * d_out * n_tokens) as u64));
            let case = format!("G={blocks} {entry:?}");
            let mut next = 0;
            group.bench_function(BenchmarkId::new(&case, n_tokens), |b| {
                b.iter(|| {
                    workload.build(d_in);
                    workload.product(black_box(&matrices[next]), &mut y, &mut scratch);
                    next = (next + 1) % matrices.len();
                });
            });
            group.bench_function(BenchmarkId::new(format!("{case} tables only"), n_tokens), |b| {
                b.iter(|| workload.build(black_box(d_in)));
            });
        }
        for n_tokens in [1, 64] {
            let x = vec![1.0; d_in * n_tokens];
            let x = Columns::contiguous(&x, d_in).unwrap();
            let mut y = vec![0.0; d_out * n_tokens];
            let mut scratch = Scratch::new();
            group.throughput(Throughput::Elements((d_in * d_out * n_tokens) as u64));
            group.bench_function(BenchmarkId::new("0.1% outliers only", n_tokens), |b| {
                b.iter(|| {
                    let mut y = Output::whole(&mut y, d_out, n_tokens).unwrap();
                    outliers
                        .add_product(Isa::detect(), black_box(x), &mut y, &mut scratch)
                        .unwrap();
                });
            });
        }
    }
}

criterion_group!(benches, sections);
criterion_main!(benches);
