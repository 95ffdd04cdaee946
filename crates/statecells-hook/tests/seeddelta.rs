//! Base plus delta through the C ABI: products equal those of the decoded matrix, bad sidecars are refused.

mod common;

use common::{F16, F32, Host, halves};
use format::seeddelta::BaseType;
use format::{ElementType, MatrixShape};
use numerics::{Codec, EncodeContext, ReferenceMatMul};
use seeddelta::{Delta, SeedDeltaCodec};

/// Numbers in [-1, 1) without a pattern.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A host with the sidecars of a random matrix, and what they decode to.
fn coded(
    base: &str,
    delta: Delta,
    row_scale: bool,
    base_type: BaseType,
    d_in: usize,
    d_out: usize,
) -> (Host, Vec<f32>) {
    let shape = MatrixShape::new(d_in, d_out);
    let codec = SeedDeltaCodec { base: base.parse().unwrap(), base_type, row_scale, delta };
    let context =
        EncodeContext { mul_mat: &ReferenceMatMul, importance: None, seed: 0, progress: &() };
    let sidecars = codec.encode(&noise(d_in * d_out, 3), shape, &context).unwrap();
    let dense = codec.decode(&sidecars, shape).unwrap();
    let mut host = Host::new("seeddelta", d_in, d_out);
    for s in sidecars {
        let ty = match s.spec.element_type {
            ElementType::F32 => F32,
            ElementType::F16 => F16,
            ElementType::I8 => 24,
            ElementType::I16 => 25,
            ElementType::I32 => 26,
        };
        host.add(s.spec.suffix, ty, &s.spec.dims, s.data);
    }
    (host, dense)
}

/// The largest error of any output over the largest output.
fn distance(host: &Host, dense: &[f32], n_tokens: usize, nth: i32) -> f64 {
    let x = noise(host.d_in * n_tokens, 9);
    let y = host.product(&x, nth, |_| unreachable!("nothing is projected"));
    let (mut worst, mut peak) = (0.0f64, 0.0f64);
    for (x, y) in x.chunks(host.d_in).zip(y.chunks(host.d_out)) {
        for (w, y) in dense.chunks(host.d_in).zip(y) {
            let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            worst = worst.max((exact - f64::from(*y)).abs());
            peak = peak.max(exact.abs());
        }
    }
    assert!(worst.is_finite());
    worst / peak
}

const BASES: [&str; 9] = [
    "none",
    "identity",
    "diagonal",
    "lowrank:5",
    "circulant",
    "block:7",
    "lowrank:3+diagonal",
    "circulant+block:4",
    "circulant+lowrank:2",
];

#[test]
fn products_equal_those_of_the_decoded_matrix() {
    for base in BASES {
        for (d_in, d_out) in [(40, 40), (24, 71), (71, 24), (64, 1)] {
            let base = if d_out == 1 {
                base.replace(":5", ":1").replace(":3", ":1").replace(":2", ":1")
            } else {
                base.to_owned()
            };
            for (delta, row_scale, ty) in [
                (Delta::Coo { k: 6 }, false, BaseType::F16),
                (Delta::None, true, BaseType::F32),
                (Delta::Coo { k: 1 }, true, BaseType::F16),
            ] {
                if base == "none" && delta == Delta::None {
                    continue;
                }
                let (host, dense) = coded(&base, delta, row_scale, ty, d_in, d_out);
                for (n_tokens, nth) in [(1, 1), (1, 3), (5, 2), (3, 5)] {
                    let distance = distance(&host, &dense, n_tokens, nth);
                    assert!(distance < 1e-5, "{base}, {d_in} x {d_out}, {delta:?}: {distance}");
                }
            }
        }
    }
}

#[test]
fn a_wrong_number_is_seen() {
    let (mut host, dense) =
        coded("lowrank:5+diagonal", Delta::Coo { k: 6 }, false, BaseType::F16, 40, 40);
    for suffix in ["base_v", "base_u", "base_diag", "delta_val"] {
        let sign = &mut host.tensor(suffix).2[1];
        *sign ^= 0x80;
        assert!(distance(&host, &dense, 3, 1) > 1e-3, "{suffix}");
        host.tensor(suffix).2[1] ^= 0x80;
    }
}

#[test]
fn damaged_sidecars_are_refused_with_a_reason() {
    let make = || coded("lowrank:5+circulant", Delta::Coo { k: 6 }, true, BaseType::F16, 40, 30).0;
    let refused = |change: fn(&mut Host), expected: &str| {
        let mut host = make();
        change(&mut host);
        host.is_refused(expected);
    };
    refused(|h| h.tensor("base_v").1[1] = 4, "'base_v': ");
    refused(|h| h.tensor("base_u").2[1] = 0x7c, "'base_u': value 0 is");
    refused(|h| h.tensor("base_circ").1[0] = 30, "'base_circ': ");
    refused(|h| h.tensor("delta_idx").2[..2].copy_from_slice(&[40, 0]), "do not ascend");
    refused(|h| h.tensor("delta_idx").2[10..12].copy_from_slice(&[40, 0]), "is not a column");
    refused(|h| h.tensor("delta_val").2[1] = 0x7c, "delta value");
    refused(|h| h.tensor("delta_val").1[0] = 5, "'delta_val': ");
    refused(|h| h.tensor("row_scale").2[1] = 0x7e, "'row_scale': ");
    refused(
        |h| h.add("dict", F16, &[2], halves(&[0.0, 0.0])),
        "'dict': not a part of scheme seeddelta",
    );
    let mut empty = make();
    empty.suffixes.clear();
    empty.tensors.clear();
    empty.is_refused("missing");
    let mut lonely = make();
    let at = lonely.suffixes.iter().position(|s| s.to_str() == Ok("base_v")).unwrap();
    lonely.suffixes.remove(at);
    lonely.tensors.remove(at);
    lonely.is_refused("'base_v': missing");
}
