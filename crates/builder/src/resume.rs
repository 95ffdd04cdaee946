//! Going on with the work folder of an earlier run, or beginning one.

use std::path::Path;

use crate::{Error, Existing, Method, Record, Stage, WorkFolder};

/// Opens the work folder of a run described by `record` and checks that it may continue what is there.
///
/// # Errors
/// [`Error::Exists`], [`Error::Locked`], [`Error::Parameter`], [`Error::OtherInput`] or [`Error::Program`].
pub fn open_work_folder(
    path: &Path,
    existing: Existing,
    checkpoint_every: usize,
    record: &Record,
    method: &dyn Method,
) -> Result<WorkFolder, Error> {
    let work = WorkFolder::open(path, existing, checkpoint_every)?;
    match work.record()? {
        Some(earlier) if work.n_kept() > 0 => {
            record.check_checkpoints(&earlier, path, method)?;
            record.check_input(&earlier, path)?;
            if let Some(first) = record.changed_stage(&earlier, method) {
                let later = Stage::ALL.into_iter().filter(|stage| *stage >= first);
                later.into_iter().try_for_each(|stage| work.forget(stage))?;
            }
        }
        // Without a record nothing tells what checkpoints belong to; without checkpoints the record binds nobody.
        _ => Stage::ALL.into_iter().try_for_each(|stage| work.forget(stage))?,
    }
    match work.set_record(record) {
        Err(error) if work.n_kept() == 0 => {
            // An empty folder would be in the way of the next run. The first error is the one to report.
            let _ = work.remove();
            Err(error)
        }
        result => result.map(|()| work),
    }
}
