//! Sections through the C ABI: products equal the definition within the tables' rounding, bad sidecars are refused.

mod common;

use common::{ATOMS, BLOCK, Coded, Host, coded, noise};
use half::f16;
use statecells_hook::{statecells_matrix_free, statecells_matrix_prepares_like};

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

#[test]
fn what_is_prepared_is_shared_by_those_with_the_same_dictionary() {
    let first = coded(64, 40, 6, &[]).host;
    let with_its_dictionary = |d_in: usize, first_byte: u8| {
        let mut host = coded(d_in, 32, 6, &[]).host;
        host.tensor("dict").2 = first.tensors[0].2.clone();
        host.tensor("dict").2[0] ^= first_byte;
        host
    };
    let others = [(64, 0), (64, 1), (72, 0)].map(|(d_in, byte)| with_its_dictionary(d_in, byte));
    let a = first.open().unwrap();
    let [same, changed, longer] = others.each_ref().map(|host| host.open().unwrap());
    // SAFETY: null or live matrices.
    let alike = |a, b| unsafe { statecells_matrix_prepares_like(a, b) };
    assert_eq!((alike(a, a), alike(a, same), alike(same, a)), (1, 1, 1));
    assert_eq!((alike(a, changed), alike(a, longer)), (0, 0));
    assert_eq!((alike(a, std::ptr::null()), alike(std::ptr::null(), a)), (0, 0));
    for matrix in [a, same, changed, longer] {
        // SAFETY: made above, freed once.
        unsafe { statecells_matrix_free(matrix) };
    }
}
