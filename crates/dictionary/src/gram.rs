//! Inner products between atoms: all at once where they fit, otherwise where they are asked for.

use numerics::MatMul;

use super::selection::Selection;
use crate::Encoder;
use numerics::linalg::{add_scaled, dot};

/// Columns computed per product.
const BLOCK: usize = 64;

/// Gram matrix of a dictionary.
pub(crate) struct Gram<'a> {
    atoms: &'a [f32],
    d_in: usize,
    /// All products, [m, m], if they were worth computing.
    full: Option<Vec<f32>>,
}

/// Dictionaries whose products take less than so many floats may always have them.
const SMALL: usize = 1 << 22;

impl<'a> Gram<'a> {
    /// All products now if that is cheaper for fitting `n_rows` rows, and takes no more memory than these
    /// rows (or little): matching pursuit asks for whole columns again and again, least squares only for
    /// the products within each row's support.
    pub(crate) fn for_rows(
        select: Selection,
        n_rows: usize,
        atoms: &'a [f32],
        d_in: usize,
        mul_mat: &dyn MatMul,
    ) -> Self {
        let m = atoms.len() / d_in;
        let pays = match select.encoder {
            Encoder::Omp => true,
            Encoder::TopK => select.scheme.has_vals() && m * m <= n_rows * select.k * select.k / 2,
        };
        if pays && m * m <= SMALL.max(n_rows * d_in) {
            Self::full(atoms, d_in, mul_mat)
        } else {
            Self::lazy(atoms, d_in)
        }
    }

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
                add_scaled(out, factor, &full[j * out.len()..(j + 1) * out.len()]);
            }
            None => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out += factor * dot(self.atom(i), self.atom(j));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use numerics::ReferenceMatMul;

    use super::*;

    #[test]
    fn lazy_and_full_products_agree() {
        let d_in = 21;
        let atoms: Vec<f32> =
            (0..d_in * 100).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let (lazy, full) = (Gram::lazy(&atoms, d_in), Gram::full(&atoms, d_in, &ReferenceMatMul));
        let (mut a, mut b) = (vec![1.0; 100], vec![1.0; 100]);
        lazy.add_column(7, -0.5, &mut a);
        full.add_column(7, -0.5, &mut b);
        for i in 0..100 {
            assert!((lazy.get(i, 66) - full.get(i, 66)).abs() < 1e-5);
            assert!((a[i] - b[i]).abs() < 1e-5);
        }
    }
}
