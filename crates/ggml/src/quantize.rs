//! Quantization: from `f32` to ggml's block types.

use ggml_sys as sys;
use rayon::prelude::*;

use crate::types::{Aligned, ROWS_PER_TASK};
use crate::{Type, TypeError};

/// Squares of larger values leave the range of `f32`, and some quantizers then abort.
const LARGEST_QUANTIZABLE: f32 = 1e15;

impl Type {
    /// Whether [`Self::quantize`] needs an importance.
    #[must_use]
    pub fn needs_importance(self) -> bool {
        // SAFETY: the function only compares.
        unsafe { sys::ggml_quantize_requires_imatrix(self.raw()) }
    }

    /// Quantizes rows of `n_per_row` values, on rayon's threads.
    ///
    /// `importance` weighs the squared error of each of the `n_per_row` inputs.
    ///
    /// # Errors
    /// [`TypeError::NotQuantizable`], [`TypeError::NeedsImportance`], [`TypeError::Row`],
    /// [`TypeError::Size`] if `values` are not whole rows or `importance` is not one row, and
    /// [`TypeError::NotFinite`].
    pub fn quantize(
        self,
        values: &[f32],
        n_per_row: usize,
        importance: Option<&[f32]>,
    ) -> Result<Vec<u8>, TypeError> {
        let row_bytes = self.check_quantize(values, n_per_row, importance)?;
        let n_bytes = self.row_bytes(values.len()).expect("whole rows of whole blocks");
        let mut out = vec![0u8; n_bytes];
        if !values.is_empty() {
            out.par_chunks_mut(row_bytes * ROWS_PER_TASK)
                .zip(values.par_chunks(n_per_row * ROWS_PER_TASK))
                .for_each(|(out, rows)| self.quantize_rows(rows, n_per_row, importance, out));
        }
        Ok(out)
    }

    fn check_quantize(
        self,
        values: &[f32],
        n_per_row: usize,
        importance: Option<&[f32]>,
    ) -> Result<usize, TypeError> {
        if !self.is_quantizable() {
            return Err(TypeError::NotQuantizable(self));
        }
        if self.needs_importance() && importance.is_none() {
            return Err(TypeError::NeedsImportance(self));
        }
        let row_bytes = self
            .row_bytes(n_per_row)
            .filter(|&bytes| bytes > 0)
            .ok_or(TypeError::Row { ty: self, n_per_row })?;
        let whole = values.len().is_multiple_of(n_per_row);
        if !whole || importance.is_some_and(|w| w.len() != n_per_row) {
            let n_values = importance.map_or(values.len(), <[f32]>::len);
            return Err(TypeError::Size { ty: self, n_bytes: row_bytes, n_values });
        }
        check_range(values)?;
        importance.map_or(Ok(()), check_range)?;
        Ok(row_bytes)
    }

    /// Whether [`Self::quantize`] makes it: `ggml_quantize_chunk` aborts on all others.
    #[must_use]
    pub fn is_quantizable(self) -> bool {
        let plain =
            matches!(self.raw(), sys::GGML_TYPE_F32 | sys::GGML_TYPE_F16 | sys::GGML_TYPE_BF16);
        // Q8_1 and Q8_K only exist inside of products.
        let internal = matches!(self.raw(), sys::GGML_TYPE_Q8_1 | sys::GGML_TYPE_Q8_K);
        plain || self.traits().is_quantized && !internal
    }

    fn quantize_rows(
        self,
        rows: &[f32],
        n_per_row: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) {
        let importance = importance.map_or(std::ptr::null(), <[f32]>::as_ptr);
        let mut aligned = Aligned::zeroed(out.len());
        // SAFETY: the type has a quantizer and an importance where it needs one, `rows` holds whole rows
        // of whole blocks and `aligned` is as long as they
        // need (all checked in `check_quantize`).
        let written = unsafe {
            sys::ggml_quantize_chunk(
                self.raw(),
                rows.as_ptr(),
                aligned.as_bytes_mut().as_mut_ptr().cast(),
                0,
                (rows.len() / n_per_row) as i64,
                n_per_row as i64,
                importance,
            )
        };
        assert_eq!(written, out.len(), "ggml wrote another size than it announced");
        out.copy_from_slice(aligned.as_bytes());
    }
}

fn check_range(values: &[f32]) -> Result<(), TypeError> {
    let outside = |v: &f32| v.is_nan() || v.abs() > LARGEST_QUANTIZABLE;
    match values.par_iter().position_first(outside) {
        Some(index) => Err(TypeError::NotFinite { index, value: values[index] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of one row that no quantizer finds special.
    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
    }

    #[test]
    fn every_quantizer_comes_close_and_is_the_same_for_each_row() {
        const N_PER_ROW: usize = 512;
        const N_ROWS: usize = ROWS_PER_TASK + 3;
        let values = row(N_PER_ROW).repeat(N_ROWS);
        let importance = vec![1.0; N_PER_ROW];
        let mut n_types = 0;
        // ggml takes up to a minute to build the search tables of the types below 3 bits.
        let slow = |ty: &Type| ["iq1", "iq2"].iter().any(|p| ty.name().starts_with(p));
        for ty in Type::all().filter(|t| t.is_quantizable() && !slow(t)) {
            let bytes = ty.quantize(&values, N_PER_ROW, Some(&importance)).unwrap();
            let mut out = vec![0.0; values.len()];
            ty.rows_to_float(&bytes, N_PER_ROW, &mut out).unwrap();
            let error: f32 = values.iter().zip(&out).map(|(a, b)| (a - b) * (a - b)).sum();
            let energy: f32 = values.iter().map(|a| a * a).sum();
            // One bit keeps the signs of uniform values: error 1/4. The others are far better.
            assert!(error / energy < 0.3, "{ty}: {}", error / energy);
            let rows: Vec<_> = bytes.chunks(ty.row_bytes(N_PER_ROW).unwrap()).collect();
            assert!(rows.iter().all(|r| *r == rows[0]), "{ty}");
            n_types += 1;
        }
        assert!(n_types >= 22, "{n_types}");
    }

    #[test]
    fn quantize_refuses_what_ggml_would_abort_on() {
        let iq2 = Type::from_name("iq2_xxs").unwrap();
        let values = row(256);
        assert_eq!(iq2.quantize(&values, 256, None), Err(TypeError::NeedsImportance(iq2)));
        assert!(iq2.quantize(&values, 256, Some(&values[..255])).is_err());
        assert_eq!(
            Type::I16.quantize(&values, 256, None),
            Err(TypeError::NotQuantizable(Type::I16))
        );
        assert!(matches!(Type::Q4_K.quantize(&values, 64, None), Err(TypeError::Row { .. })));
        assert!(matches!(Type::Q4_0.quantize(&values, 0, None), Err(TypeError::Row { .. })));
        assert!(matches!(Type::Q4_0.quantize(&values, 96, None), Err(TypeError::Size { .. })));
        for bad in [f32::NAN, f32::INFINITY, -1e30] {
            let mut values = values.clone();
            values[7] = bad;
            let error = Type::Q4_K.quantize(&values, 256, None).unwrap_err();
            assert!(matches!(error, TypeError::NotFinite { index: 7, .. }));
        }
    }
}
