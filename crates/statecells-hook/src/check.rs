//! The guardian (`--statecells-check`): finds what is not a number before it spreads.

use std::ops::Range;

use format::MatrixShape;
use statecells_kernels::Part;

use crate::error::HookError;
use crate::product::Call;

/// Where a value that is not finite was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// In an input: something before the product made it.
    Input,
    /// In an output, while the thread's inputs were finite: the product made it.
    Output,
}

/// A value that is not finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// Side of the product.
    pub place: Place,
    /// Column of the product.
    pub token: usize,
    /// Input or output within the column.
    pub index: usize,
    /// NaN or an infinity.
    pub value: f32,
}

/// What one thread looks at: every `nth` token of the inputs, and of all tokens the outputs that it wrote.
#[derive(Clone, Debug)]
pub struct Share {
    shape: MatrixShape,
    call: Call,
    rows: Range<usize>,
}

impl Share {
    /// The share of the thread that `call` is about.
    pub fn new(shape: MatrixShape, call: Call) -> Result<Self, HookError> {
        let rows = Part::new(call.ith, call.nth)?.rows(shape.d_out);
        Ok(Self { shape, call, rows })
    }

    /// Outputs that this thread wrote, as positions in `y` ([d_out, n_tokens]), token by token.
    pub fn outputs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let d_out = self.shape.d_out;
        (0..self.call.n_tokens).map(move |t| t * d_out + self.rows.start..t * d_out + self.rows.end)
    }

    /// The first of this thread's inputs in `x` ([d_in, n_tokens]) that is not finite.
    pub fn input(&self, x: &[f32]) -> Option<Finding> {
        let tokens = x.chunks_exact(self.shape.d_in).enumerate();
        tokens.skip(self.call.ith).step_by(self.call.nth).find_map(|(token, x)| {
            let index = x.iter().position(|v| !v.is_finite())?;
            Some(Finding { place: Place::Input, token, index, value: x[index] })
        })
    }

    /// The first value that is not finite among the outputs `y` that this thread wrote for `token`.
    pub fn output(&self, token: usize, y: &[f32]) -> Option<Finding> {
        let at = y.iter().position(|v| !v.is_finite())?;
        let index = self.rows.start + at;
        Some(Finding { place: Place::Output, token, index, value: y[at] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(ith: usize, nth: usize) -> Share {
        let shape = MatrixShape::new(5, 70);
        Share::new(shape, Call { n_tokens: 3, ith, nth }).unwrap()
    }

    #[test]
    fn the_threads_together_look_at_everything_once() {
        for nth in [1, 2, 3, 7] {
            let mut outputs = vec![0; 70 * 3];
            for ith in 0..nth {
                share(ith, nth).outputs().flatten().for_each(|i| outputs[i] += 1);
            }
            assert!(outputs.iter().all(|n| *n == 1), "{nth} threads");
            for bad in 0..15 {
                let mut x = [0.0; 15];
                x[bad] = f32::NAN;
                let found: Vec<Finding> =
                    (0..nth).filter_map(|i| share(i, nth).input(&x)).collect();
                assert_eq!(found.len(), 1, "{nth} threads, value {bad}");
                assert_eq!((found[0].token, found[0].index), (bad / 5, bad % 5));
            }
        }
    }

    #[test]
    fn only_what_is_not_finite_is_found() {
        let fine = [0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE / 2.0];
        assert_eq!(share(0, 1).output(1, &fine), None);
        for value in [f32::INFINITY, f32::NEG_INFINITY] {
            let found = share(0, 1).output(1, &[1.0, value]).unwrap();
            assert_eq!(found, Finding { place: Place::Output, token: 1, index: 1, value });
        }
    }
}
