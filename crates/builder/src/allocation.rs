//! A budget that a method shares out among all tensors, before any of them is encoded.

use std::collections::BTreeMap;
use std::path::Path;

use calibration::{CalibratedInput, Calibration};
use format::MatrixId;
use numerics::{EncodeContext, MatMul};
use program::{Interrupt, Reporter};

use crate::{BuildOptions, Encoding, Error, Importance, Plan, PlanItem, Record, Source, Steps};

/// Under which name an allocation stands among the arguments of a record.
const ARGUMENT: &str = "the allocation";

/// What each tensor got, in the method's own unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation(pub BTreeMap<MatrixId, u64>);

/// What a method may look at to share out its budget.
pub struct Survey<'a> {
    /// The source model.
    pub source: &'a Source,
    /// All tensors, planned as if there were no budget.
    pub plan: &'a Plan,
    /// Importance of the inputs of every tensor of the plan that text runs through; `None` if nothing is known.
    pub importance: Option<&'a BTreeMap<MatrixId, Importance>>,
    /// Activations of the same inputs; `None` without a calibration.
    pub calibration: Option<&'a Calibration>,
    /// What will happen to results.
    pub options: &'a BuildOptions,
    /// Dense products.
    pub mul_mat: &'a dyn MatMul,
    /// Where progress goes.
    pub reporter: &'a Reporter,
    /// When to stop.
    pub interrupt: &'a Interrupt,
}

impl Survey<'_> {
    /// What `look` finds about each tensor, in the order of the plan.
    ///
    /// # Errors
    /// [`Error::Codec`] with what `look` says, [`Error::Inspect`], [`Error::Calibration`] or
    /// [`Error::Stopped`].
    pub fn each<T>(
        &self,
        mut look: impl FnMut(&Encoding<'_>) -> Result<T, format::CodecError>,
    ) -> Result<Vec<T>, Error> {
        self.reporter.stage("sharing out the budget", self.plan.items.len() as u64);
        let mut found = Vec::new();
        for (input, items) in self.plan.sites() {
            let seen = self.calibration.filter(|_| !self.source.is_mtp(items[0].tensor));
            let calibrated = seen.map(|calibration| calibration.input(input)).transpose()?;
            for item in items {
                found.push(self.look_at(item, calibrated.as_ref(), &mut look)?);
                self.reporter.advance(1);
            }
        }
        Ok(found)
    }

    fn look_at<T>(
        &self,
        item: &PlanItem,
        calibrated: Option<&CalibratedInput>,
        look: &mut impl FnMut(&Encoding<'_>) -> Result<T, format::CodecError>,
    ) -> Result<T, Error> {
        if self.interrupt.is_set() {
            return Err(Error::Stopped);
        }
        let error = |cause| Error::Codec { tensor: item.tensor.weight(), cause };
        let weights = self.source.weights(item.tensor)?;
        let importance = self.importance.and_then(|all| all.get(&item.tensor));
        // Progress of single tensors is not shown while there are many.
        let silent = Reporter::silent();
        let context = EncodeContext {
            mul_mat: self.mul_mat,
            importance: importance.map(|i| i.shaped.as_slice()),
            seed: item.seed,
            progress: &Steps(&silent),
        };
        let (source, context) = (self.source, &context);
        look(&Encoding { item, weights: &weights, source, calibrated, importance, context })
            .map_err(error)
    }
}

impl Allocation {
    /// The allocation that `record` tells of.
    pub(crate) fn of(record: Option<&Record>) -> Option<Self> {
        let text = record?.arguments.get(ARGUMENT)?;
        let entry = |entry: &str| {
            let (stem, share) = entry.split_once(' ')?;
            let tensor = MatrixId::of_stem(stem)?;
            Some((tensor, share.parse().ok()?))
        };
        text.split(", ").map(entry).collect::<Option<_>>().map(Self)
    }

    /// Makes the allocation part of what a later run must repeat.
    pub(crate) fn record(&self, record: &mut Record) {
        let entries: Vec<String> =
            self.0.iter().map(|(tensor, share)| format!("{} {share}", tensor.stem())).collect();
        record.arguments.insert(ARGUMENT.to_owned(), entries.join(", "));
    }

    /// Checks that exactly `tensors` share the budget with which `path` was begun.
    ///
    /// # Errors
    /// [`Error::Resume`].
    pub(crate) fn check_covers(&self, tensors: &[MatrixId], path: &Path) -> Result<(), Error> {
        if tensors.iter().eq(self.0.keys()) {
            return Ok(());
        }
        let reason = format!(
            "its budget was shared out over {} tensors, not over these {}: a file with a budget cannot \
             grow; repeat --layers and --targets, or start anew with --force",
            self.0.len(),
            tensors.len()
        );
        Err(Error::Resume { path: path.to_owned(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_give_the_allocation_back() {
        let tensor = |stem: &str| MatrixId::of_stem(stem).unwrap();
        let allocation =
            Allocation([(tensor("blk.0.ffn_up"), 4), (tensor("blk.11.ffn_down"), 10)].into());
        let mut record = Record {
            record_version: 1,
            tool: String::new(),
            tool_version: String::new(),
            llama_cpp: String::new(),
            input_sha256: String::new(),
            input_bytes: 0,
            arguments: BTreeMap::new(),
            machines: std::collections::BTreeSet::new(),
            planned: std::collections::BTreeSet::new(),
            tensors: BTreeMap::new(),
        };
        assert_eq!(Allocation::of(Some(&record)), None);
        allocation.record(&mut record);
        assert_eq!(Allocation::of(Some(&record)), Some(allocation.clone()));
        let path = Path::new("out.gguf");
        let all: Vec<MatrixId> = allocation.0.keys().copied().collect();
        allocation.check_covers(&all, path).unwrap();
        let message = allocation.check_covers(&all[..1], path).unwrap_err().to_string();
        assert!(message.contains("out.gguf") && message.contains("over 2 tensors"), "{message}");
        record.arguments.insert(ARGUMENT.to_owned(), "blk.0.ffn_up four".to_owned());
        assert_eq!(Allocation::of(Some(&record)), None);
    }
}
