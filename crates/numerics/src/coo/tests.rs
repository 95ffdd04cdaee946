//! Selection against a plain sort, layouts there and back, and every way a tensor can be wrong.

use proptest::prelude::*;

use super::*;

/// Positions of the `n` largest scores by a plain sort: largest first, lower position on ties.
fn sorted_reference(residual: &[f32], d_in: usize, n: usize, h: Option<&[f32]>) -> Vec<usize> {
    let score = |p: usize| residual[p].abs() * h.map_or(1.0, |h| h[p % d_in].sqrt());
    let mut order: Vec<usize> = (0..residual.len()).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
    order.truncate(n);
    order.sort_unstable();
    order
}

fn sidecar_reason(result: Result<Option<Coo>, CodecError>) -> String {
    result.expect_err("must be refused").to_string()
}

fn matrix() -> impl Strategy<Value = (MatrixShape, Vec<f32>, Vec<f32>)> {
    (1usize..9, 1usize..9).prop_flat_map(|(d_in, d_out)| {
        // few different values, so that ties are the rule
        let value = prop_oneof![(-3i8..4).prop_map(f32::from), -1e-3f32..1e-3];
        let weights = prop::collection::vec(value, d_in * d_out);
        let importance = prop::collection::vec((0u8..4).prop_map(f32::from), d_in);
        (Just(MatrixShape::new(d_in, d_out)), weights, importance)
    })
}

proptest! {
    #[test]
    fn largest_equals_a_plain_sort((shape, w, h) in matrix(), n in 0usize..90, weighted: bool) {
        let h = weighted.then_some(h.as_slice());
        let coo = Coo::largest(&w, shape, n, h).unwrap();
        prop_assert_eq!(coo.positions(), sorted_reference(&w, shape.d_in, n, h));
    }

    #[test]
    fn largest_per_row_equals_a_plain_sort((shape, w, h) in matrix(), k in 0usize..10, weighted: bool) {
        let h = weighted.then_some(h.as_slice());
        let coo = Coo::largest_per_row(&w, shape, k, h).unwrap();
        let mut expected = Vec::new();
        for (row, w) in w.chunks(shape.d_in).enumerate() {
            let columns = sorted_reference(w, shape.d_in, k, h);
            expected.extend(columns.into_iter().map(|c| row * shape.d_in + c));
        }
        prop_assert_eq!(coo.positions(), expected);
    }

    #[test]
    fn tensors_there_and_back((shape, w, _) in matrix(), n in 0usize..10) {
        let flat = Coo::largest(&w, shape, n, None).unwrap();
        let per_row = Coo::largest_per_row(&w, shape, n, None).unwrap();
        for (layout, coo, n) in [(Layout::Flat, flat, n.min(w.len())), (Layout::PerRow, per_row, n.min(shape.d_in))] {
            let sidecars = coo.to_sidecars(layout).unwrap();
            let specs: Vec<_> = sidecars.iter().map(|s| s.spec.clone()).collect();
            prop_assert_eq!(&specs, &layout.specs(shape, n).unwrap());
            for s in &sidecars {
                prop_assert_eq!(s.spec.n_bytes(), Some(s.data.len()));
            }
            let back = Coo::from_sidecars(layout, &sidecars, shape).unwrap();
            prop_assert_eq!(back.unwrap_or(Coo::empty(shape)), coo);
        }
    }

    #[test]
    fn arbitrary_tensors_never_panic(
        idx in prop::collection::vec(any::<i16>(), 0..12),
        bits in prop::collection::vec(any::<u16>(), 0..12),
        (d_in, d_out, k) in (0usize..5, 0usize..5, 0usize..7),
    ) {
        let values: Vec<f16> = bits.into_iter().map(f16::from_bits).collect();
        let mut idx = Sidecar::from_i16("delta_idx", &[idx.len()], &idx);
        let mut val = Sidecar::from_f16("delta_val", &[values.len()], &values);
        idx.spec.dims = vec![k, d_out];
        val.spec.dims = vec![k, d_out];
        let shape = MatrixShape::new(d_in, d_out);
        if let Ok(Some(coo)) = Coo::from_sidecars(Layout::PerRow, &[idx, val], shape) {
            coo.add_to(&mut vec![0.0; shape.n_weights()]);
        }
    }
}

#[test]
fn selection_does_not_depend_on_the_number_of_threads() {
    let shape = MatrixShape::new(37, 53);
    let w: Vec<f32> = (0..shape.n_weights()).map(|i| ((i * 7919) % 101) as f32 - 50.0).collect();
    let with_threads = |n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| {
            let all = Coo::largest(&w, shape, 300, None).unwrap();
            (all, Coo::largest_per_row(&w, shape, 5, None).unwrap())
        })
    };
    assert_eq!(with_threads(1), with_threads(3));
}

#[test]
fn correcting_every_weight_restores_the_matrix() {
    let shape = MatrixShape::new(5, 3);
    let w: Vec<f32> = (0..15).map(|i| i as f32 * 0.25 - 1.0).collect();
    let coo = Coo::largest(&w, shape, usize::MAX, None).unwrap();
    let mut sum = vec![0.0; 15];
    coo.add_to(&mut sum);
    assert_eq!(sum, w);
}

#[test]
fn product_equals_the_dense_product() {
    let shape = MatrixShape::new(4, 3);
    let w: Vec<f32> = (0..12).map(|i| (i as f32 - 6.0) * 0.5).collect();
    let coo = Coo::largest(&w, shape, 7, None).unwrap();
    let mut dense = vec![0.0; 12];
    coo.add_to(&mut dense);
    let x = [1.0, -2.0, 0.5, 3.0];
    let mut y = vec![10.0; 3];
    coo.add_product(&x, &mut y);
    for (y, row) in y.iter().zip(dense.chunks(4)) {
        assert_eq!(*y, 10.0 + row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>());
    }
    let middle: Vec<_> = coo.entries(1..2).collect();
    assert!(middle.iter().all(|&(row, c, v)| row == 1 && v == w[4 + c]));
    assert_eq!(coo.entries(0..3).count(), 7);
}

#[test]
fn values_beyond_f16_are_clamped() {
    let coo = Coo::largest(&[1e9, -1e9, 1.0], MatrixShape::new(3, 1), 2, None).unwrap();
    assert_eq!(coo.values(), [f16::MAX, f16::MIN]);
    assert_eq!(f16_clamped(f32::NAN), f16::ZERO);
    assert_eq!(f16_clamped(f32::INFINITY), f16::MAX);
}

#[test]
fn non_finite_residuals_are_refused() {
    let shape = MatrixShape::new(2, 2);
    let error = Coo::largest_per_row(&[0.0, 1.0, f32::NAN, 0.0], shape, 1, None).unwrap_err();
    assert!(matches!(error, CodecError::NonFinite { row: 1, column: 0, .. }));
}

#[test]
fn narrow_indices_where_the_last_column_fits() {
    let element =
        |d_in| Layout::PerRow.specs(MatrixShape::new(d_in, 2), 1).unwrap()[0].element_type;
    assert_eq!(element(32768), ElementType::I16);
    assert_eq!(element(32769), ElementType::I32);
    let shape = MatrixShape::new(32768, 1);
    let mut w = vec![0.0; 32768];
    w[32767] = 1.0;
    let coo = Coo::largest_per_row(&w, shape, 1, None).unwrap();
    let sidecars = coo.to_sidecars(Layout::PerRow).unwrap();
    assert_eq!(sidecars[0].to_i16().unwrap(), [32767]);
    assert_eq!(Coo::from_sidecars(Layout::PerRow, &sidecars, shape).unwrap(), Some(coo));
}

#[test]
fn flat_positions_beyond_i32_are_refused() {
    let devstral = MatrixShape::new(32768, 5120);
    assert!(Layout::Flat.specs(devstral, 1000).is_ok());
    assert!(Layout::Flat.specs(MatrixShape::new(1 << 16, 1 << 15), 1).is_ok());
    let error = Layout::Flat.specs(MatrixShape::new(1 << 16, (1 << 15) + 1), 1).unwrap_err();
    assert!(error.to_string().contains("do not fit I32"), "{error}");
    assert!(Layout::Flat.specs(MatrixShape::new(usize::MAX, 2), 1).is_err());
    assert!(Layout::PerRow.specs(MatrixShape::new(4, 2), 5).is_err());
}

#[test]
fn uneven_rows_have_no_per_row_layout() {
    let coo = Coo::largest(&[3.0, 2.0, 1.0, 0.0], MatrixShape::new(2, 2), 2, None).unwrap();
    assert!(coo.to_sidecars(Layout::PerRow).is_err());
}

#[test]
fn malformed_tensors_are_refused_by_name() {
    let shape = MatrixShape::new(4, 2);
    let idx = |v: &[i32]| Sidecar::from_i32("outlier_idx", &[v.len()], v);
    let val = |v: &[f32]| {
        let v: Vec<f16> = v.iter().map(|&v| f16::from_f32(v)).collect();
        Sidecar::from_f16("outlier_val", &[v.len()], &v)
    };
    let read = |s: &[Sidecar]| sidecar_reason(Coo::from_sidecars(Layout::Flat, s, shape));
    let two = val(&[1.0, 2.0]);
    assert!(read(&[idx(&[1, 8]), two.clone()]).contains("entry 1 is 8, must be in 0..8"));
    assert!(read(&[idx(&[-1, 2]), two.clone()]).contains("entry 0 is -1"));
    assert!(read(&[idx(&[3, 3]), two.clone()]).contains("entry 1 is 3, not above"));
    assert!(read(&[idx(&[1, 2]), val(&[1.0])]).contains("'outlier_val': shape is [1]"));
    assert!(read(&[idx(&[1, 2]), val(&[1.0, f32::NAN])]).contains("entry 1 is NaN"));
    assert!(read(&[idx(&[1, 2])]).contains("'outlier_val': missing"));
    assert!(read(std::slice::from_ref(&two)).contains("'outlier_idx': missing"));
    let narrow = Sidecar::from_i16("outlier_idx", &[2], &[1, 2]);
    assert!(read(&[narrow, two.clone()]).contains("type is I16, must be I32"));
    let mut short = idx(&[1, 2]);
    short.data.pop();
    assert!(read(&[short, two]).contains("7 bytes"));
    let per_row = Sidecar::from_i16("delta_idx", &[2, 2], &[0, 1, 3, 2]);
    let values = Sidecar::from_f16("delta_val", &[2, 2], &[f16::ONE; 4]);
    let reason = sidecar_reason(Coo::from_sidecars(Layout::PerRow, &[per_row, values], shape));
    assert!(reason.contains("entry 3 is 2, not above"), "{reason}");
}

#[test]
fn dimensions_of_one_at_the_end_do_not_count() {
    let coo = Coo::largest_per_row(&[1.0, 2.0, 3.0], MatrixShape::new(3, 1), 2, None).unwrap();
    let mut sidecars = coo.to_sidecars(Layout::PerRow).unwrap();
    sidecars[0].spec.dims = vec![2];
    sidecars[1].spec.dims = vec![2, 1, 1, 1];
    let back = Coo::from_sidecars(Layout::PerRow, &sidecars, coo.shape()).unwrap();
    assert_eq!(back, Some(coo));
}

#[test]
fn share_to_entries() {
    let shape = MatrixShape::new(100, 10);
    assert_eq!(entries_for_share(shape, 0.002), 2);
    assert_eq!(entries_for_share(shape, 2.0), 1000);
    assert_eq!(entries_for_share(shape, -1.0), 0);
}
