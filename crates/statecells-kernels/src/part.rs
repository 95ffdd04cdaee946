//! How the threads of one product share its work.

use std::ops::Range;

use crate::KernelError;

/// Rows that always stay in one thread's hands: a tile of the `sections` layout, and 128 bytes of
/// every result column, so threads do not fight for cache lines.
pub const ROW_TILE: usize = format::sections::TILE_ROWS;

/// The share of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part(Share);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// Thread `ith` of `nth`, alike among each other.
    Even { ith: usize, nth: usize },
    /// What the caller has given it.
    Given { start: usize, end: usize },
}

impl Part {
    /// All the work in one thread.
    pub const WHOLE: Self = Self(Share::Even { ith: 0, nth: 1 });

    /// Thread `ith` of `nth`.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] unless `ith < nth`.
    pub fn new(ith: usize, nth: usize) -> Result<Self, KernelError> {
        if ith < nth {
            Ok(Self(Share::Even { ith, nth }))
        } else {
            Err(KernelError::Dimension { what: "ith", value: ith, reason: "must be below nth" })
        }
    }

    /// These tiles of [`ROW_TILE`] rows, where the caller shares the work out.
    #[must_use]
    pub fn of_tiles(tiles: Range<usize>) -> Self {
        Self(Share::Given { start: tiles.start, end: tiles.end.max(tiles.start) })
    }

    /// The part of `0..n` that falls to this thread: contiguous; those of a team are disjoint and together all of `0..n`.
    pub(crate) fn of(self, n: usize) -> Range<usize> {
        match self.0 {
            Share::Given { start, end } => start.min(n)..end.min(n),
            Share::Even { ith, nth } => {
                // Sizes differ by at most one, and no product `n * ith` can overflow.
                let (each, more) = (n / nth, n % nth);
                let begin = each * ith + more.min(ith);
                begin..begin + each + usize::from(ith < more)
            }
        }
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
    fn given_tiles_stay_and_end_where_the_rows_do() {
        let rows = |tiles| Part::of_tiles(tiles).rows(100);
        assert_eq!((rows(0..2), rows(3..4), rows(3..9)), (0..64, 96..100, 96..100));
        assert!(rows(7..9).is_empty());
    }

    #[test]
    fn rejects_a_thread_outside_the_team() {
        assert!(Part::new(2, 2).is_err());
        assert!(Part::new(0, 0).is_err());
    }
}
