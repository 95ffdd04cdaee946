//! Least-squares refit of the atoms with the codes fixed.
//!
//! This is the dictionary update of alternating minimization (method of optimal directions, Engan, Aase
//! and Husoy 1999), solved by block coordinate descent over the atoms (Mairal et al. 2010): an atom
//! becomes what its rows lack without it. Inputs do not interact, so each thread takes a slice of them.

use rayon::prelude::*;

use super::fit::RowFit;
use super::samples::Samples;

/// Inputs per slice: one cache line of every row.
const SLICE: usize = 16;

/// Sweeps over the atoms per refit; the codes change afterwards anyway.
const SWEEPS: usize = 3;

/// The rows of every atom.
struct Users {
    /// Start of atom j's entries.
    starts: Vec<usize>,
    /// (sample, coefficient), samples ascending within an atom.
    entries: Vec<(u32, f32)>,
}

impl Users {
    fn new(fits: &[RowFit], m: usize) -> Self {
        let mut starts = vec![0usize; m + 1];
        for fit in fits {
            fit.terms.iter().for_each(|t| starts[t.0 as usize + 1] += 1);
        }
        for j in 0..m {
            starts[j + 1] += starts[j];
        }
        let mut next = starts.clone();
        let mut entries = vec![(0, 0.0); starts[m]];
        for (sample, fit) in fits.iter().enumerate() {
            for &(atom, c) in &fit.terms {
                entries[next[atom as usize]] = (sample as u32, c * fit.scale);
                next[atom as usize] += 1;
            }
        }
        Self { starts, entries }
    }

    fn of(&self, atom: usize) -> &[(u32, f32)] {
        &self.entries[self.starts[atom]..self.starts[atom + 1]]
    }
}

/// Moves `atoms`, [d_in, m], towards the least-squares solution for `fits`, one per sample; returns how
/// many rows use each atom. Unused atoms stay.
pub(crate) fn refit(samples: &Samples, fits: &[RowFit], atoms: &mut [f32]) -> Vec<u32> {
    let d_in = samples.d_in;
    let m = atoms.len() / d_in;
    let users = Users::new(fits, m);
    let starts: Vec<usize> = (0..d_in).step_by(SLICE).collect();
    let slices: Vec<Vec<[f32; SLICE]>> =
        starts.par_iter().map(|&i| refit_slice(samples, &users, atoms, i)).collect();
    for (&start, slice) in starts.iter().zip(&slices) {
        let width = SLICE.min(d_in - start);
        for (atom, new) in atoms.chunks_exact_mut(d_in).zip(slice) {
            atom[start..start + width].copy_from_slice(&new[..width]);
        }
    }
    (0..m).map(|j| users.of(j).len() as u32).collect()
}

/// Inputs `start..` of every refitted atom.
fn refit_slice(samples: &Samples, users: &Users, atoms: &[f32], start: usize) -> Vec<[f32; SLICE]> {
    let d_in = samples.d_in;
    let width = SLICE.min(d_in - start);
    let cut = |row: &[f32]| {
        let mut out = [0.0; SLICE];
        out[..width].copy_from_slice(&row[start..start + width]);
        out
    };
    let mut slice: Vec<[f32; SLICE]> = atoms.chunks_exact(d_in).map(cut).collect();
    let factors = cut(&samples.metric.factors);
    let scaled = |&r: &usize| {
        let mut x = cut(&samples.weights[r * d_in..(r + 1) * d_in]);
        (0..SLICE).for_each(|i| x[i] *= factors[i]);
        x
    };
    let mut residual: Vec<[f32; SLICE]> = samples.rows.iter().map(scaled).collect();
    for (j, atom) in slice.iter().enumerate() {
        users.of(j).iter().for_each(|&(r, c)| subtract(&mut residual[r as usize], c, atom));
    }
    for _ in 0..SWEEPS {
        for (j, atom) in slice.iter_mut().enumerate() {
            update_atom(atom, users.of(j), &mut residual);
        }
    }
    slice
}

fn update_atom(atom: &mut [f32; SLICE], users: &[(u32, f32)], residual: &mut [[f32; SLICE]]) {
    let (mut step, mut square) = ([0.0f32; SLICE], 0.0f32);
    for &(r, c) in users {
        let residual = &residual[r as usize];
        (0..SLICE).for_each(|i| step[i] += c * residual[i]);
        square += c * c;
    }
    if square <= f32::MIN_POSITIVE {
        return;
    }
    (0..SLICE).for_each(|i| step[i] /= square);
    (0..SLICE).for_each(|i| atom[i] += step[i]);
    users.iter().for_each(|&(r, c)| subtract(&mut residual[r as usize], c, &step));
}

fn subtract(out: &mut [f32; SLICE], factor: f32, x: &[f32; SLICE]) {
    (0..SLICE).for_each(|i| out[i] -= factor * x[i]);
}
