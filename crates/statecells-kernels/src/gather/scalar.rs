//! The gather as its definition says it: reference for the fast forms.

use super::Product;
use crate::Output;

pub(super) fn product(product: &Product<'_>, y: &mut Output<'_>) {
    for t in 0..product.p.n_tokens() {
        let rows = y.rows();
        for (out, r) in y.token_rows(t, rows.clone()).iter_mut().zip(rows) {
            *out = row(product, t, r);
        }
    }
}

/// One element of the result.
fn row(product: &Product<'_>, t: usize, r: usize) -> f32 {
    let matrix = &product.matrix;
    let (k, p) = (matrix.shape.k, product.p.token(t));
    let mut sum = 0.0f32;
    for i in r * k..(r + 1) * k {
        let signed = match matrix.codes[i] {
            0 => 0.0,
            code if code < 0 => -p[usize::from(code.unsigned_abs()) - 1],
            code => p[usize::from(code.unsigned_abs()) - 1],
        };
        sum = match matrix.vals {
            Some(vals) => vals[i].to_f32().mul_add(signed, sum),
            None => sum + signed,
        };
    }
    sum * matrix.row_scale.map_or(1.0, |s| s[r].to_f32()) * product.token_scale(t)
}
