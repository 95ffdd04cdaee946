//! Properties of the sections codec, seen from outside.

use std::sync::Arc;

use format::sections::{ATOMS, BLOCK, SectionsLayout, TILE_ROWS};
use format::{CodecError, MatrixShape, Sidecar, find_sidecar};
use half::f16;
use numerics::Moment;
use numerics::metrics::Metrics;
use numerics::testing::{Random, SerialMatMul, assert_finite, context, on_threads, weights};
use numerics::{Codec, EncodeContext, MatMul};
use sections::{Metric, SectionsCodec, SectionsParams, pack, unpack};

/// Short learning, so that all combinations stay quick.
fn params(sections: usize) -> SectionsParams {
    SectionsParams { sections, learn_rounds: 3, rounds: 1, ..SectionsParams::default() }
}

fn encode(codec: &SectionsCodec, w: &[f32], shape: MatrixShape) -> (Vec<Sidecar>, f64) {
    let sidecars = codec.encode(w, shape, &context(None)).expect("encodes");
    let decoded = codec.decode(&sidecars, shape).expect("decodes");
    (sidecars, Metrics::compare(w, &decoded, shape, None).rel_error)
}

/// `codec` for inputs with second moment `h`.
fn aware(codec: SectionsCodec, h: &[f32]) -> SectionsCodec {
    with_moment(codec, Moment::whole(h, h.len().isqrt()))
}

fn with_moment(codec: SectionsCodec, moment: Moment) -> SectionsCodec {
    let (damping, shape) = (codec.params.damping, MatrixShape::new(moment.d(), 1));
    let metric = Metric::full(Arc::new(moment), 0.0, damping, shape).expect("a usable moment");
    codec.with_metric(Arc::new(metric))
}

/// Inputs whose columns differ in size and hang together, and their second moment.
fn moment(d_in: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut h = vec![0.0f32; d_in * d_in];
    let mix: Vec<f32> = (0..d_in * 3).map(|_| random.normal()).collect();
    for _ in 0..4 * d_in {
        let common: Vec<f32> = (0..3).map(|_| random.normal()).collect();
        let x: Vec<f32> = (0..d_in)
            .map(|i| {
                let shared: f32 = (0..3).map(|j| common[j] * mix[3 * i + j]).sum();
                (1.0 + (i % 7) as f32) * (shared + 0.5 * random.normal())
            })
            .collect();
        (0..d_in * d_in).for_each(|i| h[i] += x[i / d_in] * x[i % d_in]);
    }
    h
}

/// `e H e / w H w` over all rows.
fn functional(w: &[f32], approx: &[f32], h: &[f32], d_in: usize) -> f64 {
    let energy = |rows: &[f32]| {
        let mut product = vec![0.0; rows.len()];
        SerialMatMul.mul_mat(h, rows, d_in, &mut product);
        product.iter().zip(rows).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let error: Vec<f32> = w.iter().zip(approx).map(|(w, a)| w - a).collect();
    energy(&error) / energy(w)
}

/// The definition, from the bytes and the text of the format alone.
fn definition(sidecars: &[Sidecar], shape: MatrixShape, sections: usize) -> Vec<f64> {
    let bytes = |suffix: &str| find_sidecar(sidecars, suffix).unwrap().data.as_slice();
    let half = |b: &[u8], i: usize| f16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f64();
    let (dict, codes, scale) = (bytes("dict"), bytes("codes"), bytes("row_scale"));
    let pairs = (shape.d_in.div_ceil(8) * sections).div_ceil(2);
    let mut out = vec![0.0; shape.n_weights()];
    for (i, out) in out.iter_mut().enumerate() {
        let (row, column) = (i / shape.d_in, i % shape.d_in);
        for s in 0..sections {
            let plane = column / 8 * sections + s;
            let byte = codes[(row / 32 * pairs + plane / 2) * 32 + row % 32];
            let atom = usize::from(if plane.is_multiple_of(2) { byte & 15 } else { byte >> 4 });
            *out += half(dict, (s * 16 + atom) * 8 + column % 8);
        }
        *out *= half(scale, row);
    }
    if find_sidecar(sidecars, "outlier_idx").is_some() {
        for (i, at) in bytes("outlier_idx").as_chunks::<4>().0.iter().enumerate() {
            out[i32::from_le_bytes(*at) as usize] += half(bytes("outlier_val"), i);
        }
    }
    out
}

#[test]
fn decoding_equals_the_definition() {
    for (d_in, d_out, sections, outlier_share) in
        [(24, 40, 3, 0.0), (21, 33, 5, 0.02), (3, 1, 1, 0.0)]
    {
        let shape = MatrixShape::new(d_in, d_out);
        let codec = SectionsCodec::new(SectionsParams { outlier_share, ..params(sections) });
        let (sidecars, _) = encode(&codec, &weights(shape, 1), shape);
        let decoded = codec.decode(&sidecars, shape).unwrap();
        for (a, b) in decoded.iter().zip(definition(&sidecars, shape, sections)) {
            assert!((f64::from(*a) - b).abs() <= 1e-6 * (b.abs() + 0.1), "{a} {b}");
        }
    }
}

#[test]
fn sidecars_are_as_announced_and_padding_is_zero() {
    let shape = MatrixShape::new(21, 37);
    let codec = SectionsCodec::new(SectionsParams { outlier_share: 0.01, ..params(3) });
    let (sidecars, _) = encode(&codec, &weights(shape, 2), shape);
    let specs: Vec<_> = sidecars.iter().map(|s| s.spec.clone()).collect();
    assert_eq!(specs, codec.sidecars(shape).unwrap());
    assert_eq!(specs[0].dims, [BLOCK, ATOMS, 3]);
    assert_eq!(specs[1].dims, [TILE_ROWS, 5, 2]); // 3 blocks of 3 sections: 9 planes, 5 pairs
    assert_eq!(specs[3].dims, [8]); // 1 % of 777
    let codes = &sidecars[1].data;
    for (i, byte) in codes.iter().enumerate() {
        let (row, pair) = (i / (5 * 32) * 32 + i % 32, i / 32 % 5);
        assert!(row < 37 || *byte == 0, "padded row {row}");
        assert!(pair < 4 || byte >> 4 == 0, "missing plane");
    }
}

#[test]
fn packing_round_trips() {
    let layout = SectionsLayout { shape: MatrixShape::new(19, 70), sections: 5 };
    let mut random = Random(3);
    let winners: Vec<u8> =
        (0..layout.n_planes() * 70).map(|_| (random.bits() % 16) as u8).collect();
    assert_eq!(unpack(&layout, &pack(&layout, &winners)), winners);
}

#[test]
fn error_falls_with_sections_and_with_the_beam() {
    let shape = MatrixShape::new(64, 200);
    let w = weights(shape, 4);
    let mut last = 1.0;
    for sections in 1..=8 {
        let (_, e) = encode(&SectionsCodec::new(params(sections)), &w, shape);
        assert!(e < 0.8 * last, "S={sections}: {e} after {last}");
        last = e;
    }
    let beam = |beam| {
        let codec = SectionsCodec::new(SectionsParams { beam, ..params(6) });
        encode(&codec, &w, shape).1
    };
    let (narrow, wide, wider) = (beam(1), beam(8), beam(32));
    assert!(wide < 0.9 * narrow && wider < wide, "{narrow} {wide} {wider}");
}

#[test]
fn feedback_lowers_the_functional_error() {
    for (d_in, d_out) in [(72, 100), (61, 45)] {
        let shape = MatrixShape::new(d_in, d_out);
        let (w, h) = (weights(shape, 5), moment(d_in, 6));
        let diagonal: Vec<f32> = (0..d_in).map(|i| h[i * d_in + i]).collect();
        let plain = SectionsCodec::new(params(5));
        let error = |codec: &SectionsCodec, importance| {
            let sidecars = codec.encode(&w, shape, &context(importance)).unwrap();
            functional(&w, &codec.decode(&sidecars, shape).unwrap(), &h, d_in)
        };
        let white = error(&plain, None);
        let weighted = error(&plain, Some(&diagonal));
        let aware = aware(plain.clone(), &h);
        let feedback = error(&aware, None);
        assert!(weighted < white, "{d_in}: white {white}, diagonal {weighted}");
        assert!(feedback < 0.7 * weighted, "{d_in}: diagonal {weighted}, feedback {feedback}");
    }
}

#[test]
fn rounds_never_raise_the_error_they_fit() {
    let shape = MatrixShape::new(40, 120);
    let (w, h) = (weights(shape, 7), moment(40, 8));
    let error = |rounds| {
        // next to no damping: the damped moment is the one that is fitted
        let p = SectionsParams { rounds, damping: 1e-6, ..params(5) };
        let codec = aware(SectionsCodec::new(p), &h);
        let sidecars = codec.encode(&w, shape, &context(None)).unwrap();
        functional(&w, &codec.decode(&sidecars, shape).unwrap(), &h, 40)
    };
    let (none, some) = (error(0), error(4));
    assert!(some < none, "{none} {some}");
}

#[test]
fn a_moment_in_spans_is_worth_most_of_the_whole() {
    let shape = MatrixShape::new(256, 96);
    let (w, h) = (weights(shape, 4), moment(256, 5));
    let cost = |codec: &SectionsCodec| {
        let sidecars = codec.encode(&w, shape, &context(None)).unwrap();
        let decoded = codec.decode(&sidecars, shape).unwrap();
        let error: Vec<f32> = w.iter().zip(&decoded).map(|(w, d)| w - d).collect();
        numerics::functional::functional_error(&error, &w, shape, &h, &SerialMatMul).ratio()
    };
    let codec = SectionsCodec::new(params(5));
    let spans = Moment::in_spans(256, 64, |r| {
        r.clone().flat_map(|i| &h[i * 256..][r.clone()]).copied().collect()
    });
    let in_spans = cost(&with_moment(codec.clone(), spans));
    let one = cost(&aware(codec.clone(), &h));
    let none = cost(&codec);
    assert!(one < in_spans && in_spans < 0.8 * none, "{one} {in_spans} {none}");
}

#[test]
fn outliers_are_exact_and_free_the_rest() {
    let shape = MatrixShape::new(64, 64);
    let mut w = weights(shape, 9);
    let spikes: Vec<usize> = (0..40).map(|i| 100 * i + 7).collect();
    spikes.iter().for_each(|i| w[*i] = if i % 200 == 7 { 5.0 } else { -3.0 });
    let error = |outlier_share, h: Option<&[f32]>| {
        let mut codec = SectionsCodec::new(SectionsParams { outlier_share, ..params(6) });
        if let Some(h) = h {
            codec = aware(codec, h);
        }
        let sidecars = codec.encode(&w, shape, &context(None)).unwrap();
        let decoded = codec.decode(&sidecars, shape).unwrap();
        (Metrics::compare(&w, &decoded, shape, None).error_energy, decoded)
    };
    for h in [None, Some(moment(64, 10))] {
        let (without, _) = error(0.0, h.as_deref());
        let (with, decoded) = error(0.02, h.as_deref());
        assert!(with < 0.5 * without, "{without} {with}");
        if h.is_none() {
            for i in &spikes {
                assert!(
                    (decoded[*i] - w[*i]).abs() < 2e-3 * w[*i].abs(),
                    "{} {}",
                    decoded[*i],
                    w[*i]
                );
            }
        }
    }
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let shape = MatrixShape::new(45, 150);
    let (w, h) = (weights(shape, 11), moment(45, 12));
    let diagonal: Vec<f32> = (0..45).map(|i| h[i * 45 + i]).collect();
    let plain = SectionsCodec::new(SectionsParams { outlier_share: 0.01, ..params(4) });
    let full = aware(plain.clone(), &h);
    for (codec, importance) in [(&plain, None), (&plain, Some(&*diagonal)), (&full, None)] {
        let serial = EncodeContext { mul_mat: &SerialMatMul, ..context(importance) };
        let expected = on_threads(1, || codec.encode(&w, shape, &serial).unwrap());
        for n in [1, 2, 4] {
            let got = on_threads(n, || codec.encode(&w, shape, &context(importance)).unwrap());
            assert!(got == expected, "{n} threads");
        }
    }
}

#[test]
fn degenerate_matrices_stay_finite() {
    type Weight = fn(usize) -> f32;
    let cases: [(&str, MatrixShape, Weight); 8] = [
        ("zeros", MatrixShape::new(9, 9), |_| 0.0),
        ("constant", MatrixShape::new(8, 33), |_| 0.25),
        ("one weight", MatrixShape::new(1, 1), |_| -3.0),
        ("one input", MatrixShape::new(1, 40), |i| i as f32 - 20.0),
        ("one output", MatrixShape::new(40, 1), |i| i as f32 - 20.0),
        ("huge", MatrixShape::new(16, 70), |i| if i % 3 == 0 { 3e38 } else { -1e38 }),
        ("tiny", MatrixShape::new(16, 70), |i| if i % 3 == 0 { 1e-40 } else { -1e-42 }),
        ("one outlier", MatrixShape::new(16, 70), |i| if i == 77 { 3e38 } else { 1e-3 }),
    ];
    for (name, shape, value) in cases {
        let w: Vec<f32> = (0..shape.n_weights()).map(value).collect();
        let h = moment(shape.d_in, 13);
        for outlier_share in [0.0, 0.05] {
            let plain = SectionsCodec::new(SectionsParams { outlier_share, ..params(3) });
            for codec in [plain.clone(), aware(plain, &h)] {
                let sidecars = codec.encode(&w, shape, &context(None)).unwrap();
                assert_finite(&sidecars);
                let dense = codec.decode(&sidecars, shape).unwrap();
                assert!(dense.iter().all(|v| v.is_finite()), "{name}");
            }
        }
    }
}

#[test]
fn zeros_and_constants_are_exact() {
    let shape = MatrixShape::new(16, 40);
    let codec = SectionsCodec::new(params(2));
    assert_eq!(encode(&codec, &[0.0; 640], shape).1, 0.0);
    let (_, e) = encode(&codec, &[0.25; 640], shape);
    assert!(e < 1e-5, "{e}");
}

#[test]
fn rejects_bad_parameters_and_inputs() {
    let shape = MatrixShape::new(16, 20);
    let w = weights(shape, 14);
    let flag = |p: SectionsParams| match SectionsCodec::new(p).encode(&w, shape, &context(None)) {
        Err(CodecError::Parameter { name, .. }) => name,
        other => panic!("{:?}", other.map(|s| s.len())),
    };
    assert_eq!(flag(params(0)), "--S");
    assert_eq!(flag(params(17)), "--S");
    assert_eq!(flag(SectionsParams { beam: 0, ..params(4) }), "--beam");
    assert_eq!(flag(SectionsParams { beam: 65, ..params(4) }), "--beam");
    assert_eq!(flag(SectionsParams { outlier_share: f64::NAN, ..params(4) }), "--outliers");
    assert_eq!(flag(SectionsParams { damping: -1.0, ..params(4) }), "--damping");
    assert_eq!(flag(SectionsParams { max_samples: 0, ..params(4) }), "--dict-max-samples");
    let codec = SectionsCodec::new(params(4));
    let wrong = aware(codec.clone(), &[1.0f32; 9]);
    assert!(wrong.encode(&w, shape, &context(None)).is_err());
    assert!(codec.encode(&w, shape, &context(Some(&[1.0; 3]))).is_err());
    let mut damaged = w.clone();
    damaged[35] = f32::INFINITY;
    let refused = codec.encode(&damaged, shape, &context(None));
    assert!(matches!(refused, Err(CodecError::NonFinite { row: 2, column: 3, .. })));
}

#[test]
fn rejects_malformed_sidecars() {
    let shape = MatrixShape::new(20, 40);
    let codec = SectionsCodec::new(SectionsParams { outlier_share: 0.01, ..params(3) });
    let (good, _) = encode(&codec, &weights(shape, 15), shape);
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
    assert_eq!(refused(&|s| drop(s.remove(2))), "row_scale");
    assert_eq!(refused(&|s| s[0].spec.dims = vec![8, 16, 4]), "dict");
    assert_eq!(refused(&|s| s[0].data[..2].copy_from_slice(&f16::NAN.to_le_bytes())), "dict");
    assert_eq!(refused(&|s| s[1].data.truncate(100)), "codes");
    assert_eq!(
        refused(&|s| s[2].data[..2].copy_from_slice(&f16::INFINITY.to_le_bytes())),
        "row_scale"
    );
    assert_eq!(refused(&|s| s[3].data[..4].copy_from_slice(&800i32.to_le_bytes())), "outlier_idx");
    assert_eq!(refused(&|s| drop(s.remove(4))), "outlier_val");
    let zero = codec.decode(&good, MatrixShape::new(0, 40));
    assert!(matches!(zero, Err(CodecError::Sidecar { .. })));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..Default::default() })]

    /// Any shape: as announced, finite, equal to the definition, and never worse than zeros.
    #[test]
    fn odd_shapes(
        (d_in, d_out, sections) in (1usize..40, 1usize..80, 1usize..8),
        (seed, beam) in (0u64..1000, 1usize..12),
        (outliers, full) in (proptest::bool::ANY, proptest::bool::ANY),
    ) {
        let shape = MatrixShape::new(d_in, d_out);
        let w = weights(shape, seed);
        let outlier_share = if outliers { 0.03 } else { 0.0 };
        let h = moment(d_in, seed + 1);
        let mut codec = SectionsCodec::new(SectionsParams { beam, outlier_share, ..params(sections) });
        if full {
            codec = aware(codec, &h);
        }
        let sidecars = codec.encode(&w, shape, &context(None)).unwrap();
        let specs: Vec<_> = sidecars.iter().map(|s| s.spec.clone()).collect();
        proptest::prop_assert_eq!(specs, codec.sidecars(shape).unwrap());
        assert_finite(&sidecars);
        let decoded = codec.decode(&sidecars, shape).unwrap();
        for (a, b) in decoded.iter().zip(definition(&sidecars, shape, sections)) {
            proptest::prop_assert!((f64::from(*a) - b).abs() <= 1e-6 * (b.abs() + 0.1));
        }
        let e = if full {
            functional(&w, &decoded, &h, d_in)
        } else {
            Metrics::compare(&w, &decoded, shape, None).rel_error
        };
        proptest::prop_assert!(e <= 1.0 + 1e-6, "error {}", e);
    }
}
