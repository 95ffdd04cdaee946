//! The sparse product as its definition says it: reference for the fast forms.

use super::{ColumnIndex, Entries, SparseMatrix};
use crate::transpose::Store;
use crate::{Columns, Output};

pub(super) fn product(m: &SparseMatrix<'_>, store: Store, x: Columns<'_>, y: &mut Output<'_>) {
    let rows = y.rows();
    for t in 0..x.n_tokens() {
        let mut i = m.first_entry(rows.start);
        for (out, r) in y.token_rows(t, rows.clone()).iter_mut().zip(rows.clone()) {
            let mut sum = 0.0f32;
            while let Some(column) = column(m, r, i) {
                sum = m.vals[i].to_f32().mul_add(x.token(t)[column], sum);
                i += 1;
            }
            store.store(out, sum);
        }
    }
}

/// Column of entry `i` if it exists and is in row `r`.
fn column(m: &SparseMatrix<'_>, r: usize, i: usize) -> Option<usize> {
    match m.entries {
        Entries::Flat(positions) => {
            let position = *positions.get(i)? as usize;
            (position / m.d_in == r).then_some(position % m.d_in)
        }
        Entries::Rows(k, _) if i >= (r + 1) * k => None,
        Entries::Rows(_, ColumnIndex::I16(columns)) => Some(columns[i] as usize),
        Entries::Rows(_, ColumnIndex::I32(columns)) => Some(columns[i] as usize),
    }
}
