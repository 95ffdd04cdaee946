//! Every base against its closed form, and the product without W0 against the dense one.

use format::MatrixShape;
use format::seeddelta::BaseType;
use numerics::metrics::Metrics;
use numerics::{Codec, EncodeContext, ReferenceMatMul};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use seeddelta::{Delta, SeedDelta, SeedDeltaCodec};
use statecells_kernels::base::BaseOperator;

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn codec(base: &str, k: usize, row_scale: bool, base_type: BaseType) -> SeedDeltaCodec {
    let delta = if k == 0 { Delta::None } else { Delta::Coo { k } };
    SeedDeltaCodec { base: base.parse().unwrap(), base_type, row_scale, delta }
}

fn fit(base: &str, w: &[f32], shape: MatrixShape, h: Option<&[f32]>) -> SeedDelta {
    SeedDelta::fit(&codec(base, 0, false, BaseType::F32), w, shape, h).unwrap()
}

/// `sum h_i (w - w^)^2` of a fit.
fn error(model: &SeedDelta, w: &[f32], h: Option<&[f32]>) -> f64 {
    Metrics::compare(w, &model.to_dense(), model.shape(), h).error_energy
}

fn assert_close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} is not {b}");
}

#[test]
fn circulant_of_a_circulant_is_itself() {
    for (d_in, d_out) in [(8, 8), (7, 7), (5, 9), (9, 5), (1, 6), (6, 1), (1, 1)] {
        let n = d_in.max(d_out);
        let c = noise(n, 1);
        let shape = MatrixShape::new(d_in, d_out);
        let w: Vec<f32> =
            (0..shape.n_weights()).map(|p| c[(p / d_in + n - p % d_in) % n]).collect();
        let model = fit("circulant", &w, shape, None);
        assert_eq!(model.to_dense(), w, "{shape}");
    }
}

#[test]
fn circulant_is_the_nearest_of_its_space() {
    // W = [[1, 2], [5, 4]]: c = [(1 + 4) / 2, (2 + 5) / 2]
    let model = fit("circulant", &[1.0, 2.0, 5.0, 4.0], MatrixShape::new(2, 2), None);
    assert_eq!(model.to_dense(), [2.5, 3.5, 3.5, 2.5]);
    // h = [3, 1]: c = [(3 * 1 + 4) / 4, (3 * 5 + 2) / 4]
    let h = [3.0, 1.0];
    let model = fit("circulant", &[1.0, 2.0, 5.0, 4.0], MatrixShape::new(2, 2), Some(&h));
    assert_eq!(model.to_dense(), [1.75, 4.25, 4.25, 1.75]);
}

#[test]
fn low_rank_error_is_the_discarded_singular_values() {
    // W = 5 a b^T + 2 c d^T + 1 e f^T with orthonormal Hadamard vectors
    let hadamard =
        |j: u32, i: usize| if (j & i as u32).count_ones().is_multiple_of(2) { 0.5 } else { -0.5 };
    let values = [5.0, 2.0, 1.0];
    let shape = MatrixShape::new(4, 4);
    let w: Vec<f32> = (0..16)
        .map(|p| {
            let term =
                |j: usize| values[j] * hadamard(j as u32, p / 4) * hadamard((j + 1) as u32, p % 4);
            (0..3).map(term).sum()
        })
        .collect();
    for (rank, left) in [(1, 5.0), (2, 1.0), (3, 0.0), (4, 0.0)] {
        let model = fit(&format!("lowrank:{rank}"), &w, shape, None);
        assert_close(error(&model, &w, None), left);
    }
}

#[test]
fn inputs_without_weight_do_not_disturb_the_low_rank_fit() {
    // without its first column W has rank 1
    let w = [9.0, 1.0, 2.0, -7.0, 2.0, 4.0, 3.0, 3.0, 6.0];
    let h = [0.0, 1.0, 0.5];
    let model = fit("lowrank:1", &w, MatrixShape::new(3, 3), Some(&h));
    assert!(error(&model, &w, Some(&h)) < 1e-10);
    assert!(model.to_dense().iter().all(|v| v.is_finite()));
}

#[test]
fn diagonal_plus_low_rank_keeps_falling_below_either() {
    let shape = MatrixShape::new(24, 24);
    let (u, v, d) = (noise(48, 2), noise(48, 3), noise(24, 4));
    let w: Vec<f32> = (0..576)
        .map(|p| {
            let (r, i) = (p / 24, p % 24);
            let low = u[r] * v[i] + u[24 + r] * v[24 + i];
            low + if r == i { 3.0 * d[r] } else { 0.0 }
        })
        .collect();
    let of = |base: &str| error(&fit(base, &w, shape, None), &w, None);
    let (low, sum) = (of("lowrank:2"), of("lowrank:2+diagonal"));
    assert!(sum < 0.2 * low, "{sum} against {low}");
    assert!(of("diagonal+lowrank:2") < 0.2 * low);
}

#[test]
fn orthogonal_spaces_add_up() {
    // apart from the multiples of the identity, circulants are orthogonal to diagonals
    let shape = MatrixShape::new(16, 16);
    let w = noise(256, 5);
    let gained = |base: &str| {
        error(&fit("identity", &w, shape, None), &w, None)
            - error(&fit(base, &w, shape, None), &w, None)
    };
    assert_close(gained("circulant+diagonal"), gained("circulant") + gained("diagonal"));
}

#[test]
fn row_scale_recovers_a_scaled_circulant() {
    let shape = MatrixShape::new(12, 12);
    let (c, s) = (noise(12, 6), noise(12, 7));
    let w: Vec<f32> = (0..144).map(|p| s[p / 12] * c[(p / 12 + 12 - p % 12) % 12]).collect();
    let error_of = |row_scale| {
        let codec = codec("circulant", 0, row_scale, BaseType::F32);
        let model = SeedDelta::fit(&codec, &w, shape, None).unwrap();
        Metrics::compare(&w, &model.to_dense(), shape, None).rel_error
    };
    assert!(error_of(false) > 0.3);
    assert!(error_of(true) < 1e-3, "{}", error_of(true));
}

#[test]
fn delta_leaves_exactly_the_smaller_residuals() {
    let shape = MatrixShape::new(4, 2);
    let w = [1.0, -8.0, 2.0, 4.0, 0.5, 0.25, -0.125, 3.0];
    let model = SeedDelta::fit(&codec("none", 2, false, BaseType::F16), &w, shape, None).unwrap();
    assert_eq!(model.to_dense(), [0.0, -8.0, 0.0, 4.0, 0.5, 0.0, 0.0, 3.0]);
    // column 0 counts a hundred times as much
    let h = [100.0, 1.0, 1.0, 1.0];
    let codec = codec("none", 1, false, BaseType::F16);
    let model = SeedDelta::fit(&codec, &w, shape, Some(&h)).unwrap();
    assert_eq!(model.delta().positions(), [0, 4]);
}

#[test]
fn bytes_are_exact() {
    let shape = MatrixShape::new(10, 6);
    let bytes = |codec: &SeedDeltaCodec| format::n_bytes(&codec.sidecars(shape).unwrap()).unwrap();
    assert_eq!(bytes(&codec("identity", 0, false, BaseType::F32)), 4);
    assert_eq!(bytes(&codec("diagonal", 0, false, BaseType::F16)), 2 * 10);
    assert_eq!(bytes(&codec("circulant", 0, true, BaseType::F16)), 2 * 10 + 2 * 6);
    assert_eq!(bytes(&codec("lowrank:3", 0, false, BaseType::F16)), 2 * 3 * 16);
    assert_eq!(bytes(&codec("block:4", 0, false, BaseType::F16)), 2 * 16 * 3);
    assert_eq!(bytes(&codec("none", 5, false, BaseType::F16)), 5 * 6 * 4);
}

#[test]
fn refusals_name_the_flag() {
    let shape = MatrixShape::new(4, 3);
    let refused =
        |base, k| codec(base, k, false, BaseType::F16).sidecars(shape).unwrap_err().to_string();
    assert!(refused("none", 5).starts_with("--delta-k = 5 does not fit a matrix of 4 x 3"));
    assert!(refused("none", 0).contains("nothing is left"));
    assert!(refused("lowrank:9", 1).starts_with("--base = lowrank:9"));
    let codec = codec("diagonal", 0, false, BaseType::F16);
    let mut w = vec![0.0; 12];
    w[7] = f32::INFINITY;
    let error = SeedDelta::fit(&codec, &w, shape, None).unwrap_err().to_string();
    assert!(error.contains("weight 7 (row 1, column 3) is inf"), "{error}");
    assert!(codec.sidecars(MatrixShape::new(0, 3)).is_err());
}

#[test]
fn missing_and_malformed_tensors_are_refused_by_name() {
    let shape = MatrixShape::new(5, 4);
    let codec = codec("lowrank:2", 1, true, BaseType::F16);
    let sidecars =
        SeedDelta::fit(&codec, &noise(20, 8), shape, None).unwrap().to_sidecars().unwrap();
    assert_eq!(codec.decode(&sidecars, shape).unwrap().len(), 20);
    for i in 0..sidecars.len() {
        let mut less = sidecars.clone();
        let gone = less.remove(i);
        let error = codec.decode(&less, shape).unwrap_err().to_string();
        assert!(error.contains(gone.spec.suffix), "{error}");
    }
    let mut nan = sidecars.clone();
    nan[0].data[..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let error = SeedDelta::from_sidecars(&nan, shape).unwrap_err().to_string();
    assert_eq!(error, "sidecar 'base_v': value 0 is NaN");
    let mut wide = sidecars;
    wide[0].spec.dims = vec![2, 5];
    let error = SeedDelta::from_sidecars(&wide, shape).unwrap_err().to_string();
    assert!(error.contains("'base_v': does not fit a matrix of 5 x 4"), "{error}");
}

/// Bases that fit a matrix of any shape; `size` is cut to what fits.
fn some_base() -> impl Strategy<Value = (usize, usize)> {
    (0usize..9, 1usize..20)
}

fn base_text((kind, size): (usize, usize), shape: MatrixShape) -> String {
    let rank = size.min(shape.d_in).min(shape.d_out);
    let block = size.min(shape.d_in.max(shape.d_out));
    match kind {
        0 => "none".into(),
        1 => "identity".into(),
        2 => "diagonal".into(),
        3 => format!("lowrank:{rank}"),
        4 => "circulant".into(),
        5 => format!("block:{block}"),
        6 => format!("lowrank:{rank}+diagonal"),
        7 => "circulant+identity".into(),
        _ => format!("circulant+block:{block}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    /// What is applied, what is decoded and what is written are the same matrix.
    #[test]
    fn product_without_w0_equals_the_dense_product(
        (d_in, d_out) in (1usize..40, 1usize..40),
        base in some_base(),
        k in 0usize..4,
        (row_scale, weighted, half) in any::<(bool, bool, bool)>(),
        seed: u64,
    ) {
        let shape = MatrixShape::new(d_in, d_out);
        let base = base_text(base, shape);
        let k = k.min(d_in).max(usize::from(base == "none"));
        let base_type = if half { BaseType::F16 } else { BaseType::F32 };
        let codec = codec(&base, k, row_scale, base_type);
        let w = noise(shape.n_weights(), seed);
        let h: Vec<f32> = noise(d_in, seed ^ 1).into_iter().map(f32::abs).collect();
        let h = weighted.then_some(h.as_slice());

        let model = SeedDelta::fit(&codec, &w, shape, h).unwrap();
        let sidecars = model.to_sidecars().unwrap();
        let specs: Vec<_> = sidecars.iter().map(|s| s.spec.clone()).collect();
        prop_assert_eq!(specs, codec.sidecars(shape).unwrap());
        prop_assert_eq!(&SeedDelta::from_sidecars(&sidecars, shape).unwrap(), &model);
        prop_assert_eq!(model.spec().to_string(), base);

        let dense = model.to_dense();
        let x = noise(d_in, seed ^ 2);
        let mut y = vec![0.0; d_out];
        BaseOperator::new(model.base().clone()).product(&x, &mut y);
        model.delta().add_product(&x, &mut y);
        let norm: f64 = dense.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
        for (y, row) in y.iter().zip(dense.chunks(d_in)) {
            let exact: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            prop_assert!((f64::from(*y) - exact).abs() <= 1e-5 * (1.0 + norm), "{y} is not {exact}");
        }

        // a fitted base is never farther than the zero matrix
        let metrics = Metrics::compare(&w, &dense, shape, h);
        prop_assert!(metrics.rel_error <= 1.0 + 1e-3, "{metrics:?}");
    }
}

#[test]
fn same_bytes_whatever_the_number_of_threads() {
    let shape = MatrixShape::new(48, 80);
    let w = noise(shape.n_weights(), 9);
    let h: Vec<f32> = noise(48, 10).into_iter().map(f32::abs).collect();
    let encode = |threads, base: &str| {
        let codec = codec(base, 3, true, BaseType::F16);
        let context = EncodeContext {
            mul_mat: &ReferenceMatMul,
            importance: Some(&h),
            seed: 0,
            progress: &(),
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| codec.encode(&w, shape, &context).unwrap())
    };
    for base in ["lowrank:5+diagonal", "circulant+block:7", "identity"] {
        assert_eq!(encode(1, base), encode(3, base), "{base}");
    }
}
