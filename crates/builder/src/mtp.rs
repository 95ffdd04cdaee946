//! What a build does with layers for multi-token prediction, see [`inspect::mtp`].

use std::ops::Range;

use format::MatrixId;
use inspect::mtp::key;
use program::Selection;

use crate::{Error, Source};

impl Source {
    /// Whether `tensor` is in a layer that text does not run through.
    #[must_use]
    pub fn is_mtp(&self, tensor: MatrixId) -> bool {
        self.mtp_layers().contains(&tensor.layer)
    }

    /// The tensors that `selection` asks for; those of MTP layers only if it names layers or tensors.
    ///
    /// # Errors
    /// As [`Selection::resolve`].
    pub fn select(&self, selection: &Selection) -> Result<Vec<MatrixId>, Error> {
        let by_name = selection.layers.is_some() || selection.tensors.is_some();
        let available: Vec<MatrixId> = self.matrices().collect();
        let mut selected = selection.resolve(&available, self.n_layers())?;
        selected.retain(|tensor| by_name || !self.is_mtp(*tensor));
        if selected.is_empty() {
            let reason = format!("all FFNs are in {}: name some to code them", self.describe_mtp());
            return Err(Error::flag("--layers", reason));
        }
        Ok(selected)
    }

    /// What has to be said about MTP layers of which `tensors` are coded, by a build that is `informed` about
    /// inputs; `None` if there is nothing to say.
    pub(crate) fn mtp_note(&self, tensors: &[MatrixId], informed: bool) -> Option<String> {
        let outcome = match tensors.iter().any(|tensor| self.is_mtp(*tensor)) {
            true if informed => "are coded from their weights alone: no text runs through them",
            true => return None,
            false => "stay dense: no text runs through them (--layers codes those that it names)",
        };
        self.has_mtp().then(|| format!("note: {} {outcome}", self.describe_mtp()))
    }

    /// Whether any FFN matrix is in an MTP layer.
    #[must_use]
    pub fn has_mtp(&self) -> bool {
        self.matrices().any(|tensor| self.is_mtp(tensor))
    }

    /// `layers for multi-token prediction (40-41, by glm4.nextn_predict_layers = 2)`.
    #[must_use]
    pub fn describe_mtp(&self) -> String {
        let Range { start, end } = self.mtp_layers();
        let last = end.saturating_sub(1);
        let numbers = if start == last { start.to_string() } else { format!("{start}-{last}") };
        let key = key(self.architecture());
        format!("layers for multi-token prediction ({numbers}, by {key} = {})", end - start)
    }
}
