//! The product that decodes against its definition in F64, the fast forms against the reference, its error
//! against that of lookups, the extremes of the integer sums, bad input.

mod common;

use common::{Case, bits, cases, extreme};
use half::f16;
use proptest::prelude::*;
use statecells_kernels::{
    Atoms, Columns, Decoder, InputLayout, InputOutput, Inputs, Isa, Output, Scratch, SectionMatrix,
    SectionShape, TableEntry, TableLayout, TileCache,
};

/// Inputs that share a scale.
const SPAN: usize = 64;

/// The product in F64 and a bound of the error that rounding weights and inputs to bytes may make.
fn definition(case: &Case) -> Vec<(f64, f64)> {
    let SectionShape { d_in, d_out, n_sections } = case.shape;
    let atom =
        |section: usize, atom: usize, j: usize| f64::from(case.dict[(section * 16 + atom) * 8 + j]);
    let extreme = |j: usize, sign: f64| -> f64 {
        let top = |s: usize| (0..16).map(|a| sign * atom(s, a, j)).fold(f64::MIN, f64::max);
        (0..n_sections).map(top).sum()
    };
    let bound = (0..8).map(|j| extreme(j, 1.0).max(extreme(j, -1.0))).fold(0.0, f64::max);
    // Each atom is rounded to a sixteenth of a step, their sum to a whole one.
    let weight_error = bound / 126.0 * (0.5 + n_sections as f64 / 32.0);
    let mut y = Vec::new();
    for t in 0..case.n_tokens {
        let x: Vec<f64> = case.x[t * d_in..][..d_in].iter().map(|&v| f64::from(v)).collect();
        let steps: Vec<f64> =
            x.chunks(SPAN).map(|x| x.iter().fold(0.0f64, |m, v| m.max(v.abs())) / 127.0).collect();
        for r in 0..d_out {
            let scale = case.row_scale[r].to_f64();
            let (mut sum, mut error) = (0.0, 0.0);
            for (i, x) in x.iter().enumerate() {
                let weight: f64 =
                    (0..n_sections).map(|s| atom(s, case.code(r, i / 8, s), i % 8)).sum();
                sum += scale * weight * x;
                error += (weight.abs() + weight_error) * 0.5 * steps[i / SPAN];
                error += weight_error * x.abs();
            }
            error *= scale.abs();
            for &(position, val) in &case.outliers {
                if position as usize / d_in == r {
                    let term = val.to_f64() * x[position as usize % d_in];
                    sum += term;
                    error += 1e-5 * term.abs();
                }
            }
            y.push((sum, 1.001 * error + 1e-5 * (sum.abs() + scale.abs())));
        }
    }
    y
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a cache keeps, the bits stay.
    #[test]
    fn tiles_that_are_kept_change_nothing(case in cases(), nth in 1..4usize, share in 0..4usize) {
        let n_decoded = case.shape.d_in.next_multiple_of(SPAN) * case.shape.d_out.next_multiple_of(32);
        for isa in Isa::available() {
            let inputs = case.inputs(isa, 1);
            let expected = bits(&case.decoded(isa, 1, &inputs));
            let cache = TileCache::new(n_decoded * share / 3);
            case.with_matrix(|matrix| {
                let mut matrix = matrix.clone();
                matrix.keep_tiles(&cache);
                for _ in 0..3 {
                    let y = case.decoded_by(&matrix, isa, nth, &inputs);
                    assert_eq!(bits(&y), expected, "{isa}");
                }
            });
            let usage = cache.usage();
            // All tiles had room, and were decoded once.
            assert!(share < 3 || usage.n_hits == usage.n_asked / 3 * 2, "{usage:?}");
            assert!(usage.n_bytes <= usage.limit && (share > 0 || usage.n_hits == 0), "{usage:?}");
        }
    }

    #[test]
    fn the_reference_computes_the_definition(case in cases()) {
        let y = case.decoded(Isa::SCALAR, 1, &case.inputs(Isa::SCALAR, 1));
        for (got, (want, bound)) in y.iter().zip(definition(&case)) {
            prop_assert!((f64::from(*got) - want).abs() <= bound, "{got} {want} {bound}");
        }
    }

    #[test]
    fn every_form_and_any_number_of_threads_give_the_same_bits(case in cases(), nth in 2..5usize) {
        let inputs = case.inputs(Isa::SCALAR, 1);
        let reference = bits(&case.decoded(Isa::SCALAR, 1, &inputs));
        for isa in Isa::available() {
            for nth in [1, nth] {
                prop_assert_eq!(&case.inputs(isa, nth), &inputs, "{} {}", isa, nth);
                let y = bits(&case.decoded(isa, nth, &inputs));
                prop_assert_eq!(&y, &reference, "{} {}", isa, nth);
            }
        }
    }

    #[test]
    fn a_token_gives_the_same_bits_alone_and_among_others(case in cases()) {
        for isa in Isa::available() {
            let y = case.decoded(isa, 1, &case.inputs(isa, 1));
            for (t, together) in y.chunks(case.shape.d_out).enumerate() {
                let x = case.x[t * case.shape.d_in..][..case.shape.d_in].to_vec();
                let alone = Case { n_tokens: 1, x, ..case.clone() };
                let alone = alone.decoded(isa, 1, &alone.inputs(isa, 1));
                prop_assert_eq!(bits(&alone), bits(together), "{}", isa);
            }
        }
    }
}

/// Numbers that are about normally distributed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        let mut uniform = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 40) as f32 / (1 << 24) as f32
        };
        (0..12).map(|_| uniform()).sum::<f32>() - 6.0
    }
}

/// A case of random normal weights. A section's atoms are `decay` times as large as those of the one before.
fn normal(
    shape: SectionShape,
    decay: f32,
    n_tokens: usize,
    outlier: impl Fn(usize) -> f32,
) -> Case {
    let mut noise = Noise((shape.d_in * shape.n_sections) as u64);
    let dict = (0..shape.n_sections * 128).map(|i| noise.next() * decay.powi(i as i32 / 128));
    let dict = dict.collect();
    let codes = (0..shape.code_bytes().unwrap()).map(|_| (noise.next() * 1e4) as i32 as u8);
    let codes = codes.collect();
    let x = (0..shape.d_in * n_tokens).map(|i| noise.next() * outlier(i % shape.d_in)).collect();
    let row_scale = vec![f16::ONE; shape.d_out];
    let (group_blocks, entry, outliers) = (8, TableEntry::I8, vec![]);
    Case { shape, group_blocks, entry, dict, codes, row_scale, outliers, n_tokens, x }
}

/// Squared errors over the result's energy of the products by lookups and by decoding.
fn errors(case: &Case) -> [f64; 2] {
    let exact = case.definition();
    let energy: f64 = exact.iter().map(|(y, _)| y * y).sum();
    let isa = Isa::detect();
    let error = |y: &[f32]| -> f64 {
        let off = y.iter().zip(&exact).map(|(got, (want, _))| (f64::from(*got) - want).powi(2));
        off.sum::<f64>() / energy
    };
    [
        error(&case.product(isa, 1, &case.tables(isa, 1))),
        error(&case.decoded(isa, 1, &case.inputs(isa, 1))),
    ]
}

/// Sizes of inputs by place that a product meets: nothing special, one massive activation, several in some
/// spans, and channels of different sizes.
type Sizes = fn(usize) -> f32;
const MASSIVE: [Sizes; 3] = [
    |i| if i == 300 { 300.0 } else { 1.0 },
    |i| if i % 100 == 0 { 30.0 } else { 1.0 },
    |i| if i % 37 == 0 { 10.0 } else { 1.0 },
];
const ORDINARY: [Sizes; 2] = [|_| 1.0, |i| ((i * 7919 % 101) as f32 / 25.0 - 2.0).exp()];

/// Learned sections get smaller one after the other, 0.78 times on the average.
#[test]
fn the_error_is_below_that_of_lookups_where_inputs_are_massive_and_small_elsewhere() {
    for n_sections in [4, 6, 8, 10] {
        let shape = SectionShape { d_in: 1024, d_out: 64, n_sections };
        for sizes in MASSIVE {
            let [lookup, decode] = errors(&normal(shape, 0.78, 8, sizes));
            assert!(decode < 0.9 * lookup, "{n_sections} sections: {decode} {lookup}");
        }
        for sizes in ORDINARY {
            let [lookup, decode] = errors(&normal(shape, 0.78, 8, sizes));
            assert!(decode < 1.6 * lookup && decode < 2.5e-4, "{n_sections}: {decode} {lookup}");
        }
    }
}

#[test]
fn the_largest_sums_of_a_span_are_exact() {
    for (sign, n_tokens) in [(1.0, 1), (-1.0, 1), (1.0, 7), (-1.0, 7)] {
        let case = extreme(sign, TableEntry::I8, n_tokens);
        for isa in Isa::available() {
            let y = case.decoded(isa, 1, &case.inputs(isa, 1));
            let want = sign * 33.0 * 16.0;
            assert!(y.iter().all(|y| (y - want).abs() < 1e-3), "{isa} {}", y[0]);
        }
    }
}

#[test]
fn every_width_of_a_batch_gives_the_same_bits_by_every_form() {
    let shape = SectionShape { d_in: 8 * 131, d_out: 97, n_sections: 5 };
    for n_tokens in [1, 2, 5, 6, 7, 11, 12, 31, 32, 33] {
        let case = normal(shape, 0.8, n_tokens, MASSIVE[1]);
        let inputs = case.inputs(Isa::SCALAR, 1);
        let reference = bits(&case.decoded(Isa::SCALAR, 1, &inputs));
        for isa in Isa::available() {
            assert_eq!(case.inputs(isa, 3), inputs, "{isa} {n_tokens}");
            assert_eq!(bits(&case.decoded(isa, 3, &inputs)), reference, "{isa} {n_tokens}");
        }
    }
}

#[test]
fn any_bytes_are_inputs() {
    for fill in [0, 1, 255] {
        let case = extreme(1.0, TableEntry::I8, 5);
        let layout = InputLayout::new(case.shape).unwrap();
        let inputs = vec![fill; layout.bytes_per_token() * 5];
        for isa in Isa::available() {
            assert_eq!(case.decoded(isa, 2, &inputs).len(), 5 * 70);
        }
    }
}

#[test]
fn inputs_that_are_zero_tiny_or_not_finite_give_what_the_dense_product_would() {
    for isa in Isa::available() {
        for (value, want) in [
            (0.0, 0.0),
            (1e-40, 0.0),
            (f32::NAN, f32::NAN),
            (f32::INFINITY, f32::NAN),
            // Alone in its span, so it is kept: 16 sections of 0.125.
            (1e6, 2e6),
        ] {
            let mut case = extreme(1.0, TableEntry::I8, 3);
            case.x[case.shape.d_in..2 * case.shape.d_in].fill(0.0);
            case.x[case.shape.d_in + 100] = value;
            let y = case.decoded(isa, 1, &case.inputs(isa, 1));
            for (t, y) in y.chunks(case.shape.d_out).enumerate() {
                let want = if t == 1 { want } else { 528.0 };
                let fits = |y: &f32| (y - want).abs() <= 1e-6 * want || want.is_nan() && y.is_nan();
                assert!(y.iter().all(fits), "{isa} {value} token {t}: {}", y[0]);
            }
        }
    }
}

#[test]
fn one_large_input_costs_its_neighbours_no_precision() {
    let mut case = extreme(1.0, TableEntry::I8, 1);
    case.x[70] = 1e6;
    let exact = 16.0 * 0.125 * (f64::from(1e6f32) + 263.0);
    for isa in Isa::available() {
        let y = case.decoded(isa, 1, &case.inputs(isa, 1));
        assert!((f64::from(y[0]) - exact).abs() < 0.5, "{isa} {} {exact}", y[0]);
    }
}

#[test]
fn inputs_never_need_more_room_than_tables() {
    for d_in in [1, 7, 8, 9, 63, 64, 65, 100, 4096, 5120] {
        for n_sections in 1..=16 {
            let shape = SectionShape { d_in, d_out: 1, n_sections };
            let inputs = InputLayout::new(shape).unwrap().bytes_per_token();
            for group_blocks in [2, 8, 16] {
                let tables = TableLayout::new(d_in, n_sections, group_blocks, TableEntry::I8);
                assert!(inputs <= tables.unwrap().bytes_per_token(), "{d_in} {n_sections}");
            }
        }
    }
}

#[test]
fn rejects_a_product_of_other_shapes() {
    let case = extreme(1.0, TableEntry::I8, 2);
    let layout = InputLayout::new(case.shape).unwrap();
    let matrix = SectionMatrix::new(case.shape, &case.codes, &case.row_scale, None).unwrap();
    let data = case.inputs(Isa::detect(), 1);
    let inputs = Inputs::new(&data, &layout, 2).unwrap();
    assert!(Inputs::new(&data, &layout, 1).is_err());
    assert!(Inputs::new(&data[1..], &layout, 2).is_err());
    assert!(Inputs::new(&data, &layout, usize::MAX).is_err());
    let decoder = case.decoder();
    let run = |decoder: &Decoder, inputs, n: usize, n_rows: usize, n_tokens: usize| {
        let mut y = vec![0.0; n_rows * n_tokens];
        let x = Columns::contiguous(&case.x[..n * n_tokens], n).unwrap();
        let mut y = Output::whole(&mut y, n_rows, n_tokens).unwrap();
        matrix.decoded_product(Isa::detect(), decoder, inputs, x, &mut y, &mut Scratch::new())
    };
    assert!(run(&decoder, inputs, 264, 70, 2).is_ok());
    assert!(run(&decoder, inputs, 264, 71, 2).is_err());
    assert!(run(&decoder, inputs, 264, 70, 1).is_err());
    assert!(run(&decoder, inputs, 132, 70, 2).is_err());
    let few = Decoder::new(8, Atoms::F32(&case.dict[..8 * 128])).unwrap();
    assert!(run(&few, inputs, 264, 70, 2).is_err());
    let other = InputLayout::new(SectionShape { d_in: 256, ..case.shape }).unwrap();
    let other_data = vec![0; other.bytes_per_token() * 2];
    assert!(run(&decoder, Inputs::new(&other_data, &other, 2).unwrap(), 264, 70, 2).is_err());
    assert!(InputLayout::new(SectionShape { d_in: 0, ..case.shape }).is_err());
    let mut bytes = vec![0; layout.bytes_per_token() * 2];
    let mut outputs = InputOutput::split(&mut bytes, &layout, 2, 1).unwrap();
    let short = Columns::contiguous(&case.x[1..], 527).unwrap();
    assert!(decoder.round_inputs(Isa::detect(), short, &mut outputs[0]).is_err());
    let one = Columns::contiguous(&case.x[264..], 264).unwrap();
    assert!(decoder.round_inputs(Isa::detect(), one, &mut outputs[0]).is_err());
    assert!(InputOutput::split(&mut [0; 3], &layout, 2, 1).is_err());
}
