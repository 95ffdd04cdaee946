//! Dictionaries that the matrices of one input have in common, so that the run time builds its tables once for all.

use std::sync::{Mutex, PoisonError};

use format::{CodecError, InputId, MatrixId, MatrixShape};
use sections::{DICTIONARY_ROWS, SectionsCodec, spread};

use crate::Encoding;

/// The codec with the dictionary of the last input, and the shrinkage of its second moment.
#[derive(Debug, Default)]
pub(super) struct SharedDictionaries(Mutex<Option<Known>>);

#[derive(Clone, Debug)]
struct Known {
    input: InputId,
    sections: usize,
    codec: SectionsCodec,
    shrink: Option<f64>,
}

impl SharedDictionaries {
    /// The codec of all matrices that read what that of `encoding` reads and have as many sections; `make` makes that of
    /// another input than the last, the same for each of its matrices.
    pub(super) fn codec(
        &self,
        encoding: &Encoding<'_>,
        sections: usize,
        make: impl FnOnce() -> Result<(SectionsCodec, Option<f64>), CodecError>,
    ) -> Result<(SectionsCodec, Option<f64>), CodecError> {
        let input = encoding.item.tensor.input();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*last
            && (known.input, known.sections) == (input, sections)
        {
            return Ok((known.codec.clone(), known.shrink));
        }
        *last = None; // before the next is made: a metric is as large as its input squared
        let (codec, shrink) = make()?;
        *last = Some(Known { input, sections, codec: codec.clone(), shrink });
        Ok((codec, shrink))
    }
}

/// The matrices of the model that read what that of `encoding` reads.
fn readers(encoding: &Encoding<'_>) -> Vec<MatrixId> {
    let input = encoding.item.tensor.input();
    let all = encoding.source.map().matrices().map(|matrix| matrix.id);
    all.filter(|id| id.input() == input).collect()
}

/// Whether another matrix reads what that of `encoding` reads.
pub(super) fn has_two(encoding: &Encoding<'_>) -> bool {
    readers(encoding).len() > 1
}

/// Rows of all matrices of the model that read what that of `encoding` reads, [d_in, n].
pub(super) fn rows(encoding: &Encoding<'_>) -> Result<(Vec<f32>, MatrixShape), CodecError> {
    let (readers, source) = (readers(encoding), encoding.source);
    let mut rows = Vec::new();
    for id in &readers {
        let picked = spread(source.shape(*id).d_out, DICTIONARY_ROWS / readers.len());
        let read = source.rows(*id, &picked);
        let error = |e: crate::Error| CodecError::Sidecar { suffix: "dict", reason: e.to_string() };
        rows.extend(read.map_err(error)?);
    }
    let d_in = encoding.item.shape.d_in;
    let shape = MatrixShape::new(d_in, rows.len() / d_in);
    Ok((rows, shape))
}
