//! How the threads of one product share its work.

use std::ops::Range;

use crate::KernelError;

/// Rows that always stay in one thread's hands: a tile of the `sections` layout, and 128 bytes of
/// every result column, so threads do not fight for cache lines.
pub const ROW_TILE: usize = format::sections::TILE_ROWS;

/// Thread `ith` of `nth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    ith: usize,
    nth: usize,
}

impl Part {
    /// All the work in one thread.
    pub const WHOLE: Self = Self { ith: 0, nth: 1 };

    /// Thread `ith` of `nth`.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] unless `ith < nth`.
    pub fn new(ith: usize, nth: usize) -> Result<Self, KernelError> {
        if ith < nth {
            Ok(Self { ith, nth })
        } else {
            Err(KernelError::Dimension { what: "ith", value: ith, reason: "must be below nth" })
        }
    }

    /// The part of `0..n` that falls to this thread: contiguous, disjoint and together all of `0..n`.
    pub(crate) fn of(self, n: usize) -> Range<usize> {
        // Sizes differ by at most one, and no product `n * ith` can overflow.
        let (each, more) = (n / self.nth, n % self.nth);
        let begin = each * self.ith + more.min(self.ith);
        begin..begin + each + usize::from(self.ith < more)
    }

    /// The tiles of [`ROW_TILE`] rows that fall to this thread; the last tile may be cut.
    pub(crate) fn tiles(self, n_rows: usize) -> Range<usize> {
        self.of(n_rows.div_ceil(ROW_TILE))
    }

    /// The rows of these tiles.
    #[must_use]
    pub fn rows(self, n_rows: usize) -> Range<usize> {
        let tiles = self.tiles(n_rows);
        (tiles.start * ROW_TILE).min(n_rows)..(tiles.end * ROW_TILE).min(n_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once_and_in_order() {
        for n in [0, 1, 31, 32, 33, 64, 1000] {
            for nth in 1..9 {
                let mut next = 0;
                for ith in 0..nth {
                    let rows = Part::new(ith, nth).unwrap().rows(n);
                    assert!(rows.start == next || rows.is_empty(), "{n} {ith}/{nth}");
                    assert!(rows.is_empty() || rows.start.is_multiple_of(ROW_TILE));
                    next = next.max(rows.end);
                }
                assert_eq!(next, n);
            }
        }
    }

    #[test]
    fn rejects_a_thread_outside_the_team() {
        assert!(Part::new(2, 2).is_err());
        assert!(Part::new(0, 0).is_err());
    }
}
