//! Properties of the global-dictionary codec, seen from outside.

use dictionary::{
    DictType, Encoder, GlobalCodec, GlobalParams, complete_row_scale, default_n_atoms,
};
use format::{CodecError, MatrixShape, Scheme, Sidecar, find_sidecar};
use half::f16;
use numerics::metrics::Metrics;
use numerics::testing::{Random, SerialMatMul, assert_finite, context, on_threads, weights};
use numerics::{Codec, EncodeContext};

const SCHEMES: [Scheme; 3] = [Scheme::Sign, Scheme::SignRowScale, Scheme::SignVals];
const ENCODERS: [Encoder; 2] = [Encoder::TopK, Encoder::Omp];

/// Short learning, so that all combinations stay quick.
fn params(scheme: Scheme, encoder: Encoder, m: usize, k: usize) -> GlobalParams {
    GlobalParams { scheme, encoder, m: Some(m), k, iters: 2, refine: 2, ..GlobalParams::default() }
}

fn encode(p: GlobalParams, w: &[f32], shape: MatrixShape) -> (Vec<Sidecar>, f64) {
    let codec = GlobalCodec::new(p);
    let sidecars = codec.encode(w, shape, &context(None)).expect("encodes");
    let error = error(&codec, &sidecars, w, shape, None);
    (sidecars, error)
}

fn error(
    codec: &GlobalCodec,
    sidecars: &[Sidecar],
    w: &[f32],
    shape: MatrixShape,
    h: Option<&[f32]>,
) -> f64 {
    Metrics::compare(w, &codec.decode(sidecars, shape).expect("decodes"), shape, h).rel_error
}

/// The definition, from the bytes: `row_scale * sum sign(code) * val * atom`.
fn definition(sidecars: &[Sidecar], shape: MatrixShape) -> Vec<f64> {
    let bytes = |suffix: &str| find_sidecar(sidecars, suffix).map(|s| s.data.as_slice());
    let half = |b: &[u8], i: usize| f16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f64();
    let (dict, codes) = (bytes("dict").unwrap(), bytes("codes").unwrap());
    let k = codes.len() / 2 / shape.d_out;
    let mut out = vec![0.0; shape.n_weights()];
    for (row, out) in out.chunks_mut(shape.d_in).enumerate() {
        let scale = bytes("row_scale").map_or(1.0, |b| half(b, row));
        for slot in row * k..(row + 1) * k {
            let code = i16::from_le_bytes([codes[2 * slot], codes[2 * slot + 1]]);
            if code == 0 {
                continue;
            }
            let val = bytes("vals").map_or(1.0, |b| half(b, slot)) * f64::from(code.signum());
            let atom = usize::from(code.unsigned_abs()) - 1;
            for (i, out) in out.iter_mut().enumerate() {
                *out += scale * val * half(dict, atom * shape.d_in + i);
            }
        }
    }
    out
}

#[test]
fn decoding_equals_the_definition() {
    let shape = MatrixShape::new(24, 50);
    let w = weights(shape, 1);
    for scheme in SCHEMES {
        let p = params(scheme, Encoder::TopK, 20, 6);
        let (sidecars, _) = encode(p.clone(), &w, shape);
        let decoded = GlobalCodec::new(p).decode(&sidecars, shape).unwrap();
        for (a, b) in decoded.iter().zip(definition(&sidecars, shape)) {
            assert!((f64::from(*a) - b).abs() <= 1e-6 * (b.abs() + 0.05), "{scheme}: {a} {b}");
        }
    }
}

#[test]
fn sidecars_are_as_announced_and_in_canonical_order() {
    let shape = MatrixShape::new(16, 70);
    let w = weights(shape, 2);
    for scheme in SCHEMES {
        for encoder in ENCODERS {
            let codec = GlobalCodec::new(params(scheme, encoder, 12, 5));
            let sidecars = codec.encode(&w, shape, &context(None)).unwrap();
            let specs: Vec<_> = sidecars.iter().map(|s| s.spec.clone()).collect();
            assert_eq!(specs, codec.sidecars(shape).unwrap());
            for s in &sidecars {
                assert_eq!(s.spec.n_bytes(), Some(s.data.len()));
            }
            let codes = find_sidecar(&sidecars, "codes").unwrap().to_i16().unwrap();
            let vals = find_sidecar(&sidecars, "vals").map(|s| s.to_f16().unwrap());
            for (i, slots) in codes.chunks(5).enumerate() {
                let used = slots.iter().take_while(|c| **c != 0).count();
                assert!(slots[used..].iter().all(|c| *c == 0), "{slots:?}");
                assert!(slots[..used].windows(2).all(|p| p[0].abs() < p[1].abs()), "{slots:?}");
                if let Some(vals) = &vals {
                    let vals = &vals[i * 5..(i + 1) * 5];
                    assert!(vals[..used].iter().all(|v| *v > f16::ZERO), "{vals:?}");
                    assert!(vals[used..].iter().all(|v| *v == f16::ZERO), "{vals:?}");
                }
            }
        }
    }
}

#[test]
fn error_never_grows_with_k_on_a_fixed_dictionary() {
    let shape = MatrixShape::new(32, 80);
    let w = weights(shape, 3);
    let mut random = Random(4);
    let atoms: Vec<f32> = (0..32 * 24).map(|_| random.normal()).collect();
    for scheme in SCHEMES {
        for encoder in ENCODERS {
            let mut last = 1.0;
            for k in 1..=24 {
                let codec = GlobalCodec::new(params(scheme, encoder, 24, k));
                let sidecars = codec.encode_with_atoms(&w, &atoms, shape, &context(None)).unwrap();
                let e = error(&codec, &sidecars, &w, shape, None);
                // rounding of coefficients; for `sign` also the common norm, found by alternation
                let slack = if scheme == Scheme::Sign { 1e-3 } else { 1e-6 };
                assert!(e <= last + slack, "{scheme} {encoder} k={k}: {e} after {last}");
                last = e;
            }
            assert!(last < 0.9, "{scheme} {encoder}: {last}");
        }
    }
}

#[test]
fn learning_and_refitting_pay() {
    let shape = MatrixShape::new(40, 300);
    let w = weights(shape, 5);
    for scheme in SCHEMES {
        let e = |iters, refine| {
            let p = GlobalParams { iters, refine, ..params(scheme, Encoder::TopK, 24, 4) };
            encode(p, &w, shape).1
        };
        let (rows, oja, refit) = (e(0, 0), e(4, 0), e(4, 8));
        assert!(oja <= rows * 1.001, "{scheme}: rows {rows}, Oja {oja}");
        assert!(refit < 0.9 * rows, "{scheme}: rows {rows}, refit {refit}");
    }
}

#[test]
fn pursuit_is_not_worse_than_top_k() {
    let shape = MatrixShape::new(32, 100);
    let w = weights(shape, 6);
    let mut random = Random(9);
    let atoms: Vec<f32> = (0..32 * 48).map(|_| random.normal()).collect();
    for scheme in [Scheme::SignRowScale, Scheme::SignVals] {
        let e = |encoder| {
            let codec = GlobalCodec::new(params(scheme, encoder, 48, 6));
            let sidecars = codec.encode_with_atoms(&w, &atoms, shape, &context(None)).unwrap();
            error(&codec, &sidecars, &w, shape, None)
        };
        let (top, omp) = (e(Encoder::TopK), e(Encoder::Omp));
        assert!(omp < top, "{scheme}: topk {top}, omp {omp}");
    }
}

#[test]
fn sparse_rows_of_given_atoms_are_found() {
    // rows are combinations of 3 of 16 orthogonal atoms: nothing but rounding may be lost
    let shape = MatrixShape::new(16, 60);
    let mut atoms = vec![0.0; 16 * 16];
    (0..16).for_each(|i| atoms[i * 16 + (i * 5) % 16] = 1.0);
    let mut random = Random(11);
    let mut w = vec![0.0; shape.n_weights()];
    for row in w.chunks_mut(16) {
        for _ in 0..3 {
            row[(random.bits() % 16) as usize] = random.normal();
        }
    }
    for encoder in ENCODERS {
        let codec = GlobalCodec::new(params(Scheme::SignVals, encoder, 16, 3));
        let sidecars = codec.encode_with_atoms(&w, &atoms, shape, &context(None)).unwrap();
        let e = error(&codec, &sidecars, &w, shape, None);
        assert!(e < 1e-6, "{encoder}: {e}");
    }
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let shape = MatrixShape::new(33, 150);
    let w = weights(shape, 8);
    let h: Vec<f32> = (0..33).map(|i| 0.1 + i as f32).collect();
    for scheme in SCHEMES {
        for encoder in ENCODERS {
            let p = GlobalParams { anti_hebb: 0.5, ..params(scheme, encoder, 20, 6) };
            let codec = GlobalCodec::new(p);
            let serial = EncodeContext { mul_mat: &SerialMatMul, ..context(Some(&h)) };
            let expected = on_threads(1, || codec.encode(&w, shape, &serial).unwrap());
            for n in [1, 2, 4] {
                let got = on_threads(n, || codec.encode(&w, shape, &context(Some(&h))).unwrap());
                assert!(got == expected, "{scheme} {encoder} on {n} threads");
            }
        }
    }
}

#[test]
fn another_seed_gives_another_dictionary() {
    let shape = MatrixShape::new(16, 100);
    let w = weights(shape, 8);
    let codec = GlobalCodec::new(params(Scheme::SignVals, Encoder::TopK, 16, 4));
    let dict = |seed| {
        codec.encode(&w, shape, &EncodeContext { seed, ..context(None) }).unwrap()[0].clone()
    };
    assert_ne!(dict(1), dict(2));
}

#[test]
fn importance_lowers_the_weighted_error() {
    let shape = MatrixShape::new(32, 200);
    let w = weights(shape, 12);
    let mut h: Vec<f32> = (0..32).map(|i| if i % 4 == 0 { 25.0 } else { 0.1 }).collect();
    h[1] = 0.0;
    for scheme in SCHEMES {
        let codec = GlobalCodec::new(params(scheme, Encoder::TopK, 24, 4));
        let weighted = |h_used| {
            let sidecars = codec.encode(&w, shape, &context(h_used)).unwrap();
            assert_finite(&sidecars);
            error(&codec, &sidecars, &w, shape, Some(&h))
        };
        let (white, aware) = (weighted(None), weighted(Some(h.as_slice())));
        assert!(aware < 0.95 * white, "{scheme}: white {white}, weighted {aware}");
    }
    // all zeros says nothing about the inputs
    let codec = GlobalCodec::new(params(Scheme::SignVals, Encoder::TopK, 24, 4));
    let zero = codec.encode(&w, shape, &context(Some(&[0.0; 32]))).unwrap();
    assert_eq!(zero, codec.encode(&w, shape, &context(None)).unwrap());
}

#[test]
fn a_missing_row_scale_is_completed() {
    let shape = MatrixShape::new(24, 60);
    let w = weights(shape, 13);
    let h: Vec<f32> = (0..24).map(|i| 1.0 + (i % 5) as f32).collect();
    let codec = GlobalCodec::new(params(Scheme::SignRowScale, Encoder::TopK, 20, 6));
    let sidecars = codec.encode(&w, shape, &context(Some(&h))).unwrap();
    let stored = find_sidecar(&sidecars, "row_scale").unwrap().to_floats().unwrap();
    let completed = complete_row_scale(&sidecars[..2], &w, shape, Some(&h)).unwrap();
    assert_eq!(completed.spec, sidecars[2].spec);
    for (a, b) in completed.to_floats().unwrap().iter().zip(&stored) {
        assert!((a - b).abs() <= 1.1e-3 * b.abs(), "{a} {b}"); // one unit in the last place of F16
    }
    // an encoding without scales gains
    let sign = GlobalCodec::new(params(Scheme::Sign, Encoder::TopK, 20, 6));
    let mut sidecars = sign.encode(&w, shape, &context(None)).unwrap();
    let before = error(&sign, &sidecars, &w, shape, None);
    sidecars.push(complete_row_scale(&sidecars, &w, shape, None).unwrap());
    let after = error(&sign, &sidecars, &w, shape, None);
    assert!(after < before, "{before} {after}");
}

#[test]
fn degenerate_matrices_stay_finite() {
    type Weight = fn(usize) -> f32;
    let cases: [(&str, MatrixShape, Weight); 8] = [
        ("zeros", MatrixShape::new(5, 9), |_| 0.0),
        ("constant", MatrixShape::new(5, 9), |_| 0.25),
        ("one weight", MatrixShape::new(1, 1), |_| -3.0),
        ("one input", MatrixShape::new(1, 40), |i| i as f32 - 20.0),
        ("one output", MatrixShape::new(40, 1), |i| i as f32 - 20.0),
        ("huge", MatrixShape::new(8, 70), |i| if i % 3 == 0 { 3e38 } else { -1e38 }),
        ("tiny", MatrixShape::new(8, 70), |i| if i % 3 == 0 { 1e-40 } else { -1e-42 }),
        ("one outlier", MatrixShape::new(8, 70), |i| if i == 77 { 3e38 } else { 1e-3 }),
    ];
    let h = |n: usize| (0..n).map(|i| if i % 2 == 0 { 0.0 } else { 1e30 }).collect::<Vec<f32>>();
    for (name, shape, value) in cases {
        let w: Vec<f32> = (0..shape.n_weights()).map(value).collect();
        for scheme in SCHEMES {
            for encoder in ENCODERS {
                for dict_type in [DictType::F16, DictType::F32] {
                    let p = GlobalParams { dict_type, ..params(scheme, encoder, 6, 3) };
                    let codec = GlobalCodec::new(p);
                    for h in [None, Some(h(shape.d_in))] {
                        let sidecars = codec.encode(&w, shape, &context(h.as_deref())).unwrap();
                        assert_finite(&sidecars);
                        let dense = codec.decode(&sidecars, shape).unwrap();
                        assert!(dense.iter().all(|v| v.is_finite()), "{name} {scheme} {encoder}");
                    }
                }
            }
        }
    }
}

#[test]
fn single_input_rows_and_constants_are_exact() {
    let shape = MatrixShape::new(1, 40);
    let w: Vec<f32> = (0..40).map(|i| i as f32 - 20.0).collect();
    for scheme in [Scheme::SignRowScale, Scheme::SignVals] {
        let (_, e) = encode(params(scheme, Encoder::TopK, 3, 1), &w, shape);
        assert!(e < 1e-6, "{scheme}: {e}");
    }
    let shape = MatrixShape::new(12, 30);
    for scheme in SCHEMES {
        let (_, e) = encode(params(scheme, Encoder::TopK, 4, 2), &[0.25; 360], shape);
        assert!(e < 1e-6, "{scheme}: {e}");
    }
}

#[test]
fn rejects_damaged_weights_and_importance() {
    let shape = MatrixShape::new(4, 20);
    let mut w = weights(shape, 14);
    let codec = GlobalCodec::new(params(Scheme::SignVals, Encoder::TopK, 4, 2));
    for h in [vec![1.0; 3], vec![1.0, -1.0, 1.0, 1.0], vec![1.0, f32::NAN, 1.0, 1.0]] {
        let refused = codec.encode(&w, shape, &context(Some(&h)));
        assert!(matches!(refused, Err(CodecError::Parameter { name: "--imatrix", .. })));
    }
    w[9] = f32::NAN;
    let refused = codec.encode(&w, shape, &context(None));
    assert!(matches!(refused, Err(CodecError::NonFinite { index: 9, row: 2, column: 1, .. })));
}

#[test]
fn rejects_malformed_sidecars() {
    let shape = MatrixShape::new(6, 20);
    let codec = GlobalCodec::new(params(Scheme::SignVals, Encoder::TopK, 5, 2));
    let good = codec.encode(&weights(shape, 15), shape, &context(None)).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<Sidecar>)| {
        let mut bad = good.clone();
        change(&mut bad);
        match codec.decode(&bad, shape) {
            Err(CodecError::Sidecar { suffix, .. }) => suffix,
            other => panic!("accepted: {:?}", other.map(|d| d.len())),
        }
    };
    assert_eq!(refused(&|s| drop(s.remove(0))), "dict");
    assert_eq!(refused(&|s| drop(s.remove(1))), "codes");
    assert_eq!(refused(&|s| s[0].data.truncate(7)), "dict");
    assert_eq!(refused(&|s| s[0].data[..2].copy_from_slice(&f16::NAN.to_le_bytes())), "dict");
    assert_eq!(refused(&|s| s[0].spec.dims = vec![5, 6]), "dict");
    assert_eq!(refused(&|s| s[1].spec.dims = vec![40]), "codes");
    assert_eq!(refused(&|s| s[1].data[..2].copy_from_slice(&6i16.to_le_bytes())), "codes");
    assert_eq!(refused(&|s| s[1].data[..2].copy_from_slice(&i16::MIN.to_le_bytes())), "codes");
    assert_eq!(refused(&|s| s[2].data[..2].copy_from_slice(&f16::INFINITY.to_le_bytes())), "vals");
    assert_eq!(refused(&|s| s[2] = Sidecar::from_f32("vals", &[2, 20], &[1.0; 40])), "vals");
    assert_eq!(
        refused(&|s| s.push(Sidecar::from_f16("row_scale", &[19], &[f16::ONE; 19]))),
        "row_scale"
    );
    let no_weights = codec.decode(&good, MatrixShape::new(0, 20));
    assert!(matches!(no_weights, Err(CodecError::Sidecar { .. })));
}

#[test]
fn default_parameters_fit_small_matrices() {
    for d_out in [1, 63, 512] {
        let shape = MatrixShape::new(8, d_out);
        let specs = GlobalParams::default().sidecars(shape).unwrap();
        assert_eq!(specs[0].dims, [8, default_n_atoms(d_out)]);
        assert_eq!(specs[1].dims, [32, d_out]);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 96, ..Default::default() })]

    /// Any shape, dictionary size and number of slots: as announced, finite, and never worse than zeros.
    #[test]
    fn odd_shapes(
        (d_in, d_out, m, k_share) in (1usize..24, 1usize..90, 1usize..40, 0.0f64..1.0),
        seed in 0u64..1000,
        sparse in proptest::bool::ANY,
        choice in 0usize..12,
    ) {
        let shape = MatrixShape::new(d_in, d_out);
        let mut w = weights(shape, seed);
        if sparse {
            w.iter_mut().enumerate().filter(|(i, _)| i % 3 > 0).for_each(|(_, w)| *w = 0.0);
        }
        let k = 1 + (k_share * (m - 1) as f64) as usize;
        let mut p = params(SCHEMES[choice % 3], ENCODERS[choice / 3 % 2], m, k);
        if choice / 6 == 0 {
            p.dict_type = DictType::F32;
        }
        let codec = GlobalCodec::new(p);
        let sidecars = codec.encode(&w, shape, &context(None)).unwrap();
        let specs: Vec<_> = sidecars.iter().map(|s| s.spec.clone()).collect();
        proptest::prop_assert_eq!(specs, codec.sidecars(shape).unwrap());
        assert_finite(&sidecars);
        let e = error(&codec, &sidecars, &w, shape, None);
        proptest::prop_assert!(e <= 1.0 + 1e-6, "error {}", e);
    }
}
