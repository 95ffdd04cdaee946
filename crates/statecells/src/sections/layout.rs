//! The stored form of a sections code: names, sizes, where a winner's four bits are, and the reader.

use codec::coo::{Coo, Layout as CooLayout, checked_sidecar, f16_clamped};
use codec::{CodecError, ElementType, MatrixShape, Sidecar, SidecarSpec, find_sidecar};
use half::f16;
use rayon::prelude::*;

use crate::global::{floats, malformed};

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

    /// Packs winners, [planes, d_out] one byte each, into the bytes of the file.
    #[must_use]
    pub fn pack(&self, winners: &[u8]) -> Vec<i8> {
        let planes = self.n_planes();
        let mut bytes = vec![0i8; TILE_ROWS * self.n_pairs() * self.n_tiles()];
        let tiles = bytes.par_chunks_mut(TILE_ROWS * self.n_pairs());
        tiles.zip(winners.par_chunks(TILE_ROWS * planes)).for_each(|(tile, winners)| {
            for (row, winners) in winners.chunks(planes).enumerate() {
                for (pair, winners) in winners.chunks(2).enumerate() {
                    let high = winners.get(1).copied().unwrap_or(0);
                    tile[pair * TILE_ROWS + row] = (winners[0] | high << 4) as i8;
                }
            }
        });
        bytes
    }

    /// The winners, [planes, d_out] one byte each, from the bytes of the file.
    #[must_use]
    pub fn unpack(&self, bytes: &[i8]) -> Vec<u8> {
        let mut winners = vec![0u8; self.n_planes() * self.shape.d_out];
        winners.par_chunks_mut(self.n_planes()).enumerate().for_each(|(row, winners)| {
            for (plane, winner) in winners.iter_mut().enumerate() {
                let (byte, shift) = self.position(row, plane);
                *winner = (bytes[byte] as u8 >> shift) & 15;
            }
        });
        winners
    }
}

/// A dictionary of S sections: atom a of section s is `atoms[s * 16 + a]`.
pub(crate) type Atoms = Vec<[f32; BLOCK]>;

/// A sections code, read from sidecars and checked.
#[derive(Clone, Debug)]
pub struct SectionsParts {
    /// Where the winners are.
    pub layout: SectionsLayout,
    /// Atoms, [8, 16, S].
    pub atoms: Vec<[f32; BLOCK]>,
    /// Winners, [planes, d_out], each below 16.
    pub winners: Vec<u8>,
    /// Row scales, `[d_out]`.
    pub row_scale: Vec<f32>,
    /// Corrections of single weights.
    pub outliers: Option<Coo>,
}

impl SectionsParts {
    /// Reads and checks `sidecars` of a matrix of `shape`.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] if a tensor is missing, has another type or shape, or holds a number that
    /// is not finite or a position out of range.
    pub fn read(sidecars: &[Sidecar], shape: MatrixShape) -> Result<Self, CodecError> {
        if shape.d_in == 0 || shape.d_out == 0 || shape.checked_n_weights().is_none() {
            return Err(malformed(DICT, format!("belongs to an impossible matrix of {shape}")));
        }
        let dims = find_sidecar(sidecars, DICT).map(|s| s.spec.dims.as_slice());
        let sections = match dims {
            None => return Err(malformed(DICT, "missing".to_owned())),
            Some(dims) => dims.get(2).copied().unwrap_or(1),
        };
        if !(1..=MAX_SECTIONS).contains(&sections) {
            let reason = format!("has {sections} sections, must have 1 to {MAX_SECTIONS}");
            return Err(malformed(DICT, reason));
        }
        let layout = SectionsLayout { shape, sections };
        let atoms = floats(sidecars, DICT, &[BLOCK, ATOMS, sections], false)?;
        let bytes = checked_sidecar(sidecars, &layout.codes())?.to_i8().unwrap_or_default();
        let row_scale = floats(sidecars, ROW_SCALE, &[shape.d_out], false)?;
        let outliers = Coo::from_sidecars(CooLayout::Flat, sidecars, shape)?;
        let atoms = atoms.as_chunks::<BLOCK>().0.to_vec();
        Ok(Self { layout, atoms, winners: layout.unpack(&bytes), row_scale, outliers })
    }

    /// The sidecars, with atoms and scales rounded to the nearest half precision number.
    ///
    /// # Errors
    /// [`CodecError::Sidecar`] if the exact weights cannot be stored.
    pub fn to_sidecars(&self) -> Result<Vec<Sidecar>, CodecError> {
        let Self { layout, atoms, winners, row_scale, outliers } = self;
        let round = |values: &[f32]| values.iter().map(|v| f16_clamped(*v)).collect::<Vec<f16>>();
        let codes = layout.codes();
        let mut sidecars = vec![
            Sidecar::from_f16(DICT, &[BLOCK, ATOMS, layout.sections], &round(atoms.as_flattened())),
            Sidecar::from_i8(codes.suffix, &codes.dims, &layout.pack(winners)),
            Sidecar::from_f16(ROW_SCALE, &[layout.shape.d_out], &round(row_scale)),
        ];
        if let Some(outliers) = outliers {
            sidecars.extend(outliers.to_sidecars(CooLayout::Flat)?);
        }
        Ok(sidecars)
    }

    /// The dense matrix [d_in, d_out].
    #[must_use]
    pub fn decode(&self) -> Vec<f32> {
        let shape = self.layout.shape;
        let mut dense = vec![0.0; shape.n_weights()];
        let rows = dense.par_chunks_mut(shape.d_in).zip(&self.row_scale);
        rows.zip(self.winners.par_chunks(self.layout.n_planes())).for_each(
            |((row, scale), winners)| {
                let blocks = row.chunks_mut(BLOCK).zip(winners.chunks(self.layout.sections));
                for (out, winners) in blocks {
                    let sum = sum_atoms(&self.atoms, winners);
                    out.iter_mut().zip(sum).for_each(|(out, v)| *out = scale * v);
                }
            },
        );
        if let Some(outliers) = &self.outliers {
            outliers.add_to(&mut dense);
        }
        dense
    }
}

/// Sum of one atom per section: what `winners` of one block stand for, in order of sections.
#[inline(always)]
pub(crate) fn sum_atoms(atoms: &[[f32; BLOCK]], winners: &[u8]) -> [f32; BLOCK] {
    let mut sum = [0.0; BLOCK];
    for (section, &winner) in atoms.chunks_exact(ATOMS).zip(winners) {
        let atom = &section[usize::from(winner) % ATOMS];
        (0..BLOCK).for_each(|i| sum[i] += atom[i]);
    }
    sum
}
