//! The stored form of a sections code: names, sizes, and where a winner's four bits are.

use crate::{ElementType, MatrixShape, SidecarSpec};

/// Inputs per block, the length of an atom.
pub const BLOCK: usize = 8;
/// Atoms per section: a winner takes four bits.
pub const ATOMS: usize = 16;
/// Rows per tile of codes.
pub const TILE_ROWS: usize = 32;
/// Most sections a dictionary may have.
pub const MAX_SECTIONS: usize = 16;

/// Suffix of the atoms, [8, 16, S] F16: atom a of section s is one contiguous vector.
pub const DICT: &str = "dict";
/// Suffix of the winners, [32, pairs, tiles] I8 (the bits are no numbers), see [`SectionsLayout`].
pub const CODES: &str = "codes";
/// Suffix of the row scales, `[d_out]` F16.
pub const ROW_SCALE: &str = "row_scale";

/// Where the winners of a matrix are.
///
/// Inputs are padded to whole blocks of [`BLOCK`], rows to whole tiles of [`TILE_ROWS`]. The planes of a
/// tile are numbered `block * S + section`; two planes share 32 bytes, of which byte i belongs to row
/// `32 * tile + i`: its low nibble is the winner in the even plane, its high nibble that in the odd one.
/// Nibbles of padded rows, and of the odd plane that is missing where the number of planes is odd, are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionsLayout {
    /// Shape of the matrix.
    pub shape: MatrixShape,
    /// Number of sections S.
    pub sections: usize,
}

impl SectionsLayout {
    /// Number of blocks per row.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.shape.d_in.div_ceil(BLOCK)
    }

    /// Number of planes per tile: winners per row.
    #[must_use]
    pub fn n_planes(&self) -> usize {
        self.n_blocks() * self.sections
    }

    /// Number of pairs of planes per tile.
    #[must_use]
    pub fn n_pairs(&self) -> usize {
        self.n_planes().div_ceil(2)
    }

    /// Number of tiles.
    #[must_use]
    pub fn n_tiles(&self) -> usize {
        self.shape.d_out.div_ceil(TILE_ROWS)
    }

    /// The spec of the winners, [32, pairs, tiles] I8.
    #[must_use]
    pub fn codes(&self) -> SidecarSpec {
        SidecarSpec::new(CODES, ElementType::I8, &[TILE_ROWS, self.n_pairs(), self.n_tiles()])
    }

    /// Byte and shift of the winner of `row` in `plane`.
    #[must_use]
    pub fn position(&self, row: usize, plane: usize) -> (usize, u32) {
        let pair = row / TILE_ROWS * self.n_pairs() + plane / 2;
        (pair * TILE_ROWS + row % TILE_ROWS, 4 * (plane % 2) as u32)
    }
}
