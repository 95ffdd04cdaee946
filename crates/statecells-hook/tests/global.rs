//! Global dictionaries through the C ABI: products equal the definition, bad sidecars are refused with a reason.

mod common;

use std::ffi::{CStr, c_char};

use common::{F16, F32, Host, halves};
use half::f16;
use statecells_hook::*;

const I16: i32 = 25;
const D_IN: usize = 24;
const D_OUT: usize = 37;
const M: usize = 6;
const K: usize = 3;

fn atoms() -> Vec<f32> {
    (0..M * D_IN).map(|i| ((i * 7 % 13) as f32 - 6.0) / 8.0).collect()
}

fn codes() -> Vec<i16> {
    (0..K * D_OUT).map(|i| (i * 5 % (2 * M + 1)) as i16 - M as i16).collect()
}

fn row_scales() -> Vec<f32> {
    (0..D_OUT).map(|r| 0.5 + r as f32 / 64.0).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn host(dict_type: i32) -> Host {
    let dict = if dict_type == F16 { halves(&atoms()) } else { floats(&atoms()) };
    let mut host = Host::new("sign+row_scale", D_IN, D_OUT);
    host.add("dict", dict_type, &[D_IN, M], dict);
    host.add("codes", I16, &[K, D_OUT], codes().iter().flat_map(|c| c.to_le_bytes()).collect());
    host.add("row_scale", F16, &[D_OUT], halves(&row_scales()));
    host
}

/// `D^T x`: [M, n_tokens].
fn project(x: &[f32]) -> Vec<f32> {
    let dict = atoms();
    let atom =
        |x: &[f32], j: usize| dict[j * D_IN..][..D_IN].iter().zip(x).map(|(a, x)| a * x).sum();
    x.chunks(D_IN).flat_map(|x| (0..M).map(|j| atom(x, j)).collect::<Vec<f32>>()).collect()
}

/// W^ x by the definition in docs/format.md.
fn definition(x: &[f32]) -> Vec<f32> {
    let (dict, codes, scales) = (atoms(), codes(), row_scales());
    let mut y = Vec::new();
    for x in x.chunks(D_IN) {
        for r in 0..D_OUT {
            let sum: f64 = codes[r * K..(r + 1) * K]
                .iter()
                .filter(|&&c| c != 0)
                .map(|&c| {
                    let atom = &dict[(usize::from(c.unsigned_abs()) - 1) * D_IN..][..D_IN];
                    f64::from(c.signum())
                        * atom.iter().zip(x).map(|(a, x)| f64::from(a * x)).sum::<f64>()
                })
                .sum();
            y.push((sum * f64::from(f16::from_f32(scales[r]).to_f32())) as f32);
        }
    }
    y
}

fn close(y: &[f32], expected: &[f32]) {
    let peak = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (i, (y, e)) in y.iter().zip(expected).enumerate() {
        assert!((y - e).abs() <= 1e-5 * peak, "output {i}: {y} instead of {e}");
    }
}

#[test]
fn products_equal_the_definition_for_one_token_and_many_and_any_number_of_threads() {
    for n_tokens in [1, 2, 5, 33] {
        let x: Vec<f32> =
            (0..D_IN * n_tokens).map(|i| ((i * 31 % 17) as f32 - 8.0) / 4.0).collect();
        for dict_type in [F16, F32] {
            for nth in [1, 2, 3, 8] {
                close(&host(dict_type).product(&x, nth, project), &definition(&x));
            }
        }
    }
}

#[test]
fn inputs_beyond_half_precision_do_not_overflow() {
    let mut x: Vec<f32> = (0..D_IN * 3).map(|i| i as f32 - 30.0).collect();
    x[5] = 3.0e6;
    x[D_IN + 1] = -65505.0;
    let in_half_precision = |x: &[f32]| {
        assert!(x.iter().all(|v| v.abs() <= f16::MAX.to_f32()));
        project(x)
    };
    close(&host(F16).product(&x, 2, in_half_precision), &definition(&x));
}

#[test]
fn bad_sidecars_are_refused_with_a_reason() {
    let check = |expected: &str, change: &dyn Fn(&mut Host)| {
        let mut host = host(F16);
        change(&mut host);
        host.is_refused(expected);
    };
    for (code, expected) in
        [(M as i16 + 1, "code 7"), (-(M as i16) - 1, "code -7"), (i16::MIN, "code -32768")]
    {
        check(expected, &|h| h.tensor("codes").2[8..10].copy_from_slice(&code.to_le_bytes()));
    }
    for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
        check("row_scale", &|h| h.tensor("row_scale").2[..2].copy_from_slice(&bad.to_le_bytes()));
        check("not finite", &|h| h.tensor("dict").2[..2].copy_from_slice(&bad.to_le_bytes()));
    }
    check("'codes'", &|h| h.tensor("codes").1[1] -= 1);
    check("'dict'", &|h| h.tensor("dict").1[0] = 25);
    check("size overflows", &|h| h.tensor("dict").1[1] = i64::MAX);
    check("negative size", &|h| h.tensor("dict").1[1] = -1);
    check("F16 instead of I16", &|h| h.tensor("codes").0 = F16);
    check("element type 2", &|h| h.tensor("codes").0 = 2);
    check("bytes of data", &|h| h.tensor("dict").2.truncate(7));
    check("unknown suffix", &|h| h.suffixes[2] = c"scale".into());
    check("'vals': missing", &|h| h.scheme = "sign+vals");
    check("not a part of scheme sign", &|h| h.scheme = "sign");
    check("scheme 'magic' is unknown", &|h| h.scheme = "magic");
}

#[test]
fn a_broken_call_is_refused_and_void_results_are_nan() {
    let host = host(F16);
    let matrix = host.open().unwrap();
    let x = [1.0f32; D_IN];
    let p = [1.0f32; M];
    let mut y = vec![0.0f32; D_OUT];
    // SAFETY: live buffers; the wrong sizes are smaller than the buffers.
    let mut apply = |bytes: usize, n_tokens: i64, ith: i32, nth: i32| unsafe {
        statecells_apply(
            matrix,
            x.as_ptr(),
            p.as_ptr().cast(),
            bytes,
            n_tokens,
            y.as_mut_ptr(),
            ith,
            nth,
        )
    };
    assert_ne!(apply(4 * M, -1, 0, 1), 0);
    assert_ne!(apply(4 * M, 1, 1, 1), 0);
    assert_ne!(apply(4 * M, 1, 0, 0), 0);
    assert_ne!(apply(4 * M, i64::MAX, 0, 1), 0);
    assert_ne!(apply(8 * M - 4, 1, 0, 1), 0);
    assert!(y.iter().all(|v| v.is_nan()));
    // SAFETY: null is allowed everywhere; the matrix is freed once.
    unsafe {
        assert_ne!(
            statecells_apply(
                std::ptr::null(),
                x.as_ptr(),
                p.as_ptr().cast(),
                4 * M,
                1,
                y.as_mut_ptr(),
                0,
                1
            ),
            0
        );
        statecells_matrix_free(matrix);
        statecells_matrix_free(std::ptr::null_mut());
    }
}

#[test]
fn behind_a_failed_prepare_there_are_no_products() {
    let host = host(F16);
    let matrix = host.open().unwrap();
    let (x, p) = ([1.0f32; D_IN], [1.0f32; 2 * M]);
    let mut prepared = [0.0f32; 2 * D_IN];
    let mut y = vec![0.0f32; D_OUT];
    let mut prepare_and_apply = |prepared_bytes: usize| {
        // SAFETY: live buffers; the wrong size is smaller than the buffer.
        unsafe {
            let (out, p) = (prepared.as_mut_ptr().cast(), p.as_ptr().cast());
            let first = statecells_prepare(matrix, x.as_ptr(), 1, out, prepared_bytes, 0, 1);
            let y = y.as_mut_ptr();
            (first, statecells_apply(matrix, x.as_ptr(), p, 8 * M, 1, y, 0, 1))
        }
    };
    assert_eq!(prepare_and_apply(8 * D_IN), (0, 0));
    assert_eq!(prepare_and_apply(8 * D_IN - 4), (1, 1));
    assert_eq!(prepare_and_apply(8 * D_IN), (0, 1));
    assert!(y.iter().all(|v| v.is_nan()));
    // SAFETY: made above, freed once.
    unsafe { statecells_matrix_free(matrix) };
}

#[test]
fn plans_need_no_data() {
    for (dict_type, prepared_ne0, prepared_columns) in [(F16, D_IN as i64, 2), (F32, 0, 1)] {
        let expected =
            StatecellsPlan { prepared_ne0, prepared_columns, prepared_type: F32, project: 1 };
        assert_eq!(host(dict_type).plan(), expected);
    }
}

#[test]
fn the_list_of_suffixes_ends() {
    // SAFETY: the list ends with a null, and every entry is a C string.
    let suffixes: Vec<&CStr> = unsafe {
        let list = statecells_suffixes();
        (0..)
            .map(|i| *list.add(i))
            .take_while(|s| !s.is_null())
            .map(|s| CStr::from_ptr(s))
            .collect()
    };
    assert!(suffixes.contains(&c"dict") && suffixes.contains(&c"codes"));
}

/// What `statecells_may_code` says, empty for yes.
fn may_code(arch: &CStr, tensor: &CStr, n_dims: usize) -> String {
    let mut error = [0 as c_char; 256];
    // SAFETY: C strings, and room for the error.
    let status = unsafe {
        let (arch, tensor) = (arch.as_ptr(), tensor.as_ptr());
        statecells_may_code(arch, tensor, n_dims, error.as_mut_ptr(), error.len())
    };
    // SAFETY: zeroed or written as a C string.
    let said = unsafe { CStr::from_ptr(error.as_ptr()) }.to_str().unwrap().to_owned();
    assert_eq!(status == 0, said.is_empty());
    said
}

#[test]
fn what_may_be_coded_is_asked_by_name() {
    let up = c"blk.3.ffn_up.weight";
    assert_eq!(may_code(c"llama", up, 2), "");
    assert!(may_code(c"kimi-k3", up, 2).contains("kimi-k3"));
    assert!(may_code(c"llama", up, 3).contains("3 dimensions"));
    for other in [c"blk.3.ffn_norm.weight", c"output.weight", c"", c"\xff"] {
        assert!(!may_code(c"llama", other, 2).is_empty());
    }
    // SAFETY: null is allowed everywhere.
    let status = unsafe {
        let null = std::ptr::null();
        statecells_may_code(null, null, 2, std::ptr::null_mut(), 0)
    };
    assert_eq!(status, 1);
}
