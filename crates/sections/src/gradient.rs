//! How a matrix changes with the parts of its code: the adjoint of decoding.

use rayon::prelude::*;

use crate::parts::{SectionsParts, sum_atoms};
use format::sections::{ATOMS, BLOCK};

/// Rows whose contributions are summed before they meet others: fixed, so that sums do not depend on the number
/// of threads.
const ROWS: usize = 64;

/// Gradient of a loss with respect to the parts of a code.
#[derive(Clone, Debug, PartialEq)]
pub struct PartsGradient {
    /// By atom, as [`SectionsParts::atoms`].
    pub atoms: Vec<[f32; BLOCK]>,
    /// By row scale, `[d_out]`.
    pub row_scale: Vec<f32>,
}

impl SectionsParts {
    /// The gradient that follows from that of the decoded matrix.
    ///
    /// # Shapes
    /// `dense`: [d_in, d_out].
    ///
    /// # Panics
    /// If `dense` does not fill the shape.
    #[must_use]
    pub fn gradient(&self, dense: &[f32]) -> PartsGradient {
        let shape = self.layout.shape;
        assert_eq!(dense.len(), shape.n_weights());
        let planes = self.layout.n_planes();
        let row_groups = dense.par_chunks(ROWS * shape.d_in);
        let groups = row_groups.zip(self.winners.par_chunks(ROWS * planes));
        let sums: Vec<PartsGradient> = groups
            .zip(self.row_scale.par_chunks(ROWS))
            .map(|((dense, winners), scales)| self.rows_gradient(dense, winners, scales))
            .collect();
        let mut atoms = vec![[0.0; BLOCK]; self.atoms.len()];
        let mut row_scale = Vec::with_capacity(shape.d_out);
        for group in sums {
            for (sum, part) in atoms.as_flattened_mut().iter_mut().zip(group.atoms.as_flattened()) {
                *sum += part;
            }
            row_scale.extend(group.row_scale);
        }
        PartsGradient { atoms, row_scale }
    }

    fn rows_gradient(&self, dense: &[f32], winners: &[u8], scales: &[f32]) -> PartsGradient {
        let (d_in, sections) = (self.layout.shape.d_in, self.layout.sections);
        let mut atoms = vec![[0.0; BLOCK]; self.atoms.len()];
        let rows = dense.chunks(d_in).zip(winners.chunks(self.layout.n_planes())).zip(scales);
        let row_scale = rows.map(|((dense, winners), scale)| {
            let mut by_scale = 0.0;
            for (dense, winners) in dense.chunks(BLOCK).zip(winners.chunks(sections)) {
                let sum = sum_atoms(&self.atoms, winners);
                by_scale += dense.iter().zip(&sum).map(|(g, s)| g * s).sum::<f32>();
                for (section, &winner) in atoms.chunks_exact_mut(ATOMS).zip(winners) {
                    let atom = &mut section[usize::from(winner) % ATOMS];
                    atom.iter_mut().zip(dense).for_each(|(a, g)| *a += scale * g);
                }
            }
            by_scale
        });
        let row_scale = row_scale.collect();
        PartsGradient { atoms, row_scale }
    }
}

#[cfg(test)]
mod tests {
    use format::MatrixShape;
    use format::sections::SectionsLayout;

    use super::*;

    /// The loss sum of dense * weight is linear in atoms and scales apart, so differences are exact.
    #[test]
    fn the_gradient_is_the_slope_of_decoding() {
        let layout = SectionsLayout { shape: MatrixShape::new(21, ROWS + 5), sections: 3 };
        let wave = |i: usize, s: f32| (i as f32 * 1.7 + s).sin();
        let n_atoms = layout.sections * ATOMS;
        let parts = SectionsParts {
            layout,
            atoms: (0..n_atoms).map(|i| std::array::from_fn(|j| wave(8 * i + j, 0.0))).collect(),
            winners: (0..layout.n_planes() * layout.shape.d_out)
                .map(|i| (i * 7 % 16) as u8)
                .collect(),
            row_scale: (0..layout.shape.d_out).map(|i| 1.0 + 0.3 * wave(i, 1.0)).collect(),
            outliers: None,
        };
        let weight: Vec<f32> = (0..layout.shape.n_weights()).map(|i| wave(i, 2.0)).collect();
        let loss = |p: &SectionsParts| -> f64 {
            p.decode().iter().zip(&weight).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let gradient = parts.gradient(&weight);
        let base = loss(&parts);
        let check = |changed: &SectionsParts, slope: f32| {
            let found = loss(changed) - base;
            assert!(
                (found - f64::from(slope)).abs() < 1e-3 * (1.0 + found.abs()),
                "{found} {slope}"
            );
        };
        for atom in [0, 17, n_atoms - 1] {
            for j in 0..BLOCK {
                let mut changed = parts.clone();
                changed.atoms[atom][j] += 1.0;
                check(&changed, gradient.atoms[atom][j]);
            }
        }
        for row in [0, ROWS - 1, ROWS, ROWS + 4] {
            let mut changed = parts.clone();
            changed.row_scale[row] += 1.0;
            check(&changed, gradient.row_scale[row]);
        }
    }
}
