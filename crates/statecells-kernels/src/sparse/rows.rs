//! The sparse product as its definition says it: reference for the fast forms.

use super::{Entries, SparseMatrix};
use crate::{Columns, Output};

/// Adds the rows of one thread.
pub(super) fn add_plain(matrix: &SparseMatrix<'_>, x: Columns<'_>, y: &mut Output<'_>) {
    let Entries::Flat(positions) = matrix.entries;
    for t in 0..x.n_tokens() {
        let (x, rows) = (x.token(t), y.rows());
        let mut i = positions.partition_point(|&p| (p as usize) < rows.start * matrix.d_in);
        for (out, r) in y.token_rows(t, rows.clone()).iter_mut().zip(rows) {
            let (begin, mut sum) = (r * matrix.d_in, 0.0f32);
            while i < positions.len() && (positions[i] as usize) < begin + matrix.d_in {
                sum = matrix.vals[i].to_f32().mul_add(x[positions[i] as usize - begin], sum);
                i += 1;
            }
            *out += sum;
        }
    }
}
