//! Speed of the kernels with one and with two threads, best of many runs:
//! `cargo run --release -p statecells-kernels --example speed`.
//!
//! Products run as a host runs them: each thread writes its share of the tables, waits for the others
//! and looks up its rows. Codes of several matrices in turn, more than the caches hold.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use half::f16;
use statecells_kernels::{
    Atoms, Columns, GatherMatrix, GatherShape, Isa, Output, Part, Scratch, SectionMatrix,
    SectionShape, TableBuilder, TableEntry, TableLayout, TableOutput, Tables,
};

/// How long each case runs.
const TIME: Duration = Duration::from_secs(2);

/// Where `n` threads wait for each other, spinning as ggml's do.
struct Barrier {
    n: usize,
    arrived: AtomicUsize,
}

impl Barrier {
    fn wait(&self) {
        let round = self.arrived.fetch_add(1, Ordering::AcqRel) / self.n;
        while self.arrived.load(Ordering::Acquire) / self.n == round {
            std::hint::spin_loop();
        }
    }
}

/// Raw pointers that threads share.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T, usize);
// SAFETY: each thread makes pieces of its own part only, and of whole slices between barriers only.
unsafe impl<T> Sync for Shared<T> {}

/// Shortest time of `step(ith, round)` run by `nth` threads at once; `step` returns behind a barrier.
fn best(nth: usize, step: impl Fn(usize, usize, &Barrier) + Sync) -> f64 {
    let barrier = Barrier { n: nth, arrived: AtomicUsize::new(0) };
    let rounds = AtomicUsize::new(usize::MAX);
    std::thread::scope(|scope| {
        for ith in 1..nth {
            let (step, barrier, rounds) = (&step, &barrier, &rounds);
            scope.spawn(move || {
                let mut round = 0;
                loop {
                    barrier.wait();
                    if round >= rounds.load(Ordering::Acquire) {
                        return;
                    }
                    step(ith, round, barrier);
                    round += 1;
                }
            });
        }
        let (begin, mut best, mut round) = (Instant::now(), f64::INFINITY, 0);
        loop {
            if begin.elapsed() > TIME {
                rounds.store(round, Ordering::Release);
                barrier.wait();
                return best;
            }
            barrier.wait();
            let start = Instant::now();
            step(0, round, &barrier);
            best = best.min(start.elapsed().as_secs_f64());
            round += 1;
        }
    })
}

fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as u32
}

fn sections(codes: &[u8], shape: SectionShape, n_tokens: usize, group: usize, nth: usize) -> f64 {
    let SectionShape { d_in, d_out, n_sections } = shape;
    let layout = TableLayout::new(d_in, n_sections, group, TableEntry::I8).unwrap();
    let dict: Vec<f32> = (0..n_sections * 128).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
    let builder = TableBuilder::new(layout, Atoms::F32(&dict)).unwrap();
    let row_scale = vec![f16::ONE; d_out];
    let matrices: Vec<SectionMatrix<'_>> = codes
        .chunks_exact(shape.code_bytes().unwrap())
        .map(|codes| SectionMatrix::new(shape, codes, &row_scale, None).unwrap())
        .collect();
    let x: Vec<f32> = (0..d_in * n_tokens).map(|i| (i * 31 % 97) as f32 - 48.0).collect();
    let x = Columns::contiguous(&x, d_in).unwrap();
    let mut tables = vec![0u8; layout.bytes_per_token() * n_tokens];
    let mut y = vec![0.0f32; d_out * n_tokens];
    let tables = Shared(tables.as_mut_ptr(), tables.len());
    let y = Shared(y.as_mut_ptr(), y.len());
    best(nth, |ith, round, barrier| {
        let (tables, y) = (&tables, &y);
        let part = Part::new(ith, nth).unwrap();
        // SAFETY: the buffers outlive the threads; parts differ; tables are read behind a barrier only.
        unsafe {
            let mut out = TableOutput::from_raw(tables.0, &layout, n_tokens, part).unwrap();
            builder.build(Isa::detect(), x, &mut out).unwrap();
            barrier.wait();
            let bytes = std::slice::from_raw_parts(tables.0, tables.1);
            let tables = Tables::new(bytes, &layout, n_tokens).unwrap();
            let mut out = Output::from_raw(y.0, d_out, n_tokens, d_out, part).unwrap();
            let matrix = &matrices[round % matrices.len()];
            matrix.product(Isa::detect(), tables, x, &mut out, &mut Scratch::new()).unwrap();
        }
        barrier.wait();
    })
}

fn gather(codes: &[i16], shape: GatherShape, n_tokens: usize, nth: usize) -> f64 {
    let matrices: Vec<GatherMatrix<'_>> = codes
        .chunks_exact(shape.k * shape.d_out)
        .map(|codes| GatherMatrix::new(shape, codes, None, None).unwrap())
        .collect();
    let p = vec![1.0; shape.n_atoms * n_tokens];
    let p = Columns::contiguous(&p, shape.n_atoms).unwrap();
    let mut y = vec![0.0f32; shape.d_out * n_tokens];
    let y = Shared(y.as_mut_ptr(), y.len());
    let scratch: Vec<_> = (0..nth).map(|_| std::sync::Mutex::new(Scratch::new())).collect();
    best(nth, |ith, round, barrier| {
        let (y, mut scratch) = (&y, scratch[ith].lock().unwrap());
        let part = Part::new(ith, nth).unwrap();
        // SAFETY: the buffer outlives the threads; parts differ.
        let mut out =
            unsafe { Output::from_raw(y.0, shape.d_out, n_tokens, shape.d_out, part).unwrap() };
        let matrix = &matrices[round % matrices.len()];
        matrix.product(Isa::detect(), p, None, &mut out, &mut scratch).unwrap();
        barrier.wait();
    })
}

fn main() {
    println!("instructions: {}", Isa::detect());
    let mut state = 1;
    let bytes: Vec<u8> = (0..96 << 20).map(|_| random(&mut state) as u8).collect();
    let shape = SectionShape { d_in: 4096, d_out: 4096, n_sections: 6 };
    for (n_tokens, group) in [(1, 8), (64, 8), (64, 16)] {
        let one = sections(&bytes, shape, n_tokens, group, 1);
        let two = sections(&bytes, shape, n_tokens, group, 2);
        let speed = (shape.d_in * shape.d_out * n_tokens) as f64 / one * 1e-9;
        println!(
            "sections 4096x4096 S=6, {n_tokens} tokens, {group} blocks per scale: {:.3} ms, \
             {speed:.1} G weights/s per token; two threads {:.2} times as fast",
            one * 1e3,
            one / two,
        );
    }
    let shape = GatherShape { n_atoms: 4096, k: 32, d_out: 32768 };
    let codes: Vec<i16> = (0..20 * shape.k * shape.d_out)
        .map(|_| (random(&mut state) % 8193) as i16 - 4096)
        .collect();
    for n_tokens in [1, 64] {
        let one = gather(&codes, shape, n_tokens, 1);
        let two = gather(&codes, shape, n_tokens, 2);
        println!(
            "gather 4096 atoms -> 32768, k = 32, {n_tokens} tokens: {:.3} ms; two threads {:.2} \
             times as fast",
            one * 1e3,
            one / two,
        );
    }
}
