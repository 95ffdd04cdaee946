//! The inner loops of the fast gather: plain Rust that [`super::simd`] compiles once per instruction
//! set. No gather instructions: on the processors measured, four rows of scalar loads side by side
//! (two table reads per cycle) beat `vgatherdps` by 1.7 times, and by far more where a microcode fix
//! has slowed it down.

#![allow(clippy::needless_range_loop)] // one index runs over several arrays

use super::GatherMatrix;
use crate::common::finite_f16;

/// Slots whose factors are unpacked at a time, on the stack.
const CHUNK: usize = 32;
/// Rows computed side by side, so that the additions of one row hide behind those of the others.
const ROWS: usize = 4;

/// Factor of row `r`.
#[inline(always)]
fn scale(matrix: &GatherMatrix<'_>, r: usize) -> f32 {
    match matrix.row_scale {
        Some(scale) => finite_f16(scale[r]),
        None => 1.0,
    }
}

/// One token: rows `first..first + out.len()`.
///
/// `table[n_atoms + code]` is the signed entry for `code`, so the sign costs nothing.
///
/// # Safety
/// `table` holds `2 * n_atoms + 1` floats and the rows exist. The range of the codes and the
/// lengths of the buffers are invariants of [`GatherMatrix`].
#[inline(always)]
pub(super) unsafe fn one_token<const VALS: bool>(
    matrix: &GatherMatrix<'_>,
    table: &[f32],
    token_scale: f32,
    first: usize,
    out: &mut [f32],
) {
    let k = matrix.shape.k;
    // SAFETY: the table has an entry for every code of the matrix, -n_atoms..=n_atoms.
    let centre = unsafe { table.as_ptr().add(matrix.shape.n_atoms) };
    let mut blocks = out.chunks_exact_mut(ROWS);
    let mut r = first;
    for block in &mut blocks {
        // SAFETY: rows r..r + ROWS exist, so codes and vals hold k slots for each from r * k on.
        let sums = unsafe { row_block::<ROWS, VALS>(matrix, centre, r * k) };
        for (j, out) in block.iter_mut().enumerate() {
            *out = sums[j] * scale(matrix, r + j) * token_scale;
        }
        r += ROWS;
    }
    for out in blocks.into_remainder() {
        // SAFETY: row r exists.
        let [sum] = unsafe { row_block::<1, VALS>(matrix, centre, r * k) };
        *out = sum * scale(matrix, r) * token_scale;
        r += 1;
    }
}

/// Sums of `R` rows whose slots begin at `begin`.
///
/// # Safety
/// `codes` and, if `VALS`, `vals` hold `R * k` elements from `begin` on; `centre` may be read at the
/// offset of every code.
#[inline(always)]
unsafe fn row_block<const R: usize, const VALS: bool>(
    matrix: &GatherMatrix<'_>,
    centre: *const f32,
    begin: usize,
) -> [f32; R] {
    let k = matrix.shape.k;
    let mut sums = [0.0f32; R];
    let mut val = [[1.0f32; CHUNK]; R];
    let mut done = 0;
    while done < k {
        let len = CHUNK.min(k - done);
        // SAFETY: j * k + done + len <= R * k, which the caller promises to exist; the table reads
        // are his promise too.
        unsafe {
            let codes = matrix.codes.as_ptr().add(begin + done);
            if VALS {
                let vals = matrix.vals.unwrap_unchecked().as_ptr().add(begin + done);
                for j in 0..R {
                    let vals = std::slice::from_raw_parts(vals.add(j * k), len);
                    for (val, &v) in val[j].iter_mut().zip(vals) {
                        *val = finite_f16(v);
                    }
                }
            }
            let mut i = 0;
            while i + 4 <= len {
                for j in 0..R {
                    // Four codes per load: the load ports are what limits this loop.
                    let four = codes.add(j * k + i).cast::<u64>().read_unaligned().to_le();
                    for s in 0..4 {
                        let entry = *centre.offset(isize::from((four >> (16 * s)) as i16));
                        sums[j] = add::<VALS>(sums[j], val[j].get_unchecked(i + s), entry);
                    }
                }
                i += 4;
            }
            while i < len {
                for j in 0..R {
                    let entry = *centre.offset(isize::from(*codes.add(j * k + i)));
                    sums[j] = add::<VALS>(sums[j], val[j].get_unchecked(i), entry);
                }
                i += 1;
            }
        }
        done += len;
    }
    sums
}

/// `sum + val * entry`, rounded once.
#[inline(always)]
fn add<const VALS: bool>(sum: f32, val: &f32, entry: f32) -> f32 {
    if VALS { val.mul_add(entry, sum) } else { sum + entry }
}

/// `T` tokens at once: row `r` of all of them in `out`, so that each code is read once and adds a
/// contiguous vector.
///
/// `table[atom + 1]` holds the projection on `atom` for every token; `table[0]` is zero.
///
/// # Safety
/// `table` holds `n_atoms + 1` entries and rows `first..first + out.len()` exist.
#[inline(always)]
pub(super) unsafe fn tokens<const T: usize, const VALS: bool>(
    matrix: &GatherMatrix<'_>,
    table: &[[f32; T]],
    first: usize,
    out: &mut [[f32; T]],
) {
    let k = matrix.shape.k;
    let (mut index, mut factor) = ([[0u32; CHUNK]; 2], [[0.0f32; CHUNK]; 2]);
    for (pair, out) in out.chunks_mut(2).enumerate() {
        let n = out.len();
        let mut sums = [[0.0f32; T]; 2];
        for begin in (0..k).step_by(CHUNK) {
            let len = CHUNK.min(k - begin);
            for j in 0..n {
                let slots = (first + 2 * pair + j) * k + begin;
                // SAFETY: the row exists, so its slots begin..begin + len do.
                unsafe { unpack::<VALS>(matrix, slots, len, &mut index[j], &mut factor[j]) };
            }
            for i in 0..len {
                for j in 0..2 {
                    // The second row of a lone last one repeats stale entries and is thrown away.
                    // SAFETY: an index is |code| of this matrix, at most n_atoms, or 0 from the start.
                    let entry = unsafe { table.get_unchecked(index[j][i] as usize) };
                    for t in 0..T {
                        sums[j][t] = factor[j][i].mul_add(entry[t], sums[j][t]);
                    }
                }
            }
        }
        for (j, out) in out.iter_mut().enumerate() {
            let scale = scale(matrix, first + 2 * pair + j);
            for t in 0..T {
                out[t] = sums[j][t] * scale;
            }
        }
    }
}

/// Index and signed factor of `len` slots from `begin` on.
///
/// # Safety
/// These slots exist and `len` is at most [`CHUNK`].
#[inline(always)]
unsafe fn unpack<const VALS: bool>(
    matrix: &GatherMatrix<'_>,
    begin: usize,
    len: usize,
    index: &mut [u32; CHUNK],
    factor: &mut [f32; CHUNK],
) {
    // SAFETY: the caller's promise.
    let codes = unsafe { matrix.codes.get_unchecked(begin..begin + len) };
    for (index, &code) in index.iter_mut().zip(codes) {
        *index = u32::from(code.unsigned_abs());
    }
    for (factor, &code) in factor.iter_mut().zip(codes) {
        // The sign bit of the code on 1.0.
        *factor = f32::from_bits(1.0f32.to_bits() | (code as u16 as u32 & 0x8000) << 16);
    }
    if VALS {
        // SAFETY: vals, present if VALS, are as long as the codes.
        let vals = unsafe { matrix.vals.unwrap_unchecked().get_unchecked(begin..begin + len) };
        for (factor, &val) in factor.iter_mut().zip(vals) {
            *factor *= finite_f16(val);
        }
    }
}
