//! Tokens side by side, and back: what the kernels need that take many tokens at a time.
//!
//! Values are only moved (and added to a result one by one), so all forms give the same bits.

use std::ops::Range;

use crate::isa::Level;
use crate::{Columns, Output};

/// Side of the squares that are turned over in registers.
#[cfg(target_arch = "x86_64")]
const SIDE: usize = 8;

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// It is the result.
    Set,
    /// It is added to the result.
    Add,
}

impl Store {
    /// Stores one value.
    #[inline(always)]
    pub(crate) fn store(self, to: &mut f32, sum: f32) {
        *to = if self == Self::Add { *to + sum } else { sum };
    }
}

/// Fills `table[i][j]` with value `i` of the `j`-th of up to `T` tokens, and zero for missing tokens.
pub(crate) fn interleave<const T: usize>(
    level: Level,
    x: Columns<'_>,
    tokens: Range<usize>,
    table: &mut [[f32; T]],
) {
    let done = match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 if tokens.len() == T && T.is_multiple_of(SIDE) => {
            // SAFETY: a `Level` stands for instructions this machine has.
            unsafe { avx2::interleave(x, tokens.start, table) }
        }
        _ => 0,
    };
    if tokens.len() < T {
        table.fill([0.0; T]);
    }
    // A few values at a time: reading T tokens in parallel all the way would let them evict each
    // other, since they usually lie a power of two apart.
    const VALUES: usize = 16;
    for (block, table) in table[done..].chunks_mut(VALUES).enumerate() {
        for (j, t) in tokens.clone().enumerate() {
            let x = &x.token(t)[done + block * VALUES..][..table.len()];
            for (entry, &x) in table.iter_mut().zip(x) {
                entry[j] = x;
            }
        }
    }
}

/// Stores `sums[i][j]` as row `rows.start + i` of token `tokens.start + j`.
///
/// # Panics
/// If `sums` are not as many as rows, or `y` lacks one of the rows or tokens.
pub(crate) fn spread<const T: usize>(
    level: Level,
    store: Store,
    sums: &[[f32; T]],
    (rows, tokens): (Range<usize>, Range<usize>),
    y: &mut Output<'_>,
) {
    assert_eq!(sums.len(), rows.len());
    let done = match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 if tokens.len() == T && T.is_multiple_of(SIDE) => {
            // SAFETY: a `Level` stands for instructions this machine has.
            unsafe { avx2::spread(store, sums, (rows.start, tokens.start), y) }
        }
        _ => 0,
    };
    for (j, t) in tokens.enumerate() {
        let out = y.token_rows(t, rows.start + done..rows.end);
        for (out, sum) in out.iter_mut().zip(&sums[done..]) {
            store.store(out, sum[j]);
        }
    }
}

/// Squares of 8 x 8 values, turned over in registers.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{SIDE, Store};
    use crate::{Columns, Output};

    /// As [`super::interleave`] for `T` tokens, a multiple of 8, from `first` on; returns for how many values, whole squares of them.
    #[target_feature(enable = "avx2")]
    pub(super) fn interleave<const T: usize>(
        x: Columns<'_>,
        first: usize,
        table: &mut [[f32; T]],
    ) -> usize {
        let (blocks, _) = table.as_chunks_mut::<SIDE>();
        for (block, table) in blocks.iter_mut().enumerate() {
            for column in (0..T).step_by(SIDE) {
                let mut square = [_mm256_setzero_ps(); SIDE];
                for (j, row) in square.iter_mut().enumerate() {
                    let values = &x.token(first + column + j)[block * SIDE..][..SIDE];
                    // SAFETY: there are 8 values.
                    *row = unsafe { _mm256_loadu_ps(values.as_ptr()) };
                }
                for (entry, row) in table.iter_mut().zip(turned(square)) {
                    let entry = &mut entry[column..column + SIDE];
                    // SAFETY: there is room for 8 values.
                    unsafe { _mm256_storeu_ps(entry.as_mut_ptr(), row) };
                }
            }
        }
        blocks.len() * SIDE
    }

    /// As [`super::spread`] for `T` tokens, a multiple of 8; returns for how many rows, whole squares of them.
    #[target_feature(enable = "avx2")]
    pub(super) fn spread<const T: usize>(
        store: Store,
        sums: &[[f32; T]],
        (first_row, first_token): (usize, usize),
        y: &mut Output<'_>,
    ) -> usize {
        let (blocks, _) = sums.as_chunks::<SIDE>();
        for (block, sums) in blocks.iter().enumerate() {
            let row = first_row + block * SIDE;
            for column in (0..T).step_by(SIDE) {
                let mut square = [_mm256_setzero_ps(); SIDE];
                for (to, from) in square.iter_mut().zip(sums) {
                    let values = &from[column..column + SIDE];
                    // SAFETY: there are 8 values.
                    *to = unsafe { _mm256_loadu_ps(values.as_ptr()) };
                }
                for (j, values) in turned(square).into_iter().enumerate() {
                    let out = y.token_rows(first_token + column + j, row..row + SIDE);
                    // SAFETY: `out` has 8 values.
                    unsafe {
                        let sum = match store {
                            Store::Set => values,
                            Store::Add => _mm256_add_ps(_mm256_loadu_ps(out.as_ptr()), values),
                        };
                        _mm256_storeu_ps(out.as_mut_ptr(), sum);
                    }
                }
            }
        }
        blocks.len() * SIDE
    }

    /// Rows become columns.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn turned(m: [__m256; SIDE]) -> [__m256; SIDE] {
        // pairs of rows, then of pairs, then of halves
        let ab = [_mm256_unpacklo_ps(m[0], m[1]), _mm256_unpackhi_ps(m[0], m[1])];
        let cd = [_mm256_unpacklo_ps(m[2], m[3]), _mm256_unpackhi_ps(m[2], m[3])];
        let ef = [_mm256_unpacklo_ps(m[4], m[5]), _mm256_unpackhi_ps(m[4], m[5])];
        let gh = [_mm256_unpacklo_ps(m[6], m[7]), _mm256_unpackhi_ps(m[6], m[7])];
        let low = fours(ab, cd);
        let high = fours(ef, gh);
        let halves = |i: usize| _mm256_permute2f128_ps::<0x20>(low[i], high[i]);
        let others = |i: usize| _mm256_permute2f128_ps::<0x31>(low[i], high[i]);
        [halves(0), halves(1), halves(2), halves(3), others(0), others(1), others(2), others(3)]
    }

    /// From the low and high pairs of rows a, b and of rows c, d: columns 0 to 3 of all four in the lower halves,
    /// 4 to 7 in the upper ones.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn fours(ab: [__m256; 2], cd: [__m256; 2]) -> [__m256; 4] {
        [
            _mm256_shuffle_ps::<0x44>(ab[0], cd[0]),
            _mm256_shuffle_ps::<0xee>(ab[0], cd[0]),
            _mm256_shuffle_ps::<0x44>(ab[1], cd[1]),
            _mm256_shuffle_ps::<0xee>(ab[1], cd[1]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    /// Every value says where it is from.
    fn mark(token: usize, value: usize) -> f32 {
        (token * 1000 + value) as f32
    }

    fn check<const T: usize>(d: usize, n_tokens: usize) {
        let n_all = n_tokens + 3;
        let x: Vec<f32> = (0..n_all).flat_map(|t| (0..d).map(move |i| mark(t, i))).collect();
        let x = Columns::new(&x, d, n_all, d).unwrap();
        for isa in Isa::available() {
            let level = isa.level();
            let mut table = vec![[f32::NAN; T]; d];
            interleave(level, x, 2..2 + n_tokens, &mut table);
            for (i, entry) in table.iter().enumerate() {
                for (j, &v) in entry.iter().enumerate() {
                    let expected = if j < n_tokens { mark(2 + j, i) } else { 0.0 };
                    assert_eq!(v, expected, "{isa:?} {d} {n_tokens}: {i} {j}");
                }
            }
            for store in [Store::Set, Store::Add] {
                let mut out = vec![0.5f32; d * n_all];
                let mut y = Output::whole(&mut out, d, n_all).unwrap();
                spread(level, store, &table, (0..d, 2..2 + n_tokens), &mut y);
                for (at, &v) in out.iter().enumerate() {
                    let (t, i) = (at / d, at % d);
                    let expected = match (2..2 + n_tokens).contains(&t) {
                        false => 0.5,
                        true => mark(t, i) + if store == Store::Add { 0.5 } else { 0.0 },
                    };
                    assert_eq!(v, expected, "{isa:?} {store:?} {d} {n_tokens}: {t} {i}");
                }
            }
        }
    }

    #[test]
    fn every_value_gets_to_its_place_and_back() {
        for d in [1, 7, 8, 9, 16, 29, 64] {
            for n_tokens in [1, 5, 8] {
                check::<8>(d, n_tokens);
            }
            for n_tokens in [1, 8, 15, 16] {
                check::<16>(d, n_tokens);
            }
        }
    }
}
