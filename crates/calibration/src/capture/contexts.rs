//! Which tokens are run, in which contexts, and which of them are held out.

use super::CaptureError;
use crate::{PassageKind, passage_kind};

/// Contexts that a calibration needs at least; one of them is held out.
pub const MIN_CONTEXTS: usize = 8;

/// Contexts spread evenly over a text, every tenth of them held out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contexts {
    n_ctx: usize,
    /// Tokens of text per context: one less than `n_ctx` where contexts begin with BOS.
    n_body: usize,
    starts: Vec<usize>,
    n_available: usize,
    /// Contexts that were run before these.
    n_before: usize,
}

impl Contexts {
    /// Contexts of `n_ctx` tokens, about `tokens` in all or as many as the text of `n_text` tokens has.
    ///
    /// # Errors
    /// [`CaptureError::TooLittleText`] or [`CaptureError::TooFewTokens`].
    pub fn new(
        n_text: usize,
        tokens: usize,
        n_ctx: usize,
        has_bos: bool,
    ) -> Result<Self, CaptureError> {
        let n_body = n_ctx - usize::from(has_bos);
        let (wanted, n_available) = (tokens / n_ctx, n_text / n_body);
        if wanted < MIN_CONTEXTS {
            let needed = MIN_CONTEXTS * n_ctx;
            return Err(CaptureError::TooFewTokens { tokens, needed, n_ctx });
        }
        if n_available < MIN_CONTEXTS {
            let needed = MIN_CONTEXTS * n_body;
            return Err(CaptureError::TooLittleText { n_tokens: n_text, needed, n_ctx });
        }
        let n = wanted.min(n_available);
        let starts = (0..n).map(|i| spread(i, n_available, n) * n_body).collect();
        Ok(Self { n_ctx, n_body, starts, n_available: n_available * n_ctx, n_before: 0 })
    }

    /// The same contexts behind `n_before` others of the same calibration, with which they are counted.
    #[must_use]
    pub fn behind(self, n_before: usize) -> Self {
        Self { n_before, ..self }
    }

    /// Tokens per context, BOS included.
    #[must_use]
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Number of contexts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Always `false`: there are at least [`MIN_CONTEXTS`] contexts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Tokens in contexts of `kind`, BOS included.
    #[must_use]
    pub fn n_tokens(&self, kind: PassageKind) -> usize {
        self.n_ctx * (0..self.len()).filter(|&i| self.kind(i) == kind).count()
    }

    /// Tokens that the text would have been good for, BOS included.
    #[must_use]
    pub fn n_available(&self) -> usize {
        self.n_available
    }

    /// The contexts in order, cut from the text's `tokens` (without BOS).
    ///
    /// # Panics
    /// If `tokens` is shorter than the text that the contexts were chosen for.
    pub fn passages<'a, T>(
        &'a self,
        tokens: &'a [T],
    ) -> impl Iterator<Item = (PassageKind, &'a [T])> {
        let cut =
            |(i, &start): (usize, &usize)| (self.kind(i), &tokens[start..start + self.n_body]);
        self.starts.iter().enumerate().map(cut)
    }

    fn kind(&self, i: usize) -> PassageKind {
        passage_kind(self.n_before + i)
    }
}

/// `i * n_available / n` without overflow.
fn spread(i: usize, n_available: usize, n: usize) -> usize {
    (i as u128 * n_available as u128 / n as u128) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn contexts_are_disjoint_spread_and_a_tenth_is_held_out(
            n_text in 0usize..20_000,
            tokens in 0usize..10_000,
            n_ctx in 16usize..64,
            has_bos: bool,
        ) {
            let text: Vec<usize> = (0..n_text).collect();
            match Contexts::new(n_text, tokens, n_ctx, has_bos) {
                Err(CaptureError::TooFewTokens { .. }) => prop_assert!(tokens < 8 * n_ctx),
                Err(_) => prop_assert!(n_text < 8 * n_ctx),
                Ok(contexts) => {
                    let passages: Vec<_> = contexts.passages(&text).collect();
                    let n_body = n_ctx - usize::from(has_bos);
                    prop_assert!(passages.iter().all(|(_, p)| p.len() == n_body));
                    prop_assert!(passages.windows(2).all(|w| w[0].1[n_body - 1] < w[1].1[0]));
                    prop_assert!(contexts.len() * n_ctx <= tokens);
                    let held_out =
                        passages.iter().filter(|(k, _)| *k == PassageKind::HeldOut).count();
                    prop_assert!(held_out >= 1 && held_out.abs_diff(contexts.len() / 10) <= 1);
                    prop_assert_eq!(contexts.n_tokens(PassageKind::HeldOut), held_out * n_ctx);
                    prop_assert_eq!(
                        contexts.n_tokens(PassageKind::Fitted) + held_out * n_ctx,
                        contexts.len() * n_ctx
                    );
                    let last = passages[contexts.len() - 1].1[0];
                    prop_assert!(last + n_text / contexts.len() + 2 * n_body >= n_text);
                }
            }
        }
    }
}
