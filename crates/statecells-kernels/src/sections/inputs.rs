//! Inputs rounded to bytes, for the products that decode.
//!
//! With `v = step * x`, by the step of the weights at an input's position, `rounded = round(v / scale)`. One
//! scale serves a span of inputs of a token: the largest magnitude of its `v` over 127. If the
//! largest is more than twice the next one, it is kept as it is (and rounds to 0), and the scale follows
//! from the next one: a massive activation costs its neighbours nothing. A scale is 0 if all is below
//! 2^-100, and NaN if an input is not finite, which makes the token's results NaN as the dense product
//! would.

use super::bundles::{Bundle, BundleOutput, Grid};
use super::decoder::Decoder;
use super::shape::{BLOCK, SectionShape};
use crate::error::check_len;
use crate::isa::Level;
use crate::{Columns, Isa, KernelError, Part};

/// Inputs that share a scale: as many as share one in lookup tables of 8 blocks per group. Longer spans are
/// faster by some per cent, but large inputs then cost more precision than they do there (see the tests).
pub(crate) const SPAN: usize = 64;
/// Inputs that lie side by side: what the dot products of all instruction sets take at a time.
pub(crate) const WORD: usize = 4;
/// Words of a span.
pub(crate) const SPAN_WORDS: usize = SPAN / WORD;
/// Most tokens that a product takes together: with two vectors of rows their sums and totals fill the 32 registers that
/// AVX-512 has.
pub(crate) const TOKENS: usize = 6;
/// Largest magnitude of a rounded input.
const LIMIT: f32 = 127.0;
/// Inputs below 2^-100 count as zero: their inverse scale could overflow.
const TINY: f32 = f32::from_bits((127 - 100) << 23);
/// Added to a number below 2^22 in magnitude it leaves the number, rounded to an integer with ties to
/// even, in the last bits.
const ROUND: f32 = 12_582_912.0;

/// What goes with the rounded inputs of a span.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Scale {
    /// What a rounded input of 1 stands for, the step of the weights included.
    pub scale: f32,
    /// Sum of the rounded inputs.
    pub sum: i32,
    /// The input that was not rounded, 0 if all were.
    pub kept: f32,
    /// Its place in the span.
    pub place: u32,
}

/// Bytes of a [`Scale`] in memory.
const SCALE_BYTES: usize = 16;

impl Scale {
    fn to_bytes(self) -> [u8; SCALE_BYTES] {
        let parts = [self.scale.to_bits(), self.sum as u32, self.kept.to_bits(), self.place];
        let mut bytes = [0; SCALE_BYTES];
        bytes.as_chunks_mut().0.iter_mut().zip(parts).for_each(|(b, p)| *b = p.to_ne_bytes());
        bytes
    }

    /// Whatever the bytes are, the place is one of the span.
    fn from_bytes(bytes: &[u8; SCALE_BYTES]) -> Self {
        let part = |i: usize| u32::from_ne_bytes(bytes.as_chunks().0[i]);
        let (scale, kept) = (f32::from_bits(part(0)), f32::from_bits(part(2)));
        Self { scale, sum: part(1) as i32, kept, place: part(3) % SPAN as u32 }
    }
}

/// Where rounded inputs and their scales lie. The layout is private to this crate; callers need its
/// size, which is never more than that of lookup tables for the same matrix.
///
/// A token is a column of four inputs per unit; beside the units of a span lies its scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputLayout {
    pub(crate) d_in: usize,
    pub(crate) grid: Grid,
}

impl InputLayout {
    /// Layout of the inputs of matrices of `shape`.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] if a dimension is 0 or too large.
    pub fn new(shape: SectionShape) -> Result<Self, KernelError> {
        shape.tile_bytes()?;
        let n_words = shape.n_blocks() * BLOCK / WORD;
        let grid = Grid::new(TOKENS, (n_words, WORD), SPAN_WORDS, SCALE_BYTES);
        Ok(Self { d_in: shape.d_in, grid })
    }

    /// Bytes of one token's inputs; those of several tokens are interleaved, not token after token.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        self.grid.column_bytes
    }
}

/// The rounded inputs of some tokens, of which one thread writes its share.
#[derive(Debug)]
pub struct InputOutput<'a> {
    layout: InputLayout,
    n_tokens: usize,
    columns: BundleOutput<'a>,
}

impl<'a> InputOutput<'a> {
    /// One `InputOutput` for each of `nth` threads.
    ///
    /// # Errors
    /// [`KernelError`] if `data` is not exactly `bytes_per_token * n_tokens` long or `nth` is 0.
    pub fn split(
        data: &'a mut [u8],
        layout: &InputLayout,
        n_tokens: usize,
        nth: usize,
    ) -> Result<Vec<Self>, KernelError> {
        let n_columns = layout.grid.check(Some(n_tokens), n_tokens)?;
        let parts = BundleOutput::split("inputs", data, layout.grid, n_columns, nth)?.into_iter();
        Ok(parts.map(|columns| Self { layout: *layout, n_tokens, columns }).collect())
    }

    /// The share of `part`, for a thread of a foreign pool.
    ///
    /// # Safety
    /// For 'a, `layout.bytes_per_token() * n_tokens` bytes at `data` are valid for reads and writes;
    /// every thread that shares them names the same `layout`, `n_tokens` and `nth`, no two at a time
    /// the same `ith`; and nobody else touches them.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] if the inputs of that many tokens do not fit into memory.
    pub unsafe fn from_raw(
        data: *mut u8,
        layout: &InputLayout,
        n_tokens: usize,
        part: Part,
    ) -> Result<Self, KernelError> {
        let n_columns = layout.grid.check(Some(n_tokens), n_tokens)?;
        // SAFETY: the caller's promise; the columns were just checked to fit.
        let columns = unsafe { BundleOutput::from_raw(data, layout.grid, n_columns, part) };
        Ok(Self { layout: *layout, n_tokens, columns })
    }
}

impl Decoder {
    /// Rounds this thread's share of the inputs. All forms write the same bytes.
    ///
    /// # Shapes
    /// `x`: [d_in, n_tokens]
    ///
    /// # Errors
    /// [`KernelError`] if `x` or `out` are not of the layout's shape; `out` is then untouched.
    pub fn round_inputs(
        &self,
        isa: Isa,
        x: Columns<'_>,
        out: &mut InputOutput<'_>,
    ) -> Result<(), KernelError> {
        if x.n() != out.layout.d_in {
            let reason = "the input has another length than the matrix has inputs";
            return Err(KernelError::Dimension { what: "d_in", value: x.n(), reason });
        }
        if out.n_tokens != x.n_tokens() {
            let reason = "the rounded inputs were laid out for another number of tokens";
            return Err(KernelError::Dimension { what: "n_tokens", value: out.n_tokens, reason });
        }
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Level` stands for instructions this machine has.
            Level::Avx2 | Level::Avx512 => unsafe { round_avx2(self.steps(), x, out) },
            _ => round(self.steps(), x, out),
        }
        Ok(())
    }
}

/// # Safety
/// The machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn round_avx2(steps: &[f32; BLOCK], x: Columns<'_>, out: &mut InputOutput<'_>) {
    round(steps, x, out);
}

/// Written so that compilers find the vectors in it.
#[inline(always)]
fn round(steps: &[f32; BLOCK], x: Columns<'_>, out: &mut InputOutput<'_>) {
    let grid = out.layout.grid;
    for index in out.columns.bundles() {
        let stretch = out.columns.stretch(index);
        let Bundle { first, width } = stretch.bundle;
        let scales = stretch.scales.chunks_exact_mut(SCALE_BYTES * width);
        let spans = stretch.units.chunks_mut(SPAN * width);
        for ((g, scales), words) in stretch.groups.clone().zip(scales).zip(spans) {
            let inputs = grid.units(g).start * WORD..grid.units(g).end * WORD;
            for column in 0..width {
                let token = x.token(first + column);
                let mut span = [0.0; SPAN];
                let token = &token[inputs.start..token.len().min(inputs.end)];
                span[..token.len()].copy_from_slice(token);
                let (rounded, scale) = round_span(steps, &mut span);
                let words = words.chunks_exact_mut(WORD * width);
                for (to, from) in words.zip(rounded.as_chunks::<WORD>().0) {
                    to[column * WORD..][..WORD].copy_from_slice(&from.map(|q| q as u8));
                }
                scales[SCALE_BYTES * column..][..SCALE_BYTES].copy_from_slice(&scale.to_bytes());
            }
        }
    }
}

/// Rounds the inputs of a span.
#[inline(always)]
fn round_span(steps: &[f32; BLOCK], span: &mut [f32; SPAN]) -> ([i8; SPAN], Scale) {
    for block in span.as_chunks_mut::<BLOCK>().0 {
        block.iter_mut().zip(steps).for_each(|(v, step)| *v *= step);
    }
    let (top, place, next) = largest(span);
    let mut scale = Scale::default();
    let mut rounded = [0; SPAN];
    if !top.is_finite() {
        return (rounded, Scale { scale: f32::NAN, ..scale });
    }
    let mut limit = top;
    if top >= TINY && top > 2.0 * next {
        (scale.kept, scale.place, limit) = (span[place], place as u32, next);
        span[place] = 0.0;
    }
    if limit >= TINY {
        scale.scale = limit / LIMIT;
        let factor = LIMIT / limit;
        for (to, &v) in rounded.iter_mut().zip(&*span) {
            *to = (v * factor + ROUND).to_bits() as i8;
        }
        scale.sum = rounded.iter().map(|&q| i32::from(q)).sum();
    }
    (rounded, scale)
}

/// The largest magnitude of a span, compared as bits (NaN above infinity above all numbers), its place, and
/// the next one.
#[inline(always)]
fn largest(span: &[f32; SPAN]) -> (f32, usize, f32) {
    const LANES: usize = 16;
    let magnitude = |v: f32| v.to_bits() & 0x7fff_ffff;
    let mut tops = [0; LANES];
    for row in span.as_chunks::<LANES>().0 {
        for (top, &v) in tops.iter_mut().zip(row) {
            *top = magnitude(v).max(*top);
        }
    }
    let top = tops.iter().fold(0, |top, &v| v.max(top));
    let place = span.iter().position(|&v| magnitude(v) == top).unwrap_or(0);
    let lane = place % LANES;
    tops[lane] = 0;
    // What else is in the lane of the largest.
    for at in (lane..SPAN).step_by(LANES).filter(|&at| at != place) {
        tops[lane] = magnitude(span[at]).max(tops[lane]);
    }
    let next = tops.iter().fold(0, |top, &v| v.max(top));
    (f32::from_bits(top), place, f32::from_bits(next))
}

/// The rounded inputs of some tokens.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    data: &'a [u8],
    layout: InputLayout,
    n_tokens: usize,
}

impl<'a> Inputs<'a> {
    /// The inputs that [`Decoder::round_inputs`] wrote to `data` for `n_tokens` tokens.
    ///
    /// The contents are not checked: other bytes give other sums, nothing worse.
    ///
    /// # Errors
    /// [`KernelError`] if `data` is not exactly `bytes_per_token * n_tokens` long.
    pub fn new(data: &'a [u8], layout: &InputLayout, n_tokens: usize) -> Result<Self, KernelError> {
        layout.grid.check(Some(n_tokens), n_tokens)?;
        check_len("inputs", layout.bytes_per_token() * n_tokens, data.len())?;
        Ok(Self { data, layout: *layout, n_tokens })
    }

    /// Number of tokens.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    pub(crate) fn layout(&self) -> &InputLayout {
        &self.layout
    }

    /// A bundle's inputs from the first word of span `g` on: [four inputs, token, word].
    pub(crate) fn words(&self, bundle: Bundle, g: usize) -> &'a [u8] {
        let grid = &self.layout.grid;
        let units = grid.units(g);
        &self.data[grid.units_at(bundle, units.start)..grid.units_at(bundle, units.end)]
    }

    /// What goes with the inputs of a column in span `g`.
    pub(crate) fn scale(&self, bundle: Bundle, g: usize, column: usize) -> Scale {
        let at = self.layout.grid.scales_at(bundle, g) + column * SCALE_BYTES;
        Scale::from_bytes(self.data[at..].first_chunk().expect("the grid has room for a scale"))
    }
}
