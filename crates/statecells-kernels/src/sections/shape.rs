//! Checked sizes of what a product of the `sections` code reads and prepares.

use format::MatrixShape;
use format::sections::SectionsLayout;

pub use format::sections::{ATOMS, BLOCK, MAX_SECTIONS};

use super::bundles::Grid;
use crate::{KernelError, ROW_TILE};

/// Bytes of a tile's codes for a pair of planes: one byte per row.
pub const PAIR_BYTES: usize = ROW_TILE;

/// Shape of a matrix coded in sections; where its codes lie says [`SectionsLayout`]. Nibbles of padded rows, and of the
/// odd plane that is missing where the number of planes is odd, are not used and may hold anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionShape {
    /// Number of inputs; the last block is filled up with zero inputs.
    pub d_in: usize,
    /// Number of rows.
    pub d_out: usize,
    /// Sections of the dictionary, S: 1..=16.
    pub n_sections: usize,
}

impl SectionShape {
    /// Blocks of a row.
    #[must_use]
    pub fn n_blocks(self) -> usize {
        self.layout().n_blocks()
    }

    pub(super) fn layout(self) -> SectionsLayout {
        let shape = MatrixShape::new(self.d_in, self.d_out);
        SectionsLayout { shape, sections: self.n_sections }
    }

    /// Tiles of 32 rows.
    #[must_use]
    pub fn n_tiles(self) -> usize {
        self.layout().n_tiles()
    }

    /// Bytes of one tile's codes.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] if a dimension is 0 or too large.
    pub fn tile_bytes(self) -> Result<usize, KernelError> {
        Ok(n_planes(self.d_in, self.n_sections)?.div_ceil(2) * PAIR_BYTES)
    }

    /// Bytes of all codes.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] if a dimension is 0 or too large.
    pub fn code_bytes(self) -> Result<usize, KernelError> {
        if self.d_out == 0 {
            return Err(KernelError::Dimension {
                what: "d_out",
                value: 0,
                reason: "must not be 0",
            });
        }
        let reason = "the matrix is too large";
        self.tile_bytes()?
            .checked_mul(self.n_tiles())
            .filter(|&n| n <= isize::MAX as usize)
            .ok_or(KernelError::Dimension { what: "d_out", value: self.d_out, reason })
    }
}

/// How finely a table is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableEntry {
    /// 8 bits, one lookup per code.
    I8,
    /// About 16 bits (-32639..=32639) as two tables of 8 bits: twice the bytes, twice the lookups.
    I16,
}

impl TableEntry {
    /// Tables of 8 bits per token. An entry is the sum of its parts, the first one times 256.
    pub(crate) fn parts(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::I16 => 2,
        }
    }

    /// Largest magnitude of an entry.
    pub(crate) fn limit(self) -> f32 {
        match self {
            Self::I8 => 127.0,
            // 256 * 127 + 127: both parts stay within -127..=127 but for a low part of -128.
            Self::I16 => 32639.0,
        }
    }
}

/// Where the entries and scales of lookup tables lie. The layout is private to this crate; callers
/// need its size.
///
/// A token has one column of tables per part of an entry. Four columns at a time form a bundle: pair
/// of planes by pair of planes, the tables of all its columns lie side by side, 32 bytes each, and the
/// scales (F32) of the bundle, [column, group], follow. Entries are stored plus `BIAS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLayout {
    pub(crate) d_in: usize,
    pub(crate) n_sections: usize,
    pub(crate) entry: TableEntry,
    /// A unit is the table of a pair of planes: the even plane's 16 entries, then the odd plane's.
    pub(crate) grid: Grid,
}

/// What is added to an entry, so that the bytes are unsigned: sums of unsigned bytes can be split into
/// even and odd rows without unpacking.
pub(crate) const BIAS: i32 = 128;
/// Most columns of a bundle.
const BUNDLE: usize = 4;

impl TableLayout {
    /// Layout of the tables for matrices of `d_in` inputs and `n_sections` sections.
    ///
    /// `group_blocks` blocks (even, 2..=16) share one scale: the fewer, the less a block with large
    /// inputs costs the precision of its neighbours, and the slower the lookup (see the benches).
    ///
    /// # Errors
    /// [`KernelError::Dimension`] if a parameter is out of range.
    pub fn new(
        d_in: usize,
        n_sections: usize,
        group_blocks: usize,
        entry: TableEntry,
    ) -> Result<Self, KernelError> {
        // Even: groups then begin with a whole byte of codes. At most 16: see `MAX_GROUP_PLANES`.
        if group_blocks == 0 || group_blocks > 16 || !group_blocks.is_multiple_of(2) {
            let reason = "must be even, 2..=16";
            return Err(KernelError::Dimension {
                what: "group_blocks",
                value: group_blocks,
                reason,
            });
        }
        let n_pairs = n_planes(d_in, n_sections)?.div_ceil(2);
        let group_pairs = group_blocks * n_sections / 2;
        let grid = Grid::new(BUNDLE, (n_pairs, PAIR_BYTES), group_pairs, size_of::<f32>());
        Ok(Self { d_in, n_sections, entry, grid })
    }

    /// Bytes of one token's tables: an I8 tensor [bytes_per_token, n_tokens] holds the tables of
    /// `n_tokens` tokens (interleaved, not token after token).
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        self.grid.column_bytes * self.entry.parts()
    }

    /// Columns of `n_tokens` tokens, if their tables fit into memory.
    pub(crate) fn n_columns(&self, n_tokens: usize) -> Result<usize, KernelError> {
        self.grid.check(n_tokens.checked_mul(self.entry.parts()), n_tokens)
    }
}

/// Planes of a row.
fn n_planes(d_in: usize, n_sections: usize) -> Result<usize, KernelError> {
    // Codes address inputs by 32 bits elsewhere in the format; this keeps all products below in range.
    if d_in == 0 || d_in > i32::MAX as usize {
        let reason = "must be 1..=2147483647";
        return Err(KernelError::Dimension { what: "d_in", value: d_in, reason });
    }
    if n_sections == 0 || n_sections > MAX_SECTIONS {
        let reason = "must be 1..=16";
        return Err(KernelError::Dimension { what: "n_sections", value: n_sections, reason });
    }
    Ok(d_in.div_ceil(BLOCK) * n_sections)
}

/// Most planes of a group: 16 blocks of 16 sections.
pub(crate) const MAX_GROUP_PLANES: usize = 256;
// The sum of a group's entries (magnitude at most 127 each) is an i16. Kernels sum modulo 2^16, so no
// partial sum matters; an entry of -128 occurs only as the low part of an I16 entry.
const _: () = assert!(MAX_GROUP_PLANES as i32 * BIAS <= i16::MAX as i32 + 1);
