//! How much an error in each matrix changes what the model says (`statecells-build --measure-sensitivity`).
//!
//! For every layer the model with that layer alone coded coarsely is run on a text, and its mean Kullback-Leibler
//! divergence from the dense model is divided by the sum of the layer's errors (by token, on the calibration's hold-out).
//! Then the same for every role, coded in all layers: by how much the model diverges more than the layers' figures say is a
//! factor of its own. What comes out is scaled to a mean of 1.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use format::{MatrixId, Role};
use program::progress::Eta;
use program::{Interrupt, Reporter, Selection, files, outputs};
use sections::SectionsParams;

use super::divergence::{Divergence, FLAG, Passage};
use super::{Moments, SectionsMethod};
use crate::error::watch;
use crate::report::TensorReport;
use crate::{BuildOptions, CalibrationSource, Error, Existing, Job, Shaping, Source};

/// The coarse code: its errors are to show in the model's outputs, not to be small.
const COARSE: (usize, usize, usize) = (5, 4, 0);

/// What is measured on what.
#[derive(Clone, Debug)]
pub struct SensitivityRun {
    /// Name and version of the program.
    pub tool: (&'static str, &'static str),
    /// The dense model.
    pub input: PathBuf,
    /// Its calibration, which says how large errors are.
    pub calib: PathBuf,
    /// Text to run on, neither calibrated on nor evaluated on.
    pub text: PathBuf,
    /// Contexts of 512 tokens of it.
    pub n_contexts: usize,
    /// JSON file to write; `None` in a dry run.
    pub output: Option<PathBuf>,
    /// Whether the JSON file may be replaced.
    pub replaces: bool,
    /// Which second moments are used.
    pub moments: Moments,
    /// Threads.
    pub n_threads: usize,
    /// Seed of the coarse code.
    pub seed: u64,
}

/// Errors of the matrices of a coarsely coded part, and what they did to the model.
struct Coarse {
    divergence: f64,
    /// Held-out error by token of every matrix that was coded.
    errors: BTreeMap<MatrixId, f64>,
}

impl SensitivityRun {
    /// Checks everything that can be known before the work.
    ///
    /// # Errors
    /// [`Error`] if the measurement could not be done as it is.
    pub fn check(&self) -> Result<Source, Error> {
        std::fs::File::open(&self.text).map_err(program::io(&self.text, "read"))?;
        let source = Source::open(&self.input)?;
        self.job(Selection::default(), None).check()?;
        let Some(output) = self.output.as_deref() else { return Ok(source) };
        let read = [("-i", &self.input), ("--calib", &self.calib), (FLAG, &self.text)];
        let read = read.map(|(flag, path)| (flag, path.as_path()));
        outputs::check_distinct(&read, &[("-o", output)])?;
        outputs::check_output(output)?;
        outputs::check_absent(FLAG, output, self.replaces)?;
        // A coded model, its checkpoints and the dense model's predictions stand beside the result meanwhile.
        let needed = source.n_bytes().saturating_mul(2);
        outputs::check_space(output, source.n_bytes(), needed)?;
        Ok(source)
    }

    /// Measures and writes the result.
    ///
    /// # Errors
    /// [`Error`]; nothing is written then.
    ///
    /// # Panics
    /// If there is no output.
    pub fn run(&self) -> Result<(), Error> {
        let output = self.output.as_deref().expect("a measurement has an output");
        let source = self.check()?;
        let interrupt = watch(self.tool.0, "stopping after the matrix in hand", &self.input)?;
        let folder = tempfile::Builder::new()
            .prefix(".sensitivity-")
            .tempdir_in(files::parent(output))
            .map_err(program::io(output, "write beside it"))?;
        let reporter = Reporter::new();
        let matrices: Vec<MatrixId> = source.select(&Selection::default())?;
        let layers: BTreeSet<usize> = matrices.iter().map(|matrix| matrix.layer).collect();
        let roles: BTreeSet<Role> = matrices.iter().map(|matrix| matrix.role).collect();
        let passage = Passage {
            model: &self.input,
            text: &self.text,
            n_contexts: self.n_contexts,
            n_threads: self.n_threads,
        };
        let mut meter = Meter {
            run: self,
            folder: folder.path(),
            divergence: Divergence::new(&passage, folder.path(), &interrupt)?,
            interrupt: &interrupt,
            reporter: &reporter,
            eta: Eta::new((layers.len() + roles.len()) as u64),
        };
        let by_layer = meter.by_layer(&layers)?;
        let by_role = meter.by_role(&roles, &by_layer)?;
        reporter.finish();
        let raw = |matrix: &MatrixId| (*matrix, by_layer[&matrix.layer] * by_role[&matrix.role]);
        let scaled = scaled(&matrices.iter().map(raw).collect()).ok_or_else(|| {
            let reason = "no layer makes a difference on this text: give more of it, or another";
            Error::flag(FLAG, reason)
        })?;
        let text = serde_json::to_string_pretty(&scaled).expect("plain data") + "\n";
        Ok(files::write_atomically(output, text.as_bytes())?)
    }

    /// The build of the coarse code of `selection`.
    fn job(&self, selection: Selection, output: Option<PathBuf>) -> Job {
        let (sections, beam, rounds) = COARSE;
        let params = SectionsParams { sections, beam, rounds, ..SectionsParams::default() };
        Job {
            tool: self.tool.0,
            tool_version: self.tool.1,
            kind: "sensitivity",
            input: self.input.clone(),
            output,
            report_json: None,
            method: Box::new(SectionsMethod::new(params, Some(self.moments), None)),
            selection,
            imatrix: None,
            calib: Some((
                CalibrationSource::File(self.calib.clone()),
                Shaping { eps: 0.0, power: 1.0 },
            )),
            options: BuildOptions {
                gap_tol: None,
                keep_dense: false,
                eval_cols: 0,
                eval_plain: false,
            },
            n_threads: self.n_threads,
            seed: self.seed,
            existing: Existing::Replace,
            checkpoint_every: usize::MAX,
        }
    }
}

/// Codes parts of the model coarsely, one after the other.
struct Meter<'a> {
    run: &'a SensitivityRun,
    folder: &'a Path,
    divergence: Divergence,
    interrupt: &'a Interrupt,
    reporter: &'a Reporter,
    eta: Eta,
}

impl Meter<'_> {
    fn coarse(&mut self, selection: Selection) -> Result<Coarse, Error> {
        let output = self.folder.join("coded.gguf");
        let report = self.run.job(selection, Some(output.clone())).build_quietly(self.interrupt)?;
        let divergence = self.divergence.of(&output, self.interrupt)?.max(0.0);
        Ok(Coarse { divergence, errors: report.tensors.iter().filter_map(error_of).collect() })
    }

    fn say(&mut self, line: &str) {
        let left = self.eta.advance(1);
        self.reporter.line(&format!("{line}; ETA {left}"));
    }

    /// Divergence over the sum of errors, layer by layer.
    fn by_layer(&mut self, layers: &BTreeSet<usize>) -> Result<BTreeMap<usize, f64>, Error> {
        let mut found = BTreeMap::new();
        for (n, &layer) in layers.iter().enumerate() {
            let list = layer.to_string().parse().expect("a number is a list of layers");
            let coarse = self.coarse(Selection { layers: Some(list), ..Selection::default() })?;
            let value = ratio(coarse.divergence, coarse.errors.values().sum());
            self.say(&format!("[{}/{}] layer {layer}: {value:.4}", n + 1, layers.len()));
            found.insert(layer, value);
        }
        Ok(found)
    }

    /// Divergence with a role coded in all layers, over what its errors and the layers' figures add up to.
    fn by_role(
        &mut self,
        roles: &BTreeSet<Role>,
        by_layer: &BTreeMap<usize, f64>,
    ) -> Result<BTreeMap<Role, f64>, Error> {
        let mut found = BTreeMap::new();
        for &role in roles {
            let coarse =
                self.coarse(Selection { roles: Some(vec![role]), ..Selection::default() })?;
            let expected = coarse.errors.iter().map(|(matrix, e)| e * by_layer[&matrix.layer]);
            let value = ratio(coarse.divergence, expected.sum());
            self.say(&format!("{role}: {value:.4} times that"));
            found.insert(role, value);
        }
        Ok(found)
    }
}

fn error_of(tensor: &TensorReport) -> Option<(MatrixId, f64)> {
    let matrix = MatrixId::of_stem(tensor.name.strip_suffix(".weight")?)?;
    Some((matrix, tensor.functional.as_ref()?.coded.error_held_out_tokens?))
}

/// `a / b`, 0 where nothing was expected.
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// `raw` by name and over its mean, four digits after the point; `None` if all are 0.
fn scaled(raw: &BTreeMap<MatrixId, f64>) -> Option<BTreeMap<String, f64>> {
    let mean = raw.values().sum::<f64>() / raw.len() as f64;
    let rounded = |value: f64| (value / mean * 1e4).round() / 1e4;
    (mean > 0.0).then(|| raw.iter().map(|(m, value)| (m.stem(), rounded(*value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_has_a_mean_of_one() {
        let matrix = |layer, role| MatrixId { layer, role };
        let raw = [
            (matrix(0, Role::Up), 2.0),
            (matrix(1, Role::Up), 1.0),
            (matrix(0, Role::Down), 6.0),
            (matrix(1, Role::Down), 3.0),
        ];
        let found = scaled(&raw.into()).unwrap();
        let expected = [
            ("blk.0.ffn_down", 2.0),
            ("blk.0.ffn_up", 0.6667),
            ("blk.1.ffn_down", 1.0),
            ("blk.1.ffn_up", 0.3333),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)).into());
        assert_eq!(scaled(&[(matrix(0, Role::Up), 0.0)].into()), None);
    }
}
