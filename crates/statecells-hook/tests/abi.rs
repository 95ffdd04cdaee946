//! The C ABI as a host uses it: products equal the definition, bad sidecars are refused with a reason.

use std::ffi::{CStr, CString, c_char};

use half::f16;
use statecells_hook::*;

const F32: i32 = 0;
const F16: i32 = 1;
const I16: i32 = 25;
const D_IN: usize = 24;
const D_OUT: usize = 37;
const M: usize = 6;
const K: usize = 3;

/// Owned sidecars of one matrix, and what the host passes for them.
struct Host {
    suffixes: Vec<CString>,
    tensors: Vec<(i32, [i64; 4], Vec<u8>)>,
}

fn bytes<T: Copy>(values: &[T], to: impl Fn(T) -> Vec<u8>) -> Vec<u8> {
    values.iter().flat_map(|&v| to(v)).collect()
}

fn halves(values: &[f32]) -> Vec<u8> {
    bytes(values, |v| f16::from_f32(v).to_le_bytes().to_vec())
}

fn atoms() -> Vec<f32> {
    (0..M * D_IN).map(|i| ((i * 7 % 13) as f32 - 6.0) / 8.0).collect()
}

fn codes() -> Vec<i16> {
    (0..K * D_OUT).map(|i| (i * 5 % (2 * M + 1)) as i16 - M as i16).collect()
}

fn row_scales() -> Vec<f32> {
    (0..D_OUT).map(|r| 0.5 + r as f32 / 64.0).collect()
}

impl Host {
    fn new(dict_type: i32) -> Self {
        let dict = match dict_type {
            F16 => halves(&atoms()),
            _ => bytes(&atoms(), |v| v.to_le_bytes().to_vec()),
        };
        let mut host = Self { suffixes: vec![], tensors: vec![] };
        host.add("dict", dict_type, &[D_IN, M], dict);
        host.add("codes", I16, &[K, D_OUT], bytes(&codes(), |v| v.to_le_bytes().to_vec()));
        host.add("row_scale", F16, &[D_OUT], halves(&row_scales()));
        host
    }

    fn add(&mut self, suffix: &str, ty: i32, dims: &[usize], data: Vec<u8>) {
        let mut ne = [1; 4];
        ne.iter_mut().zip(dims).for_each(|(n, d)| *n = *d as i64);
        self.suffixes.push(CString::new(suffix).unwrap());
        self.tensors.push((ty, ne, data));
    }

    fn raw(&self) -> Vec<StatecellsTensor> {
        let describe =
            |(suffix, (ty, ne, data)): (&CString, &(i32, [i64; 4], Vec<u8>))| StatecellsTensor {
                suffix: suffix.as_ptr(),
                ggml_type: *ty,
                ne: *ne,
                data: data.as_ptr().cast(),
                n_bytes: data.len(),
            };
        self.suffixes.iter().zip(&self.tensors).map(describe).collect()
    }

    /// The matrix, or the reason why it is refused.
    fn open(&self, scheme: &str) -> Result<*mut Matrix, String> {
        let (scheme, raw, mut error) =
            (CString::new(scheme).unwrap(), self.raw(), [0 as c_char; 256]);
        // SAFETY: C strings and live buffers; `self` outlives the matrix in every test.
        let matrix = unsafe {
            statecells_matrix_new(
                scheme.as_ptr(),
                D_IN as i64,
                D_OUT as i64,
                raw.as_ptr(),
                raw.len(),
                error.as_mut_ptr(),
                error.len(),
            )
        };
        if matrix.is_null() {
            // SAFETY: the library ends the text with a zero.
            Err(unsafe { CStr::from_ptr(error.as_ptr()) }.to_str().unwrap().to_owned())
        } else {
            Ok(matrix)
        }
    }
}

/// What the graph does: prepare, project, apply, each with `nth` threads.
fn product(host: &Host, x: &[f32], nth: i32) -> Vec<f32> {
    let n_tokens = x.len() / D_IN;
    let matrix = host.open("sign+row_scale").unwrap();
    let mut q = vec![0.0f32; x.len()];
    let half = host.tensors[0].0 == F16;
    if half {
        for ith in 0..nth {
            // SAFETY: live matrix and buffers of the promised sizes.
            let status = unsafe {
                statecells_prepare(
                    matrix,
                    x.as_ptr(),
                    n_tokens as i64,
                    q.as_mut_ptr().cast(),
                    size_of_val(&q[..]),
                    ith,
                    nth,
                )
            };
            assert_eq!(status, 0);
        }
    } else {
        q.copy_from_slice(x);
    }
    let dict = atoms();
    let mut p = vec![0.0f32; M * n_tokens];
    for t in 0..n_tokens {
        for j in 0..M {
            p[t * M + j] = (0..D_IN).map(|i| dict[j * D_IN + i] * q[t * D_IN + i]).sum();
        }
    }
    let mut y = vec![f32::NAN; D_OUT * n_tokens];
    for ith in 0..nth {
        // SAFETY: as above.
        let status = unsafe {
            statecells_apply(
                matrix,
                x.as_ptr(),
                p.as_ptr().cast(),
                size_of_val(&p[..]),
                n_tokens as i64,
                y.as_mut_ptr(),
                ith,
                nth,
            )
        };
        assert_eq!(status, 0);
    }
    // SAFETY: made above, freed once.
    unsafe { statecells_matrix_free(matrix) };
    y
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
                close(&product(&Host::new(dict_type), &x, nth), &definition(&x));
            }
        }
    }
}

#[test]
fn inputs_beyond_half_precision_do_not_overflow() {
    let mut x: Vec<f32> = (0..D_IN * 3).map(|i| i as f32 - 30.0).collect();
    x[5] = 3.0e6;
    x[D_IN + 1] = -65505.0;
    close(&product(&Host::new(F16), &x, 2), &definition(&x));
}

#[test]
fn bad_sidecars_are_refused_with_a_reason() {
    let check = |change: &dyn Fn(&mut Host), scheme: &str, expected: &str| {
        let mut host = Host::new(F16);
        change(&mut host);
        let error = host.open(scheme).unwrap_err();
        assert!(error.contains(expected), "{error}\ndoes not say: {expected}");
    };
    let scheme = "sign+row_scale";
    let code = |value: i16| {
        move |h: &mut Host| h.tensors[1].2[8..10].copy_from_slice(&value.to_le_bytes())
    };
    check(&code(M as i16 + 1), scheme, "code 7");
    check(&code(-(M as i16) - 1), scheme, "code -7");
    check(&code(i16::MIN), scheme, "code -32768");
    for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
        check(
            &move |h: &mut Host| h.tensors[2].2[..2].copy_from_slice(&bad.to_le_bytes()),
            scheme,
            "row_scale",
        );
        check(
            &move |h: &mut Host| h.tensors[0].2[..2].copy_from_slice(&bad.to_le_bytes()),
            scheme,
            "not finite",
        );
    }
    check(&|h: &mut Host| h.tensors[1].1[1] -= 1, scheme, "'codes'");
    check(&|h: &mut Host| h.tensors[0].1[0] = 25, scheme, "'dict'");
    check(&|h: &mut Host| h.tensors[0].1[1] = i64::MAX, scheme, "size overflows");
    check(&|h: &mut Host| h.tensors[0].1[1] = -1, scheme, "negative size");
    check(&|h: &mut Host| h.tensors[1].0 = F16, scheme, "F16 instead of I16");
    check(&|h: &mut Host| h.tensors[1].0 = 2, scheme, "element type 2");
    check(&|h: &mut Host| drop(h.tensors[0].2.pop()), scheme, "bytes of data");
    check(&|h: &mut Host| h.suffixes[2] = c"scale".into(), scheme, "unknown suffix");
    check(&|_| {}, "sign+vals", "'vals': missing");
    check(&|_| {}, "sign", "not a part of scheme sign");
    check(&|_| {}, "magic", "scheme 'magic' is unknown");
}

#[test]
fn a_broken_call_is_refused_and_void_results_are_nan() {
    let host = Host::new(F16);
    let matrix = host.open("sign+row_scale").unwrap();
    let x = vec![1.0f32; D_IN];
    let p = vec![1.0f32; M];
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
    assert_ne!(apply(4 * M - 4, 1, 0, 1), 0);
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
fn plans_need_no_data() {
    for (dict_type, prepared_ne0) in [(F16, D_IN as i64), (F32, 0)] {
        let host = Host::new(dict_type);
        let mut raw = host.raw();
        raw.iter_mut().for_each(|t| (t.data, t.n_bytes) = (std::ptr::null(), 0));
        let mut plan = StatecellsPlan::default();
        // SAFETY: C string, live descriptions, writable plan; no error text is wanted.
        let status = unsafe {
            statecells_plan_matrix(
                c"sign+row_scale".as_ptr(),
                D_IN as i64,
                D_OUT as i64,
                raw.as_ptr(),
                raw.len(),
                &mut plan,
                std::ptr::null_mut(),
                0,
            )
        };
        assert_eq!(status, 0);
        assert_eq!(plan, StatecellsPlan { prepared_ne0, prepared_type: F32, project: 1 });
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
    // SAFETY: C strings.
    unsafe {
        assert_eq!(statecells_arch_bypasses_hook(c"llama".as_ptr()), 0);
        assert_eq!(statecells_arch_bypasses_hook(c"kimi-k3".as_ptr()), 1);
        assert_eq!(statecells_arch_bypasses_hook(std::ptr::null()), 0);
    }
}
