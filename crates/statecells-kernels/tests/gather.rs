//! The gather against its definition in F64, the fast forms against the reference, bad input.

use half::f16;
use proptest::prelude::*;
use statecells_kernels::{Columns, GatherMatrix, GatherShape, Isa, KernelError, Output, Scratch};

/// A coded matrix with its buffers.
#[derive(Debug, Clone)]
struct Case {
    shape: GatherShape,
    codes: Vec<i16>,
    vals: Option<Vec<f16>>,
    row_scale: Option<Vec<f16>>,
    n_tokens: usize,
    p: Vec<f32>,
    x_scale: Option<Vec<f32>>,
}

impl Case {
    fn matrix(&self) -> GatherMatrix<'_> {
        let (vals, row_scale) = (self.vals.as_deref(), self.row_scale.as_deref());
        GatherMatrix::new(self.shape, &self.codes, vals, row_scale).unwrap()
    }

    fn product(&self, isa: Isa, nth: usize) -> Vec<f32> {
        let p = Columns::contiguous(&self.p, self.shape.n_atoms).unwrap();
        let stride = self.shape.d_out + 3;
        let mut y = vec![f32::NAN; stride * self.n_tokens];
        let outputs = Output::split(&mut y, self.shape.d_out, self.n_tokens, stride, nth).unwrap();
        for mut output in outputs {
            let mut scratch = Scratch::new();
            self.matrix()
                .product(isa, p, self.x_scale.as_deref(), &mut output, &mut scratch)
                .unwrap();
        }
        y.chunks(stride).flat_map(|token| token[..self.shape.d_out].to_vec()).collect()
    }

    /// Row by row from the formula, in F64, with the largest sum of magnitudes as error scale.
    fn definition(&self) -> Vec<(f64, f64)> {
        let GatherShape { n_atoms, k, d_out } = self.shape;
        let mut y = Vec::new();
        for t in 0..self.n_tokens {
            for r in 0..d_out {
                let mut scale = self.row_scale.as_ref().map_or(1.0, |s| s[r].to_f64());
                scale *= self.x_scale.as_ref().map_or(1.0, |s| f64::from(s[t]));
                let terms = (r * k..(r + 1) * k).filter(|&i| self.codes[i] != 0).map(|i| {
                    let val = self.vals.as_ref().map_or(1.0, |v| v[i].to_f64());
                    let atom = usize::from(self.codes[i].unsigned_abs()) - 1;
                    let sign = f64::from(self.codes[i].signum());
                    sign * val * f64::from(self.p[t * n_atoms + atom]) * scale
                });
                let (sum, size) = terms.fold((0.0, 0.0), |(s, m), v: f64| (s + v, m + v.abs()));
                y.push((sum, size));
            }
        }
        y
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let n_tokens = prop_oneof![Just(1usize), Just(2), Just(3), 4..40usize];
    (1..70usize, 1..70usize, 1..80usize, n_tokens, any::<[bool; 3]>()).prop_flat_map(
        |(n_atoms, k, d_out, n_tokens, [vals, row_scale, x_scale])| {
            let limit = n_atoms as i16;
            let value = (-2.0..2.0f32).prop_map(f16::from_f32);
            let codes = prop::collection::vec(-limit..=limit, k * d_out);
            let p = prop::collection::vec(-3.0..3.0f32, n_atoms * n_tokens);
            let maybe = |on: bool, n| prop::collection::vec(value.clone(), if on { n } else { 0 });
            let factors = prop::collection::vec(0.1..4.0f32, n_tokens);
            (codes, maybe(vals, k * d_out), maybe(row_scale, d_out), p, factors).prop_map(
                move |(codes, v, s, p, f)| Case {
                    shape: GatherShape { n_atoms, k, d_out },
                    codes,
                    vals: vals.then_some(v),
                    row_scale: row_scale.then_some(s),
                    n_tokens,
                    p,
                    x_scale: x_scale.then_some(f),
                },
            )
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
        for (got, (want, size)) in case.product(Isa::SCALAR, 1).iter().zip(case.definition()) {
            // Each of up to 70 additions and a few factors rounds by half a unit.
            prop_assert!((f64::from(*got) - want).abs() <= 80.0 * 6e-8 * size, "{got} {want}");
        }
    }

    #[test]
    fn every_form_and_any_number_of_threads_give_the_same_bits(case in cases(), nth in 2..5usize) {
        let reference = bits(&case.product(Isa::SCALAR, 1));
        for isa in Isa::available() {
            for nth in [1, nth] {
                prop_assert_eq!(&bits(&case.product(isa, nth)), &reference, "{} {}", isa, nth);
            }
        }
    }
}

fn small() -> Case {
    Case {
        shape: GatherShape { n_atoms: 4, k: 3, d_out: 2 },
        codes: vec![1, -4, 0, 4, 2, -1],
        vals: Some(vec![f16::ONE; 6]),
        row_scale: Some(vec![f16::ONE; 2]),
        n_tokens: 1,
        p: vec![1.0, 10.0, 100.0, 1000.0],
        x_scale: None,
    }
}

#[test]
fn a_small_example_by_hand() {
    let mut case = small();
    for isa in Isa::available() {
        assert_eq!(case.product(isa, 1), [1.0 - 1000.0, 1000.0 + 10.0 - 1.0], "{isa}");
    }
    case.row_scale = Some(vec![f16::from_f32(0.5), f16::from_f32(-2.0)]);
    case.x_scale = Some(vec![4.0]);
    for isa in Isa::available() {
        assert_eq!(case.product(isa, 1), [-999.0 * 2.0, 1009.0 * -8.0], "{isa}");
    }
}

#[test]
fn all_finite_f16_coefficients_are_exact_in_every_form() {
    let vals: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|v| v.is_finite()).collect();
    let d_out = vals.len();
    let case = Case {
        shape: GatherShape { n_atoms: 1, k: 1, d_out },
        codes: vec![1; d_out],
        vals: Some(vals.clone()),
        row_scale: None,
        n_tokens: 1,
        p: vec![1.0],
        x_scale: None,
    };
    for n_tokens in [1, 5] {
        let case = Case { n_tokens, p: vec![1.0; n_tokens], ..case.clone() };
        for isa in Isa::available() {
            for (got, want) in case.product(isa, 1).iter().zip(vals.iter().cycle()) {
                assert_eq!(*got, want.to_f32(), "{isa}");
            }
        }
    }
}

#[test]
fn rejects_a_code_outside_the_dictionary() {
    for bad in [5, -5, i16::MIN, i16::MAX] {
        let mut case = small();
        case.codes[4] = bad;
        let error = GatherMatrix::new(case.shape, &case.codes, None, None).unwrap_err();
        assert_eq!(error, KernelError::CodeRange { code: bad, row: 1, slot: 1, n_atoms: 4 });
    }
}

#[test]
fn rejects_values_that_are_not_finite() {
    let case = small();
    for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
        let mut vals = vec![f16::ONE; 6];
        vals[3] = bad;
        let error = GatherMatrix::new(case.shape, &case.codes, Some(&vals), None).unwrap_err();
        assert!(matches!(error, KernelError::NonFinite { what: "vals", index: 3, .. }), "{error}");
        let scale = [f16::ONE, bad];
        let error = GatherMatrix::new(case.shape, &case.codes, None, Some(&scale)).unwrap_err();
        assert!(matches!(error, KernelError::NonFinite { what: "row_scale", index: 1, .. }));
    }
}

#[test]
fn rejects_lengths_and_shapes_that_do_not_fit() {
    let case = small();
    let new = |shape, codes: &[i16], vals: &[f16], scale: &[f16]| {
        GatherMatrix::new(shape, codes, Some(vals), Some(scale)).is_err()
    };
    let one = [f16::ONE; 7];
    assert!(!new(case.shape, &case.codes, &one[..6], &one[..2]));
    assert!(new(case.shape, &case.codes[..5], &one[..6], &one[..2]));
    assert!(new(case.shape, &case.codes, &one[..7], &one[..2]));
    assert!(new(case.shape, &case.codes, &one[..6], &one[..3]));
    for shape in [
        GatherShape { n_atoms: 0, ..case.shape },
        GatherShape { n_atoms: 32768, ..case.shape },
        GatherShape { k: 0, ..case.shape },
        GatherShape { d_out: 0, ..case.shape },
        GatherShape { k: usize::MAX, ..case.shape },
    ] {
        assert!(new(shape, &case.codes, &one[..6], &one[..2]), "{shape:?}");
    }
}

#[test]
fn rejects_a_product_of_other_shapes() {
    let case = small();
    let matrix = case.matrix();
    let run = |n: usize, n_tokens: usize, n_rows: usize, out_tokens: usize, n_scale: usize| {
        let (p, factors) = (vec![0.0; n * n_tokens], vec![1.0; n_scale]);
        let mut y = vec![7.0; n_rows * out_tokens];
        let p = Columns::contiguous(&p, n).unwrap();
        let mut output = Output::whole(&mut y, n_rows, out_tokens).unwrap();
        let isa = Isa::detect();
        let result = matrix.product(isa, p, Some(&factors), &mut output, &mut Scratch::new());
        assert!(result.is_ok() || y.iter().all(|&v| v == 7.0));
        result
    };
    assert!(run(4, 2, 2, 2, 2).is_ok());
    assert!(run(3, 2, 2, 2, 2).is_err());
    assert!(run(4, 2, 3, 2, 2).is_err());
    assert!(run(4, 2, 2, 1, 2).is_err());
    assert!(run(4, 2, 2, 2, 1).is_err());
}
