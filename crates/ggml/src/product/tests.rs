//! Products against their definition.

use format::ExpertStack;

use super::*;

/// Squared error over energy: inputs are rounded to 8 bits for quantized weights, about 1e-5 relative, and
/// weights are taken as stored.
const TOLERANCE: f64 = 1e-4;

fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn define(w: &[f32], x: &[f32], d_in: usize) -> Vec<f32> {
    let row = |x: &[f32], w: &[f32]| w.iter().zip(x).map(|(w, x)| w * x).sum();
    x.chunks(d_in).flat_map(|x| w.chunks(d_in).map(move |w| row(x, w))).collect()
}

fn error(y: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(y.len(), expected.len());
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = y.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    error / expected.iter().map(|&v| square(v)).sum::<f64>()
}

/// A matrix as stored in `ty`, and its values.
fn stored(ty: Type, shape: MatrixShape, seed: u32) -> (Vec<u8>, Vec<f32>) {
    let importance = vec![1.0; shape.d_in];
    let w = values(shape.n_weights(), seed);
    let bytes = ty.quantize(&w, shape.d_in, Some(&importance)).unwrap();
    let mut w = vec![0.0; w.len()];
    ty.rows_to_float(&bytes, shape.d_in, &mut w).unwrap();
    (bytes, w)
}

#[test]
fn plain_and_packed_products_are_the_definition() {
    let shape = MatrixShape::new(512, 40);
    for ty in [Type::F32, Type::F16, Type::Q4_0, Type::Q5_1, Type::Q3_K, Type::Q4_K, Type::Q5_K] {
        let (bytes, w) = stored(ty, shape, 1);
        let plain = Weight::plain(ty, shape, &bytes).unwrap();
        assert_eq!((plain.memory(), plain.n_bytes()), ("CPU", bytes.len()));
        let packed = Weight::packed(ty, shape, &bytes).unwrap();
        assert!(packed.as_ref().is_none_or(|w| w.memory() != "CPU"));
        for weight in [Some(plain), packed].into_iter().flatten() {
            let memory = weight.memory();
            let factors = [Factor::Dense(weight)];
            for (n_tokens, n_threads) in [(1, 1), (1, 2), (5, 1), (64, 2)] {
                let pool = ThreadPool::new(n_threads).unwrap();
                let x = values(shape.d_in * n_tokens, 2);
                let mut products = Products::new(&pool, &factors, &x).unwrap();
                for _ in 0..2 {
                    products.run().unwrap();
                    let error = error(products.output(), &define(&w, &x, shape.d_in));
                    assert!(error < TOLERANCE, "{ty} {memory} {n_tokens} {n_threads}: {error}");
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn packing_happens_where_the_cpu_backend_has_kernels_for_it() {
    let packed = |ty, d_out| {
        let shape = MatrixShape::new(512, d_out);
        let (bytes, _) = stored(ty, shape, 1);
        Weight::packed(ty, shape, &bytes).unwrap().map(|w| w.memory())
    };
    if std::is_x86_feature_detected!("avx2") {
        assert!(packed(Type::Q4_K, 16).is_some());
        assert_eq!(packed(Type::Q4_K, 12), None, "rows are interleaved by 8");
    }
    assert_eq!(packed(Type::F32, 16), None);
}

#[test]
fn every_factor_is_multiplied_and_the_last_one_stays() {
    let shape = MatrixShape::new(256, 8);
    let pool = ThreadPool::new(2).unwrap();
    let x = values(shape.d_in * 3, 9);
    let both: Vec<_> = [3, 4].map(|seed| stored(Type::Q4_0, shape, seed)).into();
    let weight = |i: usize| Factor::Dense(Weight::plain(Type::Q4_0, shape, &both[i].0).unwrap());
    for order in [[0, 1], [1, 0]] {
        let factors = order.map(weight);
        let mut products = Products::new(&pool, &factors, &x).unwrap();
        assert!(products.output().iter().all(|&v| v == 0.0));
        products.run().unwrap();
        let expected = define(&both[order[1]].1, &x, shape.d_in);
        assert!(error(products.output(), &expected) < TOLERANCE);
    }
}

/// Rows of the expert of every slot for the token's input.
fn define_routed(w: &[f32], x: &[f32], stack: ExpertStack, routing: &Routing) -> Vec<f32> {
    let (d_in, n) = (stack.each.d_in, stack.each.n_weights());
    let slots = routing.ids.iter().enumerate();
    let of_slot = |(slot, id): (usize, &i32)| {
        let x = &x[slot / routing.n_used * d_in..][..d_in];
        define(&w[*id as usize * n..][..n], x, d_in)
    };
    slots.flat_map(of_slot).collect()
}

#[test]
fn experts_multiply_the_tokens_that_use_them() {
    let stack = ExpertStack { each: MatrixShape::new(256, 32), n_experts: 4 };
    let pool = ThreadPool::new(2).unwrap();
    let x = values(2 * 256, 7);
    let routing = |ids: &[i32]| Routing { n_used: 2, ids: ids.to_vec() };
    let routings = [routing(&[0, 1, 2, 3]), routing(&[3, 1, 1, 0])];
    for ty in [Type::F16, Type::Q4_0, Type::Q5_K] {
        let (bytes, w) = stored(ty, stack.stacked(), 4);
        let (plain, packed) = Weight::experts(ty, stack, &bytes).unwrap();
        for weight in [Some(plain), packed].into_iter().flatten() {
            let factors = [Factor::Dense(weight)];
            for last in [&routings[..1], &routings] {
                let mut products = Products::routed(&pool, &factors, &x, last).unwrap();
                products.run().unwrap();
                let expected = define_routed(&w, &x, stack, last.last().unwrap());
                assert!(error(products.output(), &expected) < TOLERANCE, "{ty}");
            }
        }
    }
}

#[test]
fn routings_that_no_product_can_follow_are_refused() {
    let stack = ExpertStack { each: MatrixShape::new(32, 32), n_experts: 2 };
    let pool = ThreadPool::new(1).unwrap();
    let (bytes, _) = stored(Type::Q4_0, stack.stacked(), 4);
    let factors = [Factor::Dense(Weight::experts(Type::Q4_0, stack, &bytes).unwrap().0)];
    let x = values(32, 1);
    let routed = |n_used, ids: &[i32]| {
        Products::routed(&pool, &factors, &x, &[Routing { n_used, ids: ids.to_vec() }]).is_ok()
    };
    assert!(routed(2, &[0, 1]));
    for (n_used, ids) in [(1, &[2][..]), (1, &[-1]), (2, &[0]), (0, &[]), (3, &[0, 1, 0])] {
        assert!(!routed(n_used, ids), "{n_used} {ids:?}");
    }
    assert!(Products::new(&pool, &factors, &x).is_err(), "without a routing");
    assert!(Products::routed(&pool, &factors, &x, &[]).is_err());
}

#[test]
fn what_ggml_would_abort_on_is_refused() {
    let shape = MatrixShape::new(256, 4);
    let plain = |ty, shape, n| Weight::plain(ty, shape, &vec![0; n]).map(|_| ()).unwrap_err();
    assert_eq!(plain(Type::I16, shape, 2048), ProductError::NoProduct(Type::I16));
    let q8_k = Type::from_name("q8_K").unwrap();
    assert_eq!(plain(q8_k, shape, 0), ProductError::NoProduct(q8_k));
    assert!(matches!(plain(Type::Q4_K, MatrixShape::new(32, 4), 0), ProductError::Type(_)));
    assert!(matches!(plain(Type::F32, shape, 4095), ProductError::Size { expected: 4096, .. }));
    assert!(matches!(plain(Type::F32, MatrixShape::new(0, 4), 0), ProductError::Range(_)));
    let huge = MatrixShape::new(1 << 40, 1 << 40);
    assert!(matches!(plain(Type::F32, huge, 0), ProductError::Range(_)));
    assert!(Weight::packed(Type::I16, shape, &[]).is_err());
    assert!(ThreadPool::new(0).is_err() && ThreadPool::new(513).is_err());

    let pool = ThreadPool::new(1).unwrap();
    let weight = |shape: MatrixShape| {
        Factor::Dense(Weight::plain(Type::F32, shape, &vec![0; 4 * shape.n_weights()]).unwrap())
    };
    let refused = |factors: &[Factor], x: &[f32]| Products::new(&pool, factors, x).is_err();
    assert!(refused(&[], &[1.0; 256]));
    assert!(refused(&[weight(shape)], &[]));
    assert!(refused(&[weight(shape)], &[1.0; 257]));
    assert!(refused(&[weight(shape), weight(MatrixShape::new(128, 4))], &[1.0; 256]));
    assert!(refused(&[weight(shape), weight(MatrixShape::new(256, 5))], &[1.0; 256]));
}

#[cfg(feature = "hook")]
mod coded {
    use format::{ElementType, Sidecar, SidecarSpec};

    use super::*;

    const SHAPE: MatrixShape = MatrixShape { d_in: 24, d_out: 37 };
    const M: usize = 6;
    const K: usize = 3;

    /// An F16 sidecar of `values`, and what is left of them after rounding.
    fn half(suffix: &'static str, dims: &[usize], values: &[f32]) -> (Sidecar, Vec<f32>) {
        let data = Type::F16.quantize(values, values.len(), None).unwrap();
        let mut rounded = vec![0.0; values.len()];
        Type::F16.to_float(&data, &mut rounded).unwrap();
        let spec = SidecarSpec::new(suffix, ElementType::F16, dims);
        (Sidecar { spec, data }, rounded)
    }

    /// Sidecars of a `sign+row_scale` matrix, and the matrix.
    fn sidecars() -> (Vec<Sidecar>, Vec<f32>) {
        let (dict, atoms) = half("dict", &[SHAPE.d_in, M], &values(M * SHAPE.d_in, 1));
        let codes: Vec<_> =
            (0..K * SHAPE.d_out).map(|i| (i * 5 % (2 * M + 1)) as i16 - M as i16).collect();
        let scale: Vec<_> = (0..SHAPE.d_out).map(|r| 1.0 + r as f32).collect();
        let (row_scale, scale) = half("row_scale", &[SHAPE.d_out], &scale);
        let mut dense = vec![0.0; SHAPE.n_weights()];
        for (r, row) in dense.chunks_mut(SHAPE.d_in).enumerate() {
            for &code in codes[r * K..][..K].iter().filter(|&&c| c != 0) {
                let atom = usize::from(code.unsigned_abs()) - 1;
                for (w, a) in row.iter_mut().zip(&atoms[atom * SHAPE.d_in..]) {
                    *w += f32::from(code.signum()) * a * scale[r];
                }
            }
        }
        (vec![dict, Sidecar::from_i16("codes", &[K, SHAPE.d_out], &codes), row_scale], dense)
    }

    #[test]
    fn products_are_those_of_the_dense_matrix() {
        let (sidecars, dense) = sidecars();
        let n_bytes: usize = sidecars.iter().map(|s| s.data.len()).sum();
        let coded = CodedWeight::new("sign+row_scale", SHAPE, &sidecars).unwrap();
        assert_eq!(coded.n_bytes(), n_bytes);
        let bytes: Vec<u8> = dense.iter().flat_map(|v| v.to_le_bytes()).collect();
        let plain = Weight::plain(Type::F32, SHAPE, &bytes).unwrap();
        // The dense matrix first: what is left in the shared result would show.
        let factors = [Factor::Dense(plain), Factor::Coded(coded)];
        for (n_tokens, n_threads) in [(1, 1), (1, 2), (7, 2)] {
            let pool = ThreadPool::new(n_threads).unwrap();
            let mut x = values(SHAPE.d_in * n_tokens, 5);
            // Beyond F16, which the hook's first step takes care of.
            x[0] = 1e6;
            let mut products = Products::new(&pool, &factors, &x).unwrap();
            products.run().unwrap();
            let error = error(products.output(), &define(&dense, &x, SHAPE.d_in));
            assert!(error < TOLERANCE, "{n_tokens} {n_threads}: {error}");
        }
    }

    #[test]
    fn the_hook_says_why_it_refuses() {
        let (mut sidecars, _) = sidecars();
        let open = |scheme, sidecars: &[Sidecar]| {
            CodedWeight::new(scheme, SHAPE, sidecars).map(|_| ()).unwrap_err().to_string()
        };
        assert!(open("sign+other", &sidecars).contains("'sign+other'"));
        assert!(open("sign+row_scale", &sidecars[..2]).contains("row_scale"));
        sidecars[1].data[1] = 0x7f;
        assert!(open("sign+row_scale", &sidecars).contains("code"));
    }
}
