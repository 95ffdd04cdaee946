//! The gather at the size of a 24B model's `ffn_gate`: 5120 -> 32768 over 4096 atoms, k = 32.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use statecells_kernels::{Columns, GatherMatrix, GatherShape, Isa, Output, Scratch};

const SHAPE: GatherShape = GatherShape { n_atoms: 4096, k: 32, d_out: 32768 };

fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as u32
}

fn gather(c: &mut Criterion) {
    let mut state = 1;
    let n_codes = SHAPE.k * SHAPE.d_out;
    let codes: Vec<i16> = (0..n_codes)
        .map(|_| {
            let atom = (random(&mut state) as usize % SHAPE.n_atoms) as i16 + 1;
            if random(&mut state) & 1 == 1 { -atom } else { atom }
        })
        .collect();
    let vals: Vec<f16> = (0..n_codes).map(|i| f16::from_f32((i % 97) as f32 / 97.0)).collect();
    let row_scale = vec![f16::from_f32(0.5); SHAPE.d_out];
    let plain = GatherMatrix::new(SHAPE, &codes, None, Some(&row_scale)).unwrap();
    let with_vals = GatherMatrix::new(SHAPE, &codes, Some(&vals), None).unwrap();
    for (name, matrix) in [("sign+row_scale", plain), ("sign+vals", with_vals)] {
        let mut group = c.benchmark_group(format!("gather {name}"));
        group.sample_size(20);
        for n_tokens in [1, 2, 3, 8, 16, 64] {
            let p: Vec<f32> = (0..SHAPE.n_atoms * n_tokens).map(|i| (i % 1013) as f32).collect();
            let p = Columns::contiguous(&p, SHAPE.n_atoms).unwrap();
            let mut y = vec![0.0; SHAPE.d_out * n_tokens];
            let mut scratch = Scratch::new();
            group.throughput(Throughput::Elements(n_tokens as u64));
            for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::SCALAR) {
                group.bench_function(BenchmarkId::new(isa.name(), n_tokens), |b| {
                    b.iter(|| {
                        let mut y = Output::whole(&mut y, SHAPE.d_out, n_tokens).unwrap();
                        matrix.product(isa, black_box(p), None, &mut y, &mut scratch).unwrap();
                    });
                });
            }
        }
    }
}

criterion_group!(benches, gather);
criterion_main!(benches);
