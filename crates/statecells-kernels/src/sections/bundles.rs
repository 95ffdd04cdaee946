//! What a product prepares for some tokens (lookup tables, rounded inputs): where it lies, and how
//! threads share the writing of it.

use std::marker::PhantomData;
use std::ops::Range;

use crate::error::check_len;
use crate::{KernelError, Part};

/// Where the entries and scales of columns lie.
///
/// A column is a row of *units* of some bytes each; a *group* of units has one scale. `width` columns
/// at a time form a *bundle* (the last one may be narrower): unit by unit, those of all its columns
/// lie side by side, so that a kernel which takes the columns of a bundle together walks one stream.
/// The scales of the bundle, [column, group], follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Most columns of a bundle.
    pub width: usize,
    /// Bytes of a unit of one column.
    pub unit_bytes: usize,
    pub n_units: usize,
    /// Units in each group but perhaps the last.
    pub group_units: usize,
    pub n_groups: usize,
    /// Bytes of what one column has per group beside the units.
    pub scale_bytes: usize,
    /// Bytes of one column with its scales.
    pub column_bytes: usize,
}

/// Some columns that lie side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bundle {
    /// First column.
    pub first: usize,
    /// Columns: 1..=width of the grid.
    pub width: usize,
}

impl Grid {
    /// `n_units` units of `unit_bytes` per column; in bundles of up to `width` columns.
    pub fn new(
        width: usize,
        (n_units, unit_bytes): (usize, usize),
        group_units: usize,
        scale_bytes: usize,
    ) -> Self {
        let n_groups = n_units.div_ceil(group_units);
        let bytes = n_units * unit_bytes + n_groups * scale_bytes;
        let column_bytes = bytes.next_multiple_of(unit_bytes);
        Self { width, unit_bytes, n_units, group_units, n_groups, scale_bytes, column_bytes }
    }

    /// The bundles of `n_columns` columns.
    pub fn bundle(&self, n_columns: usize, index: usize) -> Bundle {
        let first = index * self.width;
        Bundle { first, width: self.width.min(n_columns - first) }
    }

    pub fn n_bundles(&self, n_columns: usize) -> usize {
        n_columns.div_ceil(self.width)
    }

    /// The units of group `g`.
    pub fn units(&self, g: usize) -> Range<usize> {
        g * self.group_units..self.n_units.min((g + 1) * self.group_units)
    }

    /// First byte of a bundle's first column for `unit`. The next column follows, and after the last
    /// one the next unit.
    pub fn units_at(&self, bundle: Bundle, unit: usize) -> usize {
        bundle.first * self.column_bytes + unit * self.unit_bytes * bundle.width
    }

    /// First byte of the scales of a bundle's columns for group `g`.
    pub fn scales_at(&self, bundle: Bundle, g: usize) -> usize {
        self.units_at(bundle, self.n_units) + g * bundle.width * self.scale_bytes
    }

    /// Checks that `n_columns` columns fit into memory.
    pub fn check(&self, n_columns: Option<usize>, n_tokens: usize) -> Result<usize, KernelError> {
        let reason = "too many tokens";
        let fits =
            |n: usize| n.checked_mul(self.column_bytes).is_some_and(|n| n <= isize::MAX as usize);
        let columns = n_columns.filter(|&n| fits(n));
        columns.ok_or(KernelError::Dimension { what: "n_tokens", value: n_tokens, reason })
    }
}

/// The memory of some columns, of which one thread writes its share.
#[derive(Debug)]
pub(crate) struct BundleOutput<'a> {
    data: *mut u8,
    grid: Grid,
    n_columns: usize,
    part: Part,
    borrowed: PhantomData<&'a mut [u8]>,
}

// SAFETY: as for `Output`: nobody else holds the pieces of this part.
unsafe impl Send for BundleOutput<'_> {}

impl<'a> BundleOutput<'a> {
    /// One for each of `nth` threads.
    ///
    /// # Errors
    /// [`KernelError`] if `data` has not exactly the bytes of the columns or `nth` is 0.
    pub fn split(
        what: &'static str,
        data: &'a mut [u8],
        grid: Grid,
        n_columns: usize,
        nth: usize,
    ) -> Result<Vec<Self>, KernelError> {
        check_len(what, grid.column_bytes * n_columns, data.len())?;
        Part::new(0, nth)?;
        let data = data.as_mut_ptr();
        (0..nth)
            .map(|ith| {
                let part = Part::new(ith, nth)?;
                // SAFETY: the length was checked just above, `data` is borrowed mutably for 'a, and
                // this is the only one made for `part`.
                Ok(unsafe { Self::from_raw(data, grid, n_columns, part) })
            })
            .collect()
    }

    /// The share of `part`, for a thread of a foreign pool.
    ///
    /// # Safety
    /// For 'a, `grid.column_bytes * n_columns` bytes, at most `isize::MAX`, at `data` are valid for reads
    /// and writes; every thread that shares them names the same `grid`, `n_columns` and `nth`, no two at
    /// a time the same `ith`; and nobody else touches them.
    pub unsafe fn from_raw(data: *mut u8, grid: Grid, n_columns: usize, part: Part) -> Self {
        Self { data, grid, n_columns, part, borrowed: PhantomData }
    }

    /// The groups this thread writes, numbered through bundle after bundle.
    fn groups(&self) -> Range<usize> {
        self.part.of(self.grid.n_bundles(self.n_columns) * self.grid.n_groups)
    }

    /// The bundles of which this thread writes some groups.
    pub fn bundles(&self) -> Range<usize> {
        let groups = self.groups();
        if groups.is_empty() {
            return 0..0;
        }
        groups.start / self.grid.n_groups..groups.end.div_ceil(self.grid.n_groups)
    }

    /// This thread's groups of bundle `index`.
    ///
    /// # Panics
    /// If it has none.
    pub fn stretch(&mut self, index: usize) -> Stretch<'_> {
        let (own, before) = (self.groups(), index * self.grid.n_groups);
        let begin = own.start.max(before);
        let end = own.end.min(before + self.grid.n_groups);
        assert!(begin < end, "no group of bundle {index} is in {own:?}");
        let bundle = self.grid.bundle(self.n_columns, index);
        let groups = begin - before..end - before;
        let units = self.grid.units_at(bundle, self.grid.units(groups.start).start);
        let units_end = self.grid.units_at(bundle, self.grid.units(groups.end - 1).end);
        let scales = self.grid.scales_at(bundle, groups.start);
        let scales_end = self.grid.scales_at(bundle, groups.end);
        // SAFETY: both ranges lie in the bundle's bytes (the grid's arithmetic, with a bundle and
        // groups that exist), do not overlap, and belong to these groups alone, which are ours.
        let (units, scales) = unsafe {
            (
                std::slice::from_raw_parts_mut(self.data.add(units), units_end - units),
                std::slice::from_raw_parts_mut(self.data.add(scales), scales_end - scales),
            )
        };
        Stretch { bundle, groups, units, scales }
    }
}

/// Some groups of one bundle of columns.
pub(crate) struct Stretch<'a> {
    pub bundle: Bundle,
    pub groups: Range<usize>,
    /// [bytes of a unit, column, unit]
    pub units: &'a mut [u8],
    /// In native byte order, [bytes of a scale, column, group]
    pub scales: &'a mut [u8],
}
