//! The sections product against its definition in F64, the fast forms against the reference, the
//! extremes of the integer sums, bad input.

mod common;

use common::{Case, bits, cases, extreme};
use half::f16;
use proptest::prelude::*;
use statecells_kernels::{
    Atoms, Columns, Isa, KernelError, Output, Scratch, SectionMatrix, SectionShape, TableBuilder,
    TableEntry, TableLayout, TableOutput, Tables,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_reference_computes_the_definition(case in cases()) {
        let tables = case.tables(Isa::SCALAR, 1);
        let y = case.product(Isa::SCALAR, 1, &tables);
        for (got, (want, bound)) in y.iter().zip(case.definition()) {
            prop_assert!((f64::from(*got) - want).abs() <= bound, "{got} {want} {bound}");
        }
    }

    #[test]
    fn every_form_and_any_number_of_threads_give_the_same_bits(case in cases(), nth in 2..5usize) {
        let tables = case.tables(Isa::SCALAR, 1);
        let reference = bits(&case.product(Isa::SCALAR, 1, &tables));
        for isa in Isa::available() {
            for nth in [1, nth] {
                prop_assert_eq!(&case.tables(isa, nth), &tables, "{} {}", isa, nth);
                let y = bits(&case.product(isa, nth, &tables));
                prop_assert_eq!(&y, &reference, "{} {}", isa, nth);
            }
        }
    }

    #[test]
    fn a_token_gives_the_same_bits_alone_and_among_others(case in cases()) {
        for isa in Isa::available() {
            let y = case.product(isa, 1, &case.tables(isa, 1));
            for (t, together) in y.chunks(case.shape.d_out).enumerate() {
                let x = case.x[t * case.shape.d_in..][..case.shape.d_in].to_vec();
                let alone = Case { n_tokens: 1, x, ..case.clone() };
                let alone = alone.product(isa, 1, &alone.tables(isa, 1));
                prop_assert_eq!(bits(&alone), bits(together), "{}", isa);
            }
        }
    }
}

#[test]
fn the_largest_sums_of_a_group_do_not_overflow() {
    for (sign, n_tokens) in [(1.0, 1), (-1.0, 1), (1.0, 7), (-1.0, 7)] {
        for entry in [TableEntry::I8, TableEntry::I16] {
            let case = extreme(sign, entry, n_tokens);
            for isa in Isa::available() {
                let y = case.product(isa, 1, &case.tables(isa, 1));
                // 33 blocks of 16 sections, each projection 8 * 0.125.
                let want = sign * 33.0 * 16.0;
                assert!(y.iter().all(|y| (y - want).abs() < 1e-3), "{isa} {entry:?} {}", y[0]);
            }
        }
    }
}

#[test]
fn any_bytes_are_tables() {
    for fill in [0, 1, 255] {
        let case = extreme(1.0, TableEntry::I8, 5);
        let tables = vec![fill; case.layout().bytes_per_token() * 5];
        let reference = case.product(Isa::SCALAR, 1, &tables);
        for isa in Isa::available() {
            let y = case.product(isa, 1, &tables);
            // All-ones bytes are NaN scales.
            let same =
                |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(y.iter().zip(&reference).all(same), "{isa} {fill}");
        }
    }
}

#[test]
fn inputs_that_are_zero_tiny_or_not_finite_give_what_the_dense_product_would() {
    for isa in Isa::available() {
        for (value, want) in
            [(0.0, 0.0), (1e-40, 0.0), (f32::NAN, f32::NAN), (f32::INFINITY, f32::NAN)]
        {
            let mut case = extreme(1.0, TableEntry::I8, 3);
            case.x[case.shape.d_in..2 * case.shape.d_in].fill(0.0);
            case.x[case.shape.d_in + 100] = value;
            let y = case.product(isa, 1, &case.tables(isa, 1));
            for (t, y) in y.chunks(case.shape.d_out).enumerate() {
                let want = if t == 1 { want } else { 528.0 };
                let fits = |y: &f32| (y - want).abs() < 1e-3 || want.is_nan() && y.is_nan();
                assert!(y.iter().all(fits), "{isa} {value} token {t}: {}", y[0]);
            }
        }
    }
}

#[test]
fn one_large_input_costs_precision_in_its_own_group_only() {
    let mut case = extreme(1.0, TableEntry::I8, 1);
    case.group_blocks = 2;
    case.codes.fill(0);
    case.x[0] = 1e6;
    let exact = 16.0 * (f64::from(1e6f32 + 7.0) * 0.125 + 32.0);
    let y = case.product(Isa::detect(), 1, &case.tables(Isa::detect(), 1));
    // The second block of the group is below half a step of its scale; 31 others are exact.
    let lost = exact - f64::from(y[0]);
    assert!((lost - 16.0).abs() < 1.0, "{lost}");
}

#[test]
fn rejects_shapes_and_lengths_that_do_not_fit() {
    let shape = SectionShape { d_in: 20, d_out: 40, n_sections: 3 };
    let n = shape.code_bytes().unwrap();
    // 3 blocks of 3 sections: 9 planes, 5 pairs; two tiles.
    assert_eq!(n, 2 * 5 * 32);
    let (codes, scale) = (vec![0; n], vec![f16::ONE; 40]);
    assert!(SectionMatrix::new(shape, &codes, &scale, None).is_ok());
    assert!(SectionMatrix::new(shape, &codes[1..], &scale, None).is_err());
    assert!(SectionMatrix::new(shape, &codes, &scale[1..], None).is_err());
    for bad in [
        SectionShape { n_sections: 0, ..shape },
        SectionShape { n_sections: 17, ..shape },
        SectionShape { d_in: 0, ..shape },
        SectionShape { d_in: usize::MAX, ..shape },
        SectionShape { d_out: 0, ..shape },
        SectionShape { d_out: usize::MAX, ..shape },
    ] {
        assert!(SectionMatrix::new(bad, &codes, &scale, None).is_err(), "{bad:?}");
    }
    let mut scale = scale;
    scale[39] = f16::NAN;
    let error = SectionMatrix::new(shape, &codes, &scale, None).unwrap_err();
    assert!(matches!(error, KernelError::NonFinite { what: "row_scale", index: 39, .. }));
    for group_blocks in [0, 1, 3, 18, usize::MAX] {
        assert!(TableLayout::new(20, 3, group_blocks, TableEntry::I8).is_err(), "{group_blocks}");
    }
    let layout = TableLayout::new(20, 3, 4, TableEntry::I8).unwrap();
    let mut dict = vec![1.0; 3 * 128];
    assert!(TableBuilder::new(layout, Atoms::F32(&dict[1..])).is_err());
    assert!(TableBuilder::new(layout, Atoms::F32(&dict)).is_ok());
    dict[5] = f32::INFINITY;
    assert!(TableBuilder::new(layout, Atoms::F32(&dict)).is_err());
}

#[test]
fn rejects_a_product_of_other_shapes() {
    let case = extreme(1.0, TableEntry::I8, 2);
    let layout = case.layout();
    let matrix = SectionMatrix::new(case.shape, &case.codes, &case.row_scale, None).unwrap();
    let data = case.tables(Isa::detect(), 1);
    let tables = Tables::new(&data, &layout, 2).unwrap();
    assert!(Tables::new(&data, &layout, 1).is_err());
    assert!(Tables::new(&data[1..], &layout, 2).is_err());
    assert!(Tables::new(&data, &layout, usize::MAX).is_err());
    let run = |tables, x: &[f32], n: usize, n_rows: usize, n_tokens: usize| {
        let mut y = vec![0.0; n_rows * n_tokens];
        let x = Columns::contiguous(x, n).unwrap();
        let mut y = Output::whole(&mut y, n_rows, n_tokens).unwrap();
        matrix.product(Isa::detect(), tables, x, &mut y, &mut Scratch::new())
    };
    assert!(run(tables, &case.x, 264, 70, 2).is_ok());
    assert!(run(tables, &case.x, 264, 71, 2).is_err());
    assert!(run(tables, &case.x, 264, 70, 1).is_err());
    assert!(run(tables, &case.x[264..], 264, 70, 2).is_err());
    assert!(run(tables, &case.x, 132, 70, 2).is_err());
    let other = TableLayout::new(264, 8, 16, TableEntry::I8).unwrap();
    let other_data = vec![0; other.bytes_per_token() * 2];
    assert!(run(Tables::new(&other_data, &other, 2).unwrap(), &case.x, 264, 70, 2).is_err());
    let mut bytes = vec![0; layout.bytes_per_token() * 2];
    let builder = TableBuilder::new(layout, Atoms::F32(&case.dict)).unwrap();
    let mut outputs = TableOutput::split(&mut bytes, &layout, 2, 1).unwrap();
    let short = Columns::contiguous(&case.x[1..], 527).unwrap();
    assert!(builder.build(Isa::detect(), short, &mut outputs[0]).is_err());
    let one = Columns::contiguous(&case.x[264..], 264).unwrap();
    assert!(builder.build(Isa::detect(), one, &mut outputs[0]).is_err());
    assert!(TableOutput::split(&mut [0; 3], &layout, 2, 1).is_err());
}
