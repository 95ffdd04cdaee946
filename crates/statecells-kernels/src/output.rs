//! Where a thread writes its share of a result.

use std::marker::PhantomData;
use std::ops::Range;

use crate::view::check_extent;
use crate::{KernelError, Part, ROW_TILE};

/// The rows of a result `y`: [n_rows, n_tokens] that one thread of a product writes.
///
/// The rows of one thread are not contiguous in memory (every token has some of them), so the
/// threads cannot share `y` as slices. Each holds an `Output` instead, which hands out disjoint
/// pieces only.
#[derive(Debug)]
pub struct Output<'a> {
    data: *mut f32,
    n_rows: usize,
    /// Row that `data` begins with.
    first_row: usize,
    n_tokens: usize,
    stride: usize,
    part: Part,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: an `Output` is a `&mut` to the rows of its part; nobody else holds them (`split` makes each
// part once, the caller of `from_raw` promises it), so it may move to another thread as `&mut` may.
unsafe impl Send for Output<'_> {}

impl<'a> Output<'a> {
    /// All rows, for a product in one thread. Token `t` is `data[t * n_rows..][..n_rows]`.
    ///
    /// # Errors
    /// [`KernelError::Length`] if `data` is not `n_rows * n_tokens` long.
    pub fn whole(data: &'a mut [f32], n_rows: usize, n_tokens: usize) -> Result<Self, KernelError> {
        let mut parts = Self::split(data, n_rows, n_tokens, n_rows, 1)?;
        Ok(parts.remove(0))
    }

    /// One `Output` for each of `nth` threads. Token `t` is `data[t * stride..][..n_rows]`.
    ///
    /// # Errors
    /// [`KernelError`] if tokens overlap, `data` is too short, or `nth` is 0.
    pub fn split(
        data: &'a mut [f32],
        n_rows: usize,
        n_tokens: usize,
        stride: usize,
        nth: usize,
    ) -> Result<Vec<Self>, KernelError> {
        check_extent("y", data.len(), n_rows, n_tokens, stride)?;
        Part::new(0, nth)?;
        let data = data.as_mut_ptr();
        (0..nth)
            .map(|ith| {
                let part = Part::new(ith, nth)?;
                // SAFETY: the extent was checked just above, `data` is borrowed mutably for 'a, and
                // this is the only `Output` made for `part`.
                unsafe { Self::from_raw(data, n_rows, n_tokens, stride, part) }
            })
            .collect()
    }

    /// The rows of `part`, for a thread of a foreign pool.
    ///
    /// # Safety
    /// For 'a, `data[t * stride + r]` is valid for reads and writes for all `t < n_tokens` and
    /// `r < n_rows`; every thread that shares `data` names the same `n_rows`, `stride` and `nth`, no
    /// two at a time the same `ith`; and nobody else touches these elements.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] if tokens overlap.
    pub unsafe fn from_raw(
        data: *mut f32,
        n_rows: usize,
        n_tokens: usize,
        stride: usize,
        part: Part,
    ) -> Result<Self, KernelError> {
        check_extent("y", usize::MAX, n_rows, n_tokens, stride)?;
        Ok(Self { data, n_rows, first_row: 0, n_tokens, stride, part, borrowed: PhantomData })
    }

    /// Rows `rows`, whole tiles, of a result of `n_rows`, where there is memory for no others: those of one expert among the
    /// matrices of all. Token `t` is `data[t * rows.len()..][..rows.len()]`.
    ///
    /// # Errors
    /// [`KernelError`] if the rows are no tiles of the result or `data` is too short.
    pub fn window(
        data: &'a mut [f32],
        rows: Range<usize>,
        n_rows: usize,
        n_tokens: usize,
    ) -> Result<Self, KernelError> {
        check_extent("y", data.len(), rows.len(), n_tokens, rows.len())?;
        let (stride, part) = (rows.len(), Part::of_tiles(tiles_of(&rows, n_rows)?));
        // SAFETY: the extent was checked just above, and `data` is borrowed mutably for 'a.
        unsafe { Self::window_from_raw(data.as_mut_ptr(), rows, n_rows, n_tokens, stride, part) }
    }

    /// As [`Self::window`], but for the rows of `part` among `rows`, for a thread of a foreign pool.
    ///
    /// # Safety
    /// For 'a, `data[t * stride + r - rows.start]` is valid for reads and writes for all `t < n_tokens` and `r` in `rows`, and
    /// nobody else touches those of `part`.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] if the rows are no tiles of the result, `part` has others, or tokens overlap.
    pub unsafe fn window_from_raw(
        data: *mut f32,
        rows: Range<usize>,
        n_rows: usize,
        n_tokens: usize,
        stride: usize,
        part: Part,
    ) -> Result<Self, KernelError> {
        check_extent("y", usize::MAX, rows.len(), n_tokens, stride)?;
        tiles_of(&rows, n_rows)?;
        let own = part.rows(n_rows);
        if own.start < rows.start || own.end > rows.end {
            let reason = "a thread's rows are not among those of the window";
            return Err(KernelError::Dimension { what: "rows", value: own.start, reason });
        }
        let first_row = rows.start;
        Ok(Self { data, n_rows, first_row, n_tokens, stride, part, borrowed: PhantomData })
    }

    /// Number of rows of the whole result.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Number of tokens.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The rows this thread writes: whole tiles of [`crate::ROW_TILE`] rows, the last one perhaps cut.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.part.rows(self.n_rows)
    }

    /// The tiles of rows this thread writes.
    pub(crate) fn tiles(&self) -> Range<usize> {
        self.part.tiles(self.n_rows)
    }

    /// Rows `rows` of `token`.
    ///
    /// # Panics
    /// If the rows are not this thread's, or the token does not exist.
    pub fn token_rows(&mut self, token: usize, rows: Range<usize>) -> &mut [f32] {
        let own = self.rows();
        assert!(token < self.n_tokens, "token {token} of {}", self.n_tokens);
        assert!(rows.start >= own.start && rows.end <= own.end && rows.start <= rows.end);
        // SAFETY: the element range lies in this part's rows of an existing token (asserted), which
        // are valid, and ours alone, by the promise of `from_raw` or `window_from_raw`, which have checked that none of them
        // is before `first_row`. The offset cannot overflow: the extent was checked on construction.
        unsafe {
            let first = self.data.add(token * self.stride + (rows.start - self.first_row));
            std::slice::from_raw_parts_mut(first, rows.len())
        }
    }

    /// Checks that the result has the shape that the kernel will write.
    pub(crate) fn check_shape(&self, n_rows: usize, n_tokens: usize) -> Result<(), KernelError> {
        let reason = "the result has another number of rows or tokens than the product";
        if self.n_rows != n_rows {
            return Err(KernelError::Dimension { what: "n_rows", value: self.n_rows, reason });
        }
        if self.n_tokens != n_tokens {
            return Err(KernelError::Dimension { what: "n_tokens", value: self.n_tokens, reason });
        }
        Ok(())
    }
}

/// The tiles that `rows` are among `n_rows`.
fn tiles_of(rows: &Range<usize>, n_rows: usize) -> Result<Range<usize>, KernelError> {
    let ends = |row: usize| row.is_multiple_of(ROW_TILE) || row == n_rows;
    if rows.start > rows.end || rows.end > n_rows || !ends(rows.start) || !ends(rows.end) {
        let reason = "the window's rows are no tiles of the result";
        return Err(KernelError::Dimension { what: "rows", value: rows.start, reason });
    }
    Ok(rows.start.div_ceil(ROW_TILE)..rows.end.div_ceil(ROW_TILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_its_rows_alone() {
        let mut y = vec![0.0; 2 * 36];
        let mut window = Output::window(&mut y, 64..100, 100, 2).unwrap();
        assert_eq!((window.rows(), window.tiles(), window.n_rows()), (64..100, 2..4, 100));
        window.token_rows(1, 64..65)[0] = 1.0;
        window.token_rows(1, 99..100)[0] = 2.0;
        assert_eq!((y[36], y[71]), (1.0, 2.0));
        for (rows, n_tokens) in [(64..96, 3), (65..96, 1), (64..95, 1), (96..128, 1)] {
            assert!(Output::window(&mut y, rows, 100, n_tokens).is_err());
        }
        let y = y.as_mut_ptr();
        let of = |tiles| {
            // SAFETY: one token of 32 rows fits, and nothing is written.
            unsafe { Output::window_from_raw(y, 64..96, 128, 1, 32, Part::of_tiles(tiles)) }
        };
        assert!(of(2..3).is_ok() && of(1..3).is_err() && of(2..4).is_err());
    }

    #[test]
    fn rejects_a_short_buffer_and_overlapping_tokens() {
        let mut y = vec![0.0; 10];
        assert!(Output::whole(&mut y, 4, 3).is_err());
        assert!(Output::split(&mut y, 4, 2, 3, 1).is_err());
        assert!(Output::split(&mut y, 4, 2, 6, 0).is_err());
        assert!(Output::split(&mut y, 4, 2, usize::MAX, 1).is_err());
        assert!(Output::split(&mut y, 4, 2, 6, 2).is_ok());
    }

    #[test]
    #[should_panic(expected = "rows.start >= own.start")]
    fn a_thread_cannot_have_another_ones_rows() {
        let mut y = vec![0.0; 64];
        let mut parts = Output::split(&mut y, 64, 1, 64, 2).unwrap();
        parts[1].token_rows(0, 0..32);
    }
}
