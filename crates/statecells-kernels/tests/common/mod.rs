//! Coded matrices for the tests of both products.
#![allow(dead_code, unreachable_pub)] // each test program uses a part

use half::f16;
use proptest::prelude::*;
use statecells_kernels::{
    Atoms, Columns, Decoder, InputLayout, InputOutput, Inputs, Isa, Output, Scratch, SectionMatrix,
    SectionShape, SparseMatrix, TableBuilder, TableEntry, TableLayout, TableOutput, Tables,
};

/// A coded matrix with its dictionary, its outliers and an input.
#[derive(Debug, Clone)]
pub struct Case {
    pub shape: SectionShape,
    pub group_blocks: usize,
    pub entry: TableEntry,
    pub dict: Vec<f32>,
    pub codes: Vec<u8>,
    pub row_scale: Vec<f16>,
    pub outliers: Vec<(i32, f16)>,
    pub n_tokens: usize,
    pub x: Vec<f32>,
}

impl Case {
    pub fn layout(&self) -> TableLayout {
        let SectionShape { d_in, n_sections, .. } = self.shape;
        TableLayout::new(d_in, n_sections, self.group_blocks, self.entry).unwrap()
    }

    pub fn x(&self) -> Columns<'_> {
        Columns::contiguous(&self.x, self.shape.d_in).unwrap()
    }

    pub fn tables(&self, isa: Isa, nth: usize) -> Vec<u8> {
        let layout = self.layout();
        let builder = TableBuilder::new(layout, Atoms::F32(&self.dict)).unwrap();
        // Not the bias: forgotten bytes must show.
        let mut data = vec![1; layout.bytes_per_token() * self.n_tokens];
        for mut out in TableOutput::split(&mut data, &layout, self.n_tokens, nth).unwrap() {
            builder.build(isa, self.x(), &mut out).unwrap();
        }
        data
    }

    pub fn decoder(&self) -> Decoder {
        Decoder::new(self.shape.n_sections, Atoms::F32(&self.dict)).unwrap()
    }

    pub fn inputs(&self, isa: Isa, nth: usize) -> Vec<u8> {
        let layout = InputLayout::new(self.shape).unwrap();
        let mut data = vec![1; layout.bytes_per_token() * self.n_tokens];
        for mut out in InputOutput::split(&mut data, &layout, self.n_tokens, nth).unwrap() {
            self.decoder().round_inputs(isa, self.x(), &mut out).unwrap();
        }
        data
    }

    /// The product by lookups.
    pub fn product(&self, isa: Isa, nth: usize, tables: &[u8]) -> Vec<f32> {
        let tables = Tables::new(tables, &self.layout(), self.n_tokens).unwrap();
        self.with_matrix(|matrix| {
            self.each_part(nth, |part| {
                matrix.product(isa, tables, self.x(), part, &mut Scratch::new()).unwrap();
            })
        })
    }

    /// The product by decoding.
    pub fn decoded(&self, isa: Isa, nth: usize, inputs: &[u8]) -> Vec<f32> {
        self.with_matrix(|matrix| self.decoded_by(matrix, isa, nth, inputs))
    }

    /// The product by decoding, by a matrix of the case.
    pub fn decoded_by(
        &self,
        matrix: &SectionMatrix<'_>,
        isa: Isa,
        nth: usize,
        inputs: &[u8],
    ) -> Vec<f32> {
        let layout = InputLayout::new(self.shape).unwrap();
        let inputs = Inputs::new(inputs, &layout, self.n_tokens).unwrap();
        let (decoder, x) = (self.decoder(), self.x());
        self.each_part(nth, |part| {
            let scratch = &mut Scratch::new();
            matrix.decoded_product(isa, &decoder, inputs, x, part, scratch).unwrap();
        })
    }

    /// The result of `work`, token after token, of which each of `nth` threads does a part.
    fn each_part(&self, nth: usize, work: impl Fn(&mut Output<'_>)) -> Vec<f32> {
        let (d_out, stride) = (self.shape.d_out, self.shape.d_out + 5);
        let mut y = vec![f32::NAN; stride * self.n_tokens];
        for mut part in Output::split(&mut y, d_out, self.n_tokens, stride, nth).unwrap() {
            work(&mut part);
        }
        y.chunks(stride).flat_map(|token| token[..d_out].to_vec()).collect()
    }

    /// What `work` finds with the coded matrix.
    pub fn with_matrix<T>(&self, work: impl FnOnce(&SectionMatrix<'_>) -> T) -> T {
        let d_out = self.shape.d_out;
        let (positions, vals): (Vec<i32>, Vec<f16>) = self.outliers.iter().copied().unzip();
        let outliers = SparseMatrix::from_flat(self.shape.d_in, d_out, &positions, &vals).unwrap();
        let matrix =
            SectionMatrix::new(self.shape, &self.codes, &self.row_scale, Some(outliers)).unwrap();
        work(&matrix)
    }

    /// Atom of row `r` in `block`, `section`, found in the layout as docs describe it.
    pub fn code(&self, r: usize, block: usize, section: usize) -> usize {
        let plane = block * self.shape.n_sections + section;
        let n_pairs = (self.shape.n_blocks() * self.shape.n_sections).div_ceil(2);
        let byte = self.codes[(r / 32 * n_pairs + plane / 2) * 32 + r % 32];
        usize::from(if plane.is_multiple_of(2) { byte & 15 } else { byte >> 4 })
    }

    /// The product in F64 and a bound of the error that quantized tables may make.
    pub fn definition(&self) -> Vec<(f64, f64)> {
        let SectionShape { d_in, d_out, n_sections } = self.shape;
        let limit = if self.entry == TableEntry::I8 { 127.0 } else { 32639.0 };
        let mut y = Vec::new();
        for t in 0..self.n_tokens {
            let x: Vec<f64> = self.x[t * d_in..][..d_in].iter().map(|&v| f64::from(v)).collect();
            let project = |block: usize, section: usize, atom: usize| -> f64 {
                let atom = &self.dict[(section * 16 + atom) * 8..][..8];
                let x = x[block * 8..].iter();
                atom.iter().zip(x).map(|(a, x)| f64::from(*a) * x).sum()
            };
            let blocks: Vec<usize> = (0..self.shape.n_blocks()).collect();
            let halves: f64 = blocks
                .chunks(self.group_blocks)
                .map(|group| {
                    let all = group.iter().flat_map(|&b| (0..n_sections * 16).map(move |i| (b, i)));
                    let tops = all.map(|(b, i)| project(b, i / 16, i % 16).abs());
                    0.5 * tops.fold(0.0, f64::max) / limit * (group.len() * n_sections) as f64
                })
                .sum();
            for r in 0..d_out {
                let scale = self.row_scale[r].to_f64();
                let mut sum = 0.0;
                for &block in &blocks {
                    for section in 0..n_sections {
                        sum += scale * project(block, section, self.code(r, block, section));
                    }
                }
                let mut size = scale.abs() * halves;
                for &(position, val) in &self.outliers {
                    if position as usize / d_in == r {
                        let term = val.to_f64() * x[position as usize % d_in];
                        sum += term;
                        size += 1e-5 * term.abs();
                    }
                }
                y.push((sum, 1.001 * size + 1e-5 * (sum.abs() + scale.abs())));
            }
        }
        y
    }
}

pub fn cases() -> impl Strategy<Value = Case> {
    let d_in = prop_oneof![1..20usize, 100..300usize];
    let n_tokens = prop_oneof![Just(1usize), 2..12usize];
    let group = prop_oneof![Just(2usize), Just(4), Just(8), Just(16)];
    let entry = prop_oneof![Just(TableEntry::I8), Just(TableEntry::I16)];
    (d_in, 1..200usize, 1..=16usize, group, entry, n_tokens, any::<u64>()).prop_map(
        |(d_in, d_out, n_sections, group_blocks, entry, n_tokens, seed)| {
            let shape = SectionShape { d_in, d_out, n_sections };
            let mut state = seed;
            let mut random = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as u32
            };
            let mut float = |size: f32| (random() as f32 / (1 << 23) as f32 - 1.0) * size;
            let dict = (0..n_sections * 128).map(|_| float(1.0)).collect();
            let x = (0..d_in * n_tokens).map(|_| float(3.0)).collect();
            let row_scale = (0..d_out).map(|_| f16::from_f32(float(2.0))).collect();
            let mut outliers = Vec::new();
            let mut position = 0;
            while position < (d_in * d_out) as i32 {
                outliers.push((position, f16::from_f32(float(5.0))));
                position += 1 + (float(1.0).abs() * 90.0) as i32;
            }
            let codes = (0..shape.code_bytes().unwrap()).map(|_| float(1e6) as i32 as u8).collect();
            Case { shape, group_blocks, entry, dict, codes, row_scale, outliers, n_tokens, x }
        },
    )
}

pub fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|v| v.to_bits()).collect()
}

/// A case in which all sums are as large as they can get: every entry is the largest.
pub fn extreme(sign: f32, entry: TableEntry, n_tokens: usize) -> Case {
    let shape = SectionShape { d_in: 8 * 33, d_out: 70, n_sections: 16 };
    Case {
        shape,
        group_blocks: 16,
        entry,
        dict: vec![0.125; 16 * 128],
        codes: (0..shape.code_bytes().unwrap()).map(|i| (i * 37) as u8).collect(),
        row_scale: vec![f16::ONE; 70],
        outliers: vec![],
        n_tokens,
        x: vec![sign; shape.d_in * n_tokens],
    }
}
