//! Lookup tables: the projections of every block of inputs on the atoms of every section, quantized
//! for the byte shuffles of the lookup.
//!
//! `entry[block, section, atom] = round(<x_block, atom> / scale)`, with one scale per group of blocks
//! and token: the largest magnitude of the group's projections over the largest entry. A scale is 0
//! if all projections are below 2^-100, and NaN if one is not finite, which makes the token's
//! results NaN as the dense product would.

use std::ops::Range;

use half::f16;

use super::bundles::{Bundle, BundleOutput, Stretch};
use super::shape::{ATOMS, BLOCK, TableLayout};
use crate::error::check_len;
use crate::{KernelError, Part};

/// The atoms of a dictionary as the file has them: [8, 16, n_sections].
#[derive(Clone, Copy, Debug)]
pub enum Atoms<'a> {
    /// F16.
    F16(&'a [f16]),
    /// F32.
    F32(&'a [f32]),
}

/// A dictionary turned around, `[section][position][atom]`: what 16 atoms have at a position lies side by side.
pub(super) type Turned = Vec<[[f32; ATOMS]; BLOCK]>;

impl Atoms<'_> {
    /// The atoms in F32, turned around.
    pub(super) fn turned(self, n_sections: usize) -> Result<Turned, KernelError> {
        let values: Vec<f32> = match self {
            Atoms::F16(dict) => dict.iter().map(|v| v.to_f32()).collect(),
            Atoms::F32(dict) => dict.to_vec(),
        };
        check_len("dict", BLOCK * ATOMS * n_sections, values.len())?;
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(KernelError::NonFinite { what: "dict", index, value: values[index] });
        }
        let mut atoms = vec![[[0.0; ATOMS]; BLOCK]; n_sections];
        for (i, &value) in values.iter().enumerate() {
            let (section, atom, j) = (i / (BLOCK * ATOMS), i / BLOCK % ATOMS, i % BLOCK);
            atoms[section][j][atom] = value;
        }
        Ok(atoms)
    }
}

/// The tables of some tokens, of which one thread writes its share.
#[derive(Debug)]
pub struct TableOutput<'a> {
    layout: TableLayout,
    n_tokens: usize,
    columns: BundleOutput<'a>,
}

impl<'a> TableOutput<'a> {
    /// One `TableOutput` for each of `nth` threads.
    ///
    /// # Errors
    /// [`KernelError`] if `data` is not exactly `bytes_per_token * n_tokens` long or `nth` is 0.
    pub fn split(
        data: &'a mut [u8],
        layout: &TableLayout,
        n_tokens: usize,
        nth: usize,
    ) -> Result<Vec<Self>, KernelError> {
        let n_columns = layout.n_columns(n_tokens)?;
        let parts = BundleOutput::split("tables", data, layout.grid, n_columns, nth)?.into_iter();
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
    /// [`KernelError::Dimension`] if that many tables do not fit into memory.
    pub unsafe fn from_raw(
        data: *mut u8,
        layout: &TableLayout,
        n_tokens: usize,
        part: Part,
    ) -> Result<Self, KernelError> {
        let n_columns = layout.n_columns(n_tokens)?;
        // SAFETY: the caller's promise; the columns were just checked to fit.
        let columns = unsafe { BundleOutput::from_raw(data, layout.grid, n_columns, part) };
        Ok(Self { layout: *layout, n_tokens, columns })
    }

    /// The layout.
    pub(crate) fn layout(&self) -> TableLayout {
        self.layout
    }

    /// Number of tokens.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The bundles of which this thread writes some groups.
    pub(crate) fn bundles(&self) -> Range<usize> {
        self.columns.bundles()
    }

    /// This thread's groups of bundle `index`.
    ///
    /// # Panics
    /// If it has none.
    pub(crate) fn stretch(&mut self, index: usize) -> Stretch<'_> {
        self.columns.stretch(index)
    }
}

/// The finished tables of some tokens.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    data: &'a [u8],
    layout: TableLayout,
    n_tokens: usize,
}

impl<'a> Tables<'a> {
    /// The tables that [`TableBuilder::build`](super::TableBuilder::build) wrote to `data` for `n_tokens` tokens.
    ///
    /// The contents are not checked: other bytes give other sums, nothing worse.
    ///
    /// # Errors
    /// [`KernelError`] if `data` is not exactly `bytes_per_token * n_tokens` long.
    pub fn new(data: &'a [u8], layout: &TableLayout, n_tokens: usize) -> Result<Self, KernelError> {
        layout.n_columns(n_tokens)?;
        check_len("tables", layout.bytes_per_token() * n_tokens, data.len())?;
        Ok(Self { data, layout: *layout, n_tokens })
    }

    /// Number of tokens.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    pub(crate) fn layout(&self) -> &TableLayout {
        &self.layout
    }

    pub(crate) fn n_columns(&self) -> usize {
        self.n_tokens * self.layout.entry.parts()
    }

    /// Entries of `pairs` for a bundle: [even plane 16 | odd plane 16, column, pair].
    pub(crate) fn entries(&self, bundle: Bundle, pairs: Range<usize>) -> &'a [u8] {
        let grid = &self.layout.grid;
        &self.data[grid.units_at(bundle, pairs.start)..grid.units_at(bundle, pairs.end)]
    }

    /// Scale of a bundle's column in group `g`.
    pub(crate) fn scale(&self, bundle: Bundle, g: usize, column: usize) -> f32 {
        let at = self.layout.grid.scales_at(bundle, g) + column * size_of::<f32>();
        f32::from_ne_bytes(self.data[at..][..4].try_into().expect("four bytes"))
    }
}
