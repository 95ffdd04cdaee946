//! Sections through the C ABI: products equal the definition within the tables' rounding, bad sidecars are refused.

mod common;

use common::{F16, Host, halves};
use half::f16;

const I8: i32 = 24;
const I32: i32 = 26;
const BLOCK: usize = 8;
const ATOMS: usize = 16;

/// A matrix with its sidecars and its weights by the definition in docs/format.md.
struct Coded {
    host: Host,
    weights: Vec<f32>,
}

/// Numbers in [-1, 1) without any pattern that a wrong layout would keep.
fn noise(seed: u32) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn coded(d_in: usize, d_out: usize, sections: usize, outliers: &[(usize, f32)]) -> Coded {
    let half = |v: f32| f16::from_f32(v).to_f32();
    let mut next = noise((d_in * d_out * sections) as u32);
    let atoms: Vec<f32> = (0..BLOCK * ATOMS * sections).map(|_| half(next())).collect();
    let scales: Vec<f32> = (0..d_out).map(|_| half(next())).collect();
    let (blocks, tiles) = (d_in.div_ceil(BLOCK), d_out.div_ceil(32));
    let pairs = (blocks * sections).div_ceil(2);
    let mut codes = vec![0u8; 32 * pairs * tiles];
    let mut weights = vec![0.0; d_in * d_out];
    for r in 0..32 * tiles {
        for plane in 0..blocks * sections {
            let winner = ((next() + 1.0) * 8.0) as usize;
            let byte = (r / 32 * pairs + plane / 2) * 32 + r % 32;
            codes[byte] |= (winner << (4 * (plane % 2))) as u8;
            let (block, section) = (plane / sections, plane % sections);
            for j in (0..BLOCK).filter(|j| r < d_out && block * BLOCK + j < d_in) {
                let atom = atoms[(section * ATOMS + winner) * BLOCK + j];
                weights[r * d_in + block * BLOCK + j] += scales[r] * atom;
            }
        }
    }
    let mut host = Host::new("sections", d_in, d_out);
    host.add("dict", F16, &[BLOCK, ATOMS, sections], halves(&atoms));
    host.add("codes", I8, &[32, pairs, tiles], codes);
    host.add("row_scale", F16, &[d_out], halves(&scales));
    if !outliers.is_empty() {
        let idx = outliers.iter().flat_map(|(i, _)| (*i as i32).to_le_bytes()).collect();
        let vals: Vec<f32> = outliers.iter().map(|(_, v)| *v).collect();
        host.add("outlier_idx", I32, &[outliers.len()], idx);
        host.add("outlier_val", F16, &[outliers.len()], halves(&vals));
        outliers.iter().for_each(|(i, v)| weights[*i] += half(*v));
    }
    Coded { host, weights }
}

/// Largest error that rounding the tables can cause in one output: half a step for every code, and a step is the
/// group's largest projection over 127. No group holds a larger projection than the whole input.
fn bound(coded: &Coded, x: &[f32], row: usize) -> f32 {
    let (d_in, sections) = (coded.host.d_in, coded.host.tensors[0].1[2] as usize);
    let halves = |i: usize| -> Vec<f32> {
        let bytes = &coded.host.tensors[i].2;
        bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    };
    let (atoms, scale) = (halves(0), halves(2)[row].abs());
    let projections = x.chunks(BLOCK).flat_map(|x| {
        atoms.chunks(BLOCK).map(move |a| a.iter().zip(x).map(|(a, x)| a * x).sum::<f32>().abs())
    });
    let peak = projections.fold(0.0f32, f32::max);
    scale * (d_in.div_ceil(BLOCK) * sections) as f32 * 0.5 * peak / 127.0 * 1.001
}

fn check(coded: &Coded, n_tokens: usize, nth: i32) {
    let (d_in, d_out) = (coded.host.d_in, coded.host.d_out);
    let mut next = noise(7);
    let x: Vec<f32> = (0..d_in * n_tokens).map(|_| next()).collect();
    let y = coded.host.product(&x, nth, |_| unreachable!("sections need no projection"));
    for (t, x) in x.chunks(d_in).enumerate() {
        for r in 0..d_out {
            let row = &coded.weights[r * d_in..][..d_in];
            let expected: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let error = (f64::from(y[t * d_out + r]) - expected).abs();
            let bound = f64::from(bound(coded, x, r)) + 1e-5 * expected.abs() + 1e-6;
            assert!(error <= bound, "row {r}, token {t}: error {error}, bound {bound}");
        }
    }
}

#[test]
fn products_equal_the_definition_within_the_rounding_of_the_tables() {
    for (d_in, d_out, sections) in [(64, 64, 6), (8, 1, 1), (5, 33, 3), (100, 45, 7), (24, 96, 16)]
    {
        for n_tokens in [1, 3, 9] {
            for nth in [1, 2, 5] {
                check(&coded(d_in, d_out, sections, &[]), n_tokens, nth);
            }
        }
    }
}

#[test]
fn outliers_are_added_to_the_decoded_weights() {
    let outliers = [(0, 3.0), (41, -28.5), (42, 0.25), (100 * 45 - 1, 11.0)];
    check(&coded(100, 45, 7, &outliers), 1, 2);
    check(&coded(100, 45, 7, &outliers), 6, 2);
}

#[test]
fn bad_sidecars_are_refused_with_a_reason() {
    let refused = |expected: &str, change: &dyn Fn(&mut Host)| {
        let mut host = coded(100, 45, 7, &[(3, 1.0), (9, 2.0)]).host;
        change(&mut host);
        host.is_refused(expected);
    };
    refused("'codes'", &|h| h.tensor("codes").1[1] -= 1);
    refused("'codes'", &|h| h.tensor("codes").0 = 25);
    refused("'dict'", &|h| h.tensor("dict").1[1] = 15);
    refused("n_sections", &|h| {
        h.tensor("dict").1[2] = 17;
        h.tensor("dict").2.resize(17 * ATOMS * BLOCK * 2, 0);
    });
    refused("'row_scale'", &|h| h.tensor("row_scale").1[0] = 44);
    refused("'outlier_val': missing", &|h| {
        h.suffixes.pop();
        h.tensors.pop();
    });
    refused("must be above", &|h| {
        h.tensor("outlier_idx").2[..4].copy_from_slice(&9i32.to_le_bytes());
    });
    refused("outside the matrix", &|h| {
        h.tensor("outlier_idx").2[4..].copy_from_slice(&4500i32.to_le_bytes());
    });
    refused("not negative", &|h| {
        h.tensor("outlier_idx").2[..4].copy_from_slice(&(-1i32).to_le_bytes());
    });
    for bad in [f16::NAN, f16::INFINITY] {
        for suffix in ["dict", "row_scale", "outlier_val"] {
            refused(suffix.trim_start_matches("outlier_"), &|h| {
                h.tensor(suffix).2[..2].copy_from_slice(&bad.to_le_bytes());
            });
        }
    }
}
