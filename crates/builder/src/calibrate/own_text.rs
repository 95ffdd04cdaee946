//! The text that a model writes itself, kept on disk while it grows: a killed program goes on with what is there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;
use calibration::capture::OwnText;
use calibration::{Calibration, ModelId, Provenance, TextId};
use llama::{Model, Token};
use program::progress::Eta;
use program::{Interrupt, Reporter, files};

use super::texts::Text;
use super::{CalibrationJob, contexts, provenance, write as write_calibration};

/// What such a text is called where others have the name of a file.
const NAME: &str = "own text";

/// Lets `model` write about `n_tokens` tokens in contexts from number `first` on, or go on with what it has written of them.
/// What is written depends on the model, the seed, the length of the contexts and the kind of machine, not on the number of
/// threads.
pub(super) fn write(
    (job, model): (&CalibrationJob, &Model),
    (first, n_tokens): (usize, usize),
    model_id: &ModelId,
    (reporter, interrupt): (&Reporter, &Interrupt),
) -> Result<Text> {
    let bos = model.bos();
    let (n_contexts, n_body) = (n_tokens / job.ctx, job.ctx - usize::from(bos.is_some()));
    let unfinished = unfinished(&job.output);
    let mut writer = OwnText::new(model, job.ctx, job.n_threads, job.seed)?;
    let mut tokens = begun(&unfinished, (job, model_id), (first, bos)).unwrap_or_default();
    // Which passages are written side by side decides about the last bits of predictions: only those stay that would be
    // written in the same company.
    let mut done = (tokens.len() / n_body).min(n_contexts);
    done -= done % writer.side_by_side();
    tokens.truncate(done * n_body);
    let mut text = Text { ids: vec![id(first, &tokens)], tokens };
    reporter.stage("the model writes its text", (n_contexts * n_body) as u64);
    reporter.advance((done * n_body) as u64);
    let mut eta = Eta::new(((n_contexts - done) * n_body) as u64);
    while done < n_contexts {
        let n = (n_contexts - done).min(writer.side_by_side());
        let mut heard = || {
            reporter.advance(n as u64);
            eta.advance(n as u64);
            interrupt.is_set()
        };
        let numbers = first + done..first + done + n;
        text.tokens.extend(writer.write(numbers, &mut heard)?);
        text.ids = vec![id(first, &text.tokens)];
        done += n;
        let so_far = contexts(job, done * job.ctx, &text, bos)?;
        let provenance = provenance((job, model_id), &so_far, &text, bos)?;
        write_calibration(&unfinished, &provenance, &BTreeMap::new(), interrupt)?;
        let left = eta.advance(0);
        reporter
            .line(&format!("wrote {done} of {n_contexts} contexts of its own text; ETA {left}"));
    }
    Ok(text)
}

/// Removes what was kept of the text while it grew for a calibration at `output`.
pub(super) fn forget(output: &Path) {
    // That there is none is no error, and what stays behind is a small file that says what it is.
    let _ = std::fs::remove_file(unfinished(output));
}

/// Where the text is kept while it grows.
fn unfinished(output: &Path) -> PathBuf {
    let mut name = OsString::from(output.as_os_str());
    name.push(".own-text");
    name.into()
}

/// What was written of this very text before, without BOS.
fn begun(
    path: &Path,
    (job, model_id): (&CalibrationJob, &ModelId),
    (first, bos): (usize, Option<Token>),
) -> Option<Vec<Token>> {
    let calibration = Calibration::open(path).ok()?;
    let found = calibration.provenance();
    let fits = found.model == *model_id
        && is_own(found, first)
        && (found.n_ctx as usize, found.seed) == (job.ctx, job.seed)
        && found.llama_cpp == ggml::LLAMA_CPP_VERSION;
    let skipped = usize::from(bos.is_some());
    fits.then(|| found.tokens.chunks(job.ctx).flat_map(|c| &c[skipped..]).copied().collect())
}

/// Whether the model wrote the text of a calibration itself, from passage number `first` on.
pub(super) fn is_own(provenance: &Provenance, first: usize) -> bool {
    matches!(&provenance.texts[..], [only] if only.name == name(first))
}

/// What the text that begins with passage number `first` is called.
fn name(first: usize) -> String {
    if first == 0 { NAME.to_owned() } else { format!("{NAME} from passage {first} on") }
}

fn id(first: usize, tokens: &[Token]) -> TextId {
    let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    let sha256 = files::sha256(&mut &bytes[..], |_| Ok(())).expect("memory can be read");
    TextId { name: name(first), sha256 }
}
