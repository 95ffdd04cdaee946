//! Inner products between atoms: all at once where they fit, otherwise where they are asked for.

use codec::MatMul;

use crate::linalg::dot;

/// Columns computed per product.
const BLOCK: usize = 64;

/// Gram matrix of a dictionary.
pub(crate) struct Gram<'a> {
    atoms: &'a [f32],
    d_in: usize,
    /// All products, [m, m], if they were worth computing.
    full: Option<Vec<f32>>,
}

impl<'a> Gram<'a> {
    /// Products are computed as they are needed.
    pub(crate) fn lazy(atoms: &'a [f32], d_in: usize) -> Self {
        Self { atoms, d_in, full: None }
    }

    /// All products now, `m * m` floats.
    pub(crate) fn full(atoms: &'a [f32], d_in: usize, mul_mat: &dyn MatMul) -> Self {
        let m = atoms.len() / d_in;
        let mut full = vec![0.0; m * m];
        for (out, block) in full.chunks_mut(m * BLOCK).zip(atoms.chunks(d_in * BLOCK)) {
            mul_mat.mul_mat(atoms, block, d_in, out);
        }
        Self { atoms, d_in, full: Some(full) }
    }

    fn atom(&self, i: usize) -> &[f32] {
        &self.atoms[i * self.d_in..(i + 1) * self.d_in]
    }

    /// Inner product of atoms `i` and `j`.
    pub(crate) fn get(&self, i: usize, j: usize) -> f32 {
        match &self.full {
            Some(full) => full[j * (self.atoms.len() / self.d_in) + i],
            None => dot(self.atom(i), self.atom(j)),
        }
    }

    /// `out[i] += factor * <atom i, atom j>` for every atom i.
    pub(crate) fn add_column(&self, j: usize, factor: f32, out: &mut [f32]) {
        match &self.full {
            Some(full) => {
                crate::linalg::add_scaled(out, factor, &full[j * out.len()..(j + 1) * out.len()]);
            }
            None => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out += factor * dot(self.atom(i), self.atom(j));
                }
            }
        }
    }
}
