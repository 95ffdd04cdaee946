//! The sparse product against its definition in F64, the fast forms against the reference, bad input.

use half::f16;
use proptest::prelude::*;
use statecells_kernels::{ColumnIndex, Columns, Isa, KernelError, Output, Scratch, SparseMatrix};

/// A sparse matrix in one of its three forms, with an input and a former result.
#[derive(Debug, Clone)]
struct Case {
    d_in: usize,
    d_out: usize,
    form: Form,
    vals: Vec<f16>,
    n_tokens: usize,
    x: Vec<f32>,
    former: Vec<f32>,
}

#[derive(Debug, Clone)]
enum Form {
    Flat(Vec<i32>),
    Rows16(usize, Vec<i16>),
    Rows32(usize, Vec<i32>),
}

impl Case {
    fn matrix(&self) -> Result<SparseMatrix<'_>, KernelError> {
        let (d_in, d_out, vals) = (self.d_in, self.d_out, &self.vals);
        match &self.form {
            Form::Flat(positions) => SparseMatrix::from_flat(d_in, d_out, positions, vals),
            Form::Rows16(k, c) => {
                SparseMatrix::from_rows(d_in, d_out, *k, ColumnIndex::I16(c), vals)
            }
            Form::Rows32(k, c) => {
                SparseMatrix::from_rows(d_in, d_out, *k, ColumnIndex::I32(c), vals)
            }
        }
    }

    fn run(&self, isa: Isa, nth: usize, add: bool) -> Vec<f32> {
        let x = Columns::contiguous(&self.x, self.d_in).unwrap();
        let mut y = self.former.clone();
        for mut part in Output::split(&mut y, self.d_out, self.n_tokens, self.d_out, nth).unwrap() {
            let (m, mut scratch) = (self.matrix().unwrap(), Scratch::new());
            if add {
                m.add_product(isa, x, &mut part, &mut scratch).unwrap();
            } else {
                m.product(isa, x, &mut part, &mut scratch).unwrap();
            }
        }
        y
    }

    /// Row and column of every entry.
    fn entries(&self) -> Vec<(usize, usize)> {
        match &self.form {
            Form::Flat(p) => {
                p.iter().map(|&p| (p as usize / self.d_in, p as usize % self.d_in)).collect()
            }
            Form::Rows16(k, c) => c.iter().enumerate().map(|(i, &c)| (i / k, c as usize)).collect(),
            Form::Rows32(k, c) => c.iter().enumerate().map(|(i, &c)| (i / k, c as usize)).collect(),
        }
    }

    /// The product in F64 and the sum of its terms' magnitudes.
    fn definition(&self) -> Vec<(f64, f64)> {
        let mut y = vec![(0.0, 0.0); self.d_out * self.n_tokens];
        for ((row, column), val) in self.entries().into_iter().zip(&self.vals) {
            for t in 0..self.n_tokens {
                let term = val.to_f64() * f64::from(self.x[t * self.d_in + column]);
                y[t * self.d_out + row].0 += term;
                y[t * self.d_out + row].1 += term.abs();
            }
        }
        y
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let n_tokens = prop_oneof![Just(1usize), Just(2), 3..40usize];
    (1..90usize, 1..90usize, 0..70usize, 0..3u8, n_tokens).prop_flat_map(
        |(d_in, d_out, k, form, n_tokens)| {
            // A share k / 70 of all positions, or k entries per row.
            let flat = prop::collection::vec(0..70usize, if form == 0 { d_in * d_out } else { 0 });
            let columns = prop::collection::vec(0..d_in, k * d_out);
            let vals = prop::collection::vec(-2.0..2.0f32, d_out * k.max(d_in));
            let x = prop::collection::vec(-3.0..3.0f32, d_in * n_tokens);
            let former = prop::collection::vec(-3.0..3.0f32, d_out * n_tokens);
            (flat, columns, vals, x, former).prop_map(move |(flat, columns, vals, x, former)| {
                let form = match form {
                    0 => Form::Flat(
                        (0..flat.len()).filter(|&i| flat[i] < k).map(|i| i as i32).collect(),
                    ),
                    1 => Form::Rows16(k, columns.iter().map(|&c| c as i16).collect()),
                    _ => Form::Rows32(k, columns.iter().map(|&c| c as i32).collect()),
                };
                let n = if let Form::Flat(p) = &form { p.len() } else { k * d_out };
                let vals = vals[..n].iter().map(|&v| f16::from_f32(v)).collect();
                Case { d_in, d_out, form, vals, n_tokens, x, former }
            })
        },
    )
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_reference_computes_the_definition(case in cases()) {
        for (got, (want, size)) in case.run(Isa::SCALAR, 1, false).iter().zip(case.definition()) {
            prop_assert!((f64::from(*got) - want).abs() <= 80.0 * 6e-8 * size, "{got} {want}");
        }
    }

    #[test]
    fn every_form_and_any_number_of_threads_give_the_same_bits(case in cases(), nth in 2..5usize) {
        let set = bits(&case.run(Isa::SCALAR, 1, false));
        let add = bits(&case.run(Isa::SCALAR, 1, true));
        for isa in Isa::available() {
            for nth in [1, nth] {
                prop_assert_eq!(&bits(&case.run(isa, nth, false)), &set, "{} {}", isa, nth);
                prop_assert_eq!(&bits(&case.run(isa, nth, true)), &add, "{} {}", isa, nth);
            }
        }
    }

    #[test]
    fn adding_adds(case in cases()) {
        let product = case.run(Isa::detect(), 1, false);
        let added = case.run(Isa::detect(), 1, true);
        for ((added, product), former) in added.iter().zip(product).zip(&case.former) {
            prop_assert_eq!(*added, former + product);
        }
    }
}

/// Rows are found by a product with an inverse: wrong first at the ends of rows and for large positions.
#[test]
fn ends_of_rows_are_found_up_to_the_largest_position() {
    for (d_in, d_out) in [(100_003, 21_474), (4096, 524_287), (2, 70_000), (1, 5000), (3, 5000)] {
        let ends = |r: i32| [r * d_in, r * d_in + d_in - 1];
        let mut positions: Vec<i32> =
            (0..d_out).step_by(11).chain([d_out - 1]).flat_map(ends).collect();
        positions.sort_unstable();
        positions.dedup();
        let vals = (0..positions.len()).map(|i| f16::from_f32(1.0 + i as f32 / 65536.0)).collect();
        let [d_in, d_out] = [d_in as usize, d_out as usize];
        let x = (0..d_in).map(|i| i as f32 - 0.5).collect();
        let form = Form::Flat(positions);
        let case = Case { d_in, d_out, form, vals, n_tokens: 1, x, former: vec![1.0; d_out] };
        for isa in Isa::available() {
            for nth in [1, 3] {
                assert_eq!(bits(&case.run(isa, nth, true)), bits(&case.run(Isa::SCALAR, 1, true)));
            }
        }
    }
}

fn refused(d_in: usize, d_out: usize, positions: &[i32]) -> String {
    let vals = vec![f16::ONE; positions.len()];
    SparseMatrix::from_flat(d_in, d_out, positions, &vals).unwrap_err().to_string()
}

#[test]
fn rejects_positions_outside_or_out_of_order() {
    assert!(refused(3, 2, &[0, 6]).contains("position 1 is 6"));
    assert!(refused(3, 2, &[-1]).contains("position 0 is -1"));
    assert!(refused(3, 2, &[2, 2]).contains("position 1 is 2"));
    assert!(refused(3, 2, &[4, 5, 1]).contains("position 2 is 1"));
    assert!(refused(0, 2, &[]).contains("d_in"));
    assert!(refused(2, usize::MAX, &[]).contains("d_out"));
    let ok = SparseMatrix::from_flat(3, 2, &[0, 5], &[f16::ONE; 2]);
    assert!(ok.is_ok());
    assert!(SparseMatrix::from_flat(3, 2, &[0, 5], &[f16::ONE; 3]).is_err());
    let error = SparseMatrix::from_flat(3, 2, &[0, 5], &[f16::ONE, f16::NAN]).unwrap_err();
    assert!(matches!(error, KernelError::NonFinite { index: 1, .. }));
}

#[test]
fn rejects_columns_outside_the_matrix() {
    let new = |k, columns: &[i16], n_vals: usize| {
        let vals = vec![f16::ONE; n_vals];
        SparseMatrix::from_rows(5, 2, k, ColumnIndex::I16(columns), &vals).map(|_| ())
    };
    assert!(new(2, &[0, 4, 4, 0], 4).is_ok());
    assert!(new(0, &[], 0).is_ok());
    for bad in [-1, 5, i16::MIN] {
        let error = new(2, &[0, 4, 4, bad], 4).unwrap_err();
        assert!(matches!(error, KernelError::Position { index: 3, .. }), "{error}");
    }
    assert!(new(2, &[0, 4, 4], 4).is_err());
    assert!(new(2, &[0, 4, 4, 0], 3).is_err());
    assert!(new(usize::MAX, &[0, 4, 4, 0], 4).is_err());
    let wide = ColumnIndex::I32(&[0, 5]);
    assert!(SparseMatrix::from_rows(5, 2, 1, wide, &[f16::ONE; 2]).is_err());
}

#[test]
fn rejects_a_product_of_other_shapes() {
    let m = SparseMatrix::from_flat(3, 2, &[0, 5], &[f16::ONE; 2]).unwrap();
    let run = |n: usize, n_tokens: usize, n_rows: usize, out_tokens: usize| {
        let (x, mut y) = (vec![0.0; n * n_tokens], vec![0.0; n_rows * out_tokens]);
        let x = Columns::contiguous(&x, n).unwrap();
        let mut y = Output::whole(&mut y, n_rows, out_tokens).unwrap();
        m.product(Isa::detect(), x, &mut y, &mut Scratch::new()).is_ok()
    };
    assert!(run(3, 4, 2, 4));
    assert!(!run(4, 4, 2, 4));
    assert!(!run(3, 4, 3, 4));
    assert!(!run(3, 4, 2, 3));
}
