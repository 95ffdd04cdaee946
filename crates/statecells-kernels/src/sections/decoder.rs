//! The dictionary as integers, for decoding weights to bytes.
//!
//! An atom's values are rounded to sixteenths of a step, those of a weight's atoms summed exactly, and
//! the sum rounded once: `weight = floor((sum_s fine[s] + 8) / 16)`, -126..=127. Each of the 8 positions
//! in a block has its own step, just so large that no choice of atoms leaves this range; inputs are
//! multiplied by it. A value is kept as two bytes, `fine = 16 * coarse + rest`, so that sums of bytes
//! (modulo 256 the one, without overflow the other) give the exact result.

use super::shape::{ATOMS, BLOCK, MAX_SECTIONS};
use super::tables::Atoms;
use crate::KernelError;

/// Parts of a step that an atom's values are rounded to.
pub(crate) const FINE: i32 = 16;
/// Largest magnitude of a sum of atoms in steps: with the rounding of up to 16 atoms and of the sum itself a
/// weight is then at most 127.
const LIMIT: f64 = 126.0;
// What is not rounded up to a whole step fits into a byte, the half that rounds included.
const _: () = assert!((FINE - 1) * MAX_SECTIONS as i32 + FINE / 2 <= 255);

/// One section's atoms as bytes, in the orders that decoders look them up.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct AtomBytes {
    /// `[half of the block][coarse, rest][atom][position in the half]`
    pub words: [[[[u8; 4]; ATOMS]; 2]; 2],
    /// `[position][coarse, rest][atom]`
    pub lanes: [[[u8; ATOMS]; 2]; BLOCK],
}

/// A dictionary ready to decode tiles of codes to bytes.
#[derive(Clone, Debug)]
pub struct Decoder {
    steps: [f32; BLOCK],
    /// `[section][position][atom]`
    fine: Vec<[[i16; ATOMS]; BLOCK]>,
    bytes: Vec<AtomBytes>,
}

impl Decoder {
    /// Takes over a dictionary (a few kilobytes are copied).
    ///
    /// # Shapes
    /// `dict`: [8, 16, n_sections]
    ///
    /// # Errors
    /// [`KernelError`] if the length does not fit or an atom is not finite.
    pub fn new(n_sections: usize, dict: Atoms<'_>) -> Result<Self, KernelError> {
        let atoms = dict.turned(n_sections)?;
        let bounds: [f64; BLOCK] = std::array::from_fn(|position| bound(&atoms, position));
        // Below 2^-100 the sums count as zero, as projections do.
        let factor = |bound: f64| {
            if bound < 2f64.powi(-100) { 0.0 } else { f64::from(FINE) * LIMIT / bound }
        };
        let factors = bounds.map(factor);
        let round = |v: f32, factor: f64| (f64::from(v) * factor).round_ties_even() as i16;
        let fine: Vec<[[i16; ATOMS]; BLOCK]> = atoms
            .iter()
            .map(|rows| std::array::from_fn(|j| rows[j].map(|v| round(v, factors[j]))))
            .collect();
        let steps = bounds.map(|bound| (bound / LIMIT) as f32);
        let bytes = fine.iter().map(AtomBytes::new).collect();
        Ok(Self { steps, fine, bytes })
    }

    /// Sections of the dictionary.
    pub(crate) fn n_sections(&self) -> usize {
        self.fine.len()
    }

    /// What a weight of 1 stands for, by position.
    pub(crate) fn steps(&self) -> &[f32; BLOCK] {
        &self.steps
    }

    /// The weight at `position` of a block whose atoms are `codes`, one of each section.
    pub(crate) fn weight(&self, position: usize, codes: impl Iterator<Item = usize>) -> i32 {
        let fine =
            self.fine.iter().zip(codes).map(|(atoms, code)| i32::from(atoms[position][code]));
        (fine.sum::<i32>() + FINE / 2).div_euclid(FINE)
    }

    /// The sections' atoms as bytes.
    pub(crate) fn bytes(&self) -> &[AtomBytes] {
        &self.bytes
    }
}

/// Largest magnitude that a sum of one atom of each section can have at a position.
fn bound(atoms: &[[[f32; ATOMS]; BLOCK]], position: usize) -> f64 {
    let extreme = |sign: f64| -> f64 {
        let largest = |row: &[f32; ATOMS]| {
            row.iter().fold(f64::NEG_INFINITY, |top, &v| top.max(sign * f64::from(v)))
        };
        atoms.iter().map(|section| largest(&section[position])).sum()
    };
    extreme(1.0).max(extreme(-1.0)).max(0.0)
}

impl AtomBytes {
    fn new(fine: &[[i16; ATOMS]; BLOCK]) -> Self {
        let mut bytes = Self { words: Default::default(), lanes: Default::default() };
        for (j, row) in fine.iter().enumerate() {
            for (atom, &value) in row.iter().enumerate() {
                let value = i32::from(value);
                let parts = [value.div_euclid(FINE) as u8, value.rem_euclid(FINE) as u8];
                for (part, byte) in parts.into_iter().enumerate() {
                    bytes.words[j / 4][part][atom][j % 4] = byte;
                    bytes.lanes[j][part][atom] = byte;
                }
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_choice_of_atoms_leaves_a_byte_and_each_is_half_a_step_away_at_most() {
        for n_sections in [1, 5, 16] {
            for sign in [1.0, -1.0] {
                // All sections have their largest atom at the same place: the bound is reached.
                let dict: Vec<f32> = (0..n_sections * 128)
                    .map(|i| sign * ((i / 8 % 16) as f32 - 3.3 + (i % 8) as f32 * 0.01))
                    .collect();
                let decoder = Decoder::new(n_sections, Atoms::F32(&dict)).unwrap();
                for (position, step) in decoder.steps().iter().enumerate() {
                    let weights = (0..16).map(|atom| {
                        let weight = decoder.weight(position, std::iter::repeat(atom));
                        let exact = dict[atom * 8 + position] * n_sections as f32 / step;
                        let off = (weight as f32 - exact).abs();
                        assert!(off <= 0.501 + n_sections as f32 / 32.0, "{weight} {exact}");
                        weight
                    });
                    let largest = weights.map(i32::abs).max();
                    assert!(largest == Some(126) || largest == Some(127), "{largest:?}");
                }
            }
        }
    }

    #[test]
    fn a_dictionary_of_zeros_decodes_to_zeros() {
        for value in [0.0, 1e-40] {
            let decoder = Decoder::new(2, Atoms::F32(&[value; 256])).unwrap();
            assert_eq!(decoder.weight(3, [1, 15].into_iter()), 0);
            assert!(decoder.steps().iter().all(|step| step.is_finite()));
        }
    }

    #[test]
    fn rejects_what_is_no_dictionary() {
        assert!(Decoder::new(2, Atoms::F32(&[0.0; 255])).is_err());
        assert!(Decoder::new(1, Atoms::F32(&[f32::NAN; 128])).is_err());
    }
}
