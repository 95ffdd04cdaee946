//! A sections code as tensors, and the reader.

use format::coo::Layout as CooLayout;
use format::sections::{ATOMS, BLOCK, DICT, MAX_SECTIONS, ROW_SCALE, SectionsLayout, TILE_ROWS};
use format::{
    CodecError, ElementType, MatrixShape, Sidecar, SidecarSpec, checked_sidecar, f16_clamped,
    find_sidecar, finite_values,
};
use half::f16;
use numerics::coo::Coo;
use rayon::prelude::*;

/// Packs winners, [planes, d_out] one byte each, into the bytes of the file.
#[must_use]
pub fn pack(layout: &SectionsLayout, winners: &[u8]) -> Vec<i8> {
    let planes = layout.n_planes();
    let mut bytes = vec![0i8; TILE_ROWS * layout.n_pairs() * layout.n_tiles()];
    let tiles = bytes.par_chunks_mut(TILE_ROWS * layout.n_pairs());
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
pub fn unpack(layout: &SectionsLayout, bytes: &[i8]) -> Vec<u8> {
    let mut winners = vec![0u8; layout.n_planes() * layout.shape.d_out];
    winners.par_chunks_mut(layout.n_planes()).enumerate().for_each(|(row, winners)| {
        for (plane, winner) in winners.iter_mut().enumerate() {
            let (byte, shift) = layout.position(row, plane);
            *winner = (bytes[byte] as u8 >> shift) & 15;
        }
    });
    winners
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
        let malformed = |reason| Err(CodecError::Sidecar { suffix: DICT, reason });
        if shape.d_in == 0 || shape.d_out == 0 || shape.checked_n_weights().is_none() {
            return malformed(format!("belongs to an impossible matrix of {shape}"));
        }
        let dims = find_sidecar(sidecars, DICT).map(|s| s.spec.dims.as_slice());
        let sections = match dims {
            None => return malformed("missing".to_owned()),
            Some(dims) => dims.get(2).copied().unwrap_or(1),
        };
        if !(1..=MAX_SECTIONS).contains(&sections) {
            let reason = format!("has {sections} sections, must have 1 to {MAX_SECTIONS}");
            return malformed(reason);
        }
        let layout = SectionsLayout { shape, sections };
        let halves = |suffix, dims: &[usize]| {
            finite_values(sidecars, &SidecarSpec::new(suffix, ElementType::F16, dims))
        };
        let atoms = halves(DICT, &[BLOCK, ATOMS, sections])?;
        let bytes = checked_sidecar(sidecars, &layout.codes())?.to_i8().unwrap_or_default();
        let row_scale = halves(ROW_SCALE, &[shape.d_out])?;
        let outliers = Coo::from_sidecars(CooLayout::Flat, sidecars, shape)?;
        let atoms = atoms.as_chunks::<BLOCK>().0.to_vec();
        Ok(Self { layout, atoms, winners: unpack(&layout, &bytes), row_scale, outliers })
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
            Sidecar::from_i8(codes.suffix, &codes.dims, &pack(layout, winners)),
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
