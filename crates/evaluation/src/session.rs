//! One evaluation: checked inputs, and how single things are measured.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use format::MatrixId;
use ggml::gguf::GgufFile;
use inspect::Inspection;
use program::Interrupt;

use crate::cache::{Cache, Key};
use crate::error::io;
use crate::importance::{self, Helps};
use crate::inputs::{self, OverlapReport};
use crate::measured::Measured;
use crate::options::{Options, Part};
use crate::progress::Progress;
use crate::run::{Invocation, Programs, Usage, read_lossy};
use crate::{Error, memory};

/// Bytes that must stay free beyond what is computed: logs, reports, rounding.
const MARGIN_BYTES: u64 = 64 << 20;

/// A checked evaluation.
#[derive(Debug)]
pub struct Session<'a> {
    pub(crate) options: &'a Options,
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) programs: Programs,
    pub(crate) base: GgufFile,
    pub(crate) coded: GgufFile,
    pub(crate) base_inspection: Inspection,
    pub(crate) base_sha256: String,
    pub(crate) coded_sha256: String,
    pub(crate) text_sha256: String,
    /// Importance for requantized files: which it helps, the file, and its SHA-256.
    pub(crate) helps: Helps,
    pub(crate) imatrix: Option<(PathBuf, String)>,
    /// FFN matrices that the compressed file codes.
    pub(crate) coded_matrices: BTreeSet<MatrixId>,
    pub(crate) chunks: usize,
    pub(crate) overlap: Option<OverlapReport>,
    /// Flags by which the compressed file runs from its codes.
    coded_flags: Vec<String>,
    /// Tokens in the vocabulary.
    pub(crate) n_vocab: usize,
    /// Why the model gives no logits for the next token, if it does not.
    pub(crate) no_logits: Option<String>,
    pub(crate) cache: Cache,
    pub(crate) progress: Progress,
}

/// One measurement by one program: where its results are kept, how it is run, how it is read.
pub(crate) struct Task<'t, T> {
    /// Kind and file: `perplexity-base`.
    pub name: String,
    pub title: String,
    pub key: Key,
    pub units: u64,
    /// Whether an earlier result will do.
    pub reuse: bool,
    pub invocation: Invocation,
    pub parse: &'t dyn Fn(&str, Usage) -> Result<T, Error>,
}

impl<'a> Session<'a> {
    /// Checks everything that can be checked before time is spent.
    ///
    /// # Errors
    /// One line that names what is wrong and the way out.
    pub fn new(options: &'a Options, interrupt: &'a Interrupt) -> Result<Self, Error> {
        let programs = Programs::new(options.bin_dir.clone());
        let (base, coded) = (open(&options.base)?, open(&options.coded)?);
        check_coding(&base, &coded)?;
        let (coded_flags, no_logits) =
            (inputs::coded_flags(&coded), inputs::without_logits(&base)?);
        let asks = options.wants(Part::Qa) && no_logits.is_none();
        check_programs(&programs, options, &coded_flags, asks)?;
        inputs::check_vocabularies(&base, &coded)?;
        let coded_matrices = coded.schemes().into_keys().collect();
        let helps = importance::check(options, &base, &coded_matrices)?;
        let vocabulary = inputs::vocabulary(&options.base)?;
        let tokens = inputs::tokens(&vocabulary, &options.text)?;
        let chunks = inputs::chunks(&options.text, tokens.len(), options.n_ctx, options.chunks)?;
        let overlap = overlap(options, &coded, &vocabulary, &tokens)?;
        let base_inspection = memory::inspect(&options.base, None, options.kv)?;
        fs::create_dir_all(&options.outdir).map_err(io(&options.outdir, "make the folder"))?;
        for report in options.reports() {
            program::outputs::check_output(&report)?;
        }
        let cache_folder = options.cache.clone().unwrap_or_else(|| options.outdir.join("cache"));
        let cache = Cache::new(&cache_folder, options.resume || options.cache.is_some())?;
        let n_vocab = vocabulary.n_vocab();
        let logits =
            if no_logits.is_some() { 0 } else { logits_bytes(n_vocab, options.n_ctx, chunks) };
        let n_variants = options.variants(helps).len();
        check_room(cache.folder(), logits, &base_inspection, n_variants)?;
        let (n_steps, units) = plan(options, n_variants, chunks, no_logits.is_none());
        Ok(Self {
            options,
            interrupt,
            programs,
            base_sha256: inputs::sha256_of_model(&base)?,
            coded_sha256: inputs::sha256_of_model(&coded)?,
            text_sha256: inputs::sha256(&options.text)?,
            imatrix: importance::file(helps, options, &coded_matrices, cache.folder())?,
            helps,
            coded_matrices,
            base,
            coded,
            base_inspection,
            chunks,
            overlap,
            coded_flags,
            n_vocab,
            no_logits,
            cache,
            progress: Progress::new(n_steps, units),
        })
    }

    /// SHA-256 of the program `name`: another build is another measurement.
    pub(crate) fn program_sha256(&self, name: &str) -> Result<String, Error> {
        inputs::sha256(&self.programs.path(name)?)
    }

    /// Makes a measurement, or takes it over. Only a request to stop is an error; all else is a result.
    pub(crate) fn measure<T>(&mut self, task: Task<'_, T>) -> Result<Measured<T>, Error>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        let Task { name, title, key, units, reuse, invocation, parse } = task;
        self.progress.begin(&title);
        let log = invocation.log.file_name().map(|n| n.to_string_lossy().into_owned());
        let command = invocation.command_line();
        if let Some(entry) = self.cache.find::<T>(&name, &key).filter(|_| reuse) {
            // The figures are there in any case.
            let _ = fs::write(&invocation.log, &entry.log);
            self.progress.end(units, true);
            return Ok(Measured {
                value: Some(entry.value),
                failure: None,
                command,
                log,
                seconds: entry.seconds,
                reused: true,
            });
        }
        let chunks = self.chunks as f64;
        let progress = &self.progress;
        let ran = invocation.run(self.interrupt, |text| {
            progress.part(units, crate::logs::chunks_so_far(text) as f64 / chunks);
        });
        let result = ran.and_then(|usage| {
            let text = read_lossy(&invocation.log);
            let value = parse(&text, usage)?;
            self.cache.keep(&name, &key, value, text, usage.seconds)
        });
        self.progress.end(units, false);
        match result {
            Ok(entry) => Ok(Measured {
                value: Some(entry.value),
                failure: None,
                command,
                log,
                seconds: entry.seconds,
                reused: false,
            }),
            Err(Error::Stopped) => Err(Error::Stopped),
            Err(error) => {
                self.progress.line(&format!("failed: {title}: {error}"));
                Ok(Measured { command, log, ..Measured::failed(error.to_string()) })
            }
        }
    }

    /// An invocation of the program `name` whose log is `log` in the output folder.
    pub(crate) fn invocation(
        &self,
        name: &'static str,
        arguments: Vec<OsString>,
        log: &str,
    ) -> Result<Invocation, Error> {
        let program = self.programs.path(name)?;
        Ok(Invocation {
            name,
            program,
            arguments,
            log: self.options.outdir.join(log),
            stdout: None,
        })
    }

    /// Flags by which every program runs the file `path`.
    pub(crate) fn model_flags(&self, path: &Path, coded: bool) -> Vec<OsString> {
        let mut flags: Vec<OsString> = vec!["-m".into(), path.into()];
        if coded {
            flags.extend(self.coded_flags.iter().map(OsString::from));
        }
        flags.extend(["-t".into(), self.options.n_threads.to_string().into()]);
        flags.extend(self.options.cache_flags().into_iter().map(OsString::from));
        flags
    }

    /// Tokens that a run over the text computes.
    pub(crate) fn text_units(&self) -> u64 {
        text_units(self.options, self.chunks)
    }
}

fn open(path: &Path) -> Result<GgufFile, Error> {
    Ok(GgufFile::open(path)?)
}

/// Checks that the programs are there and know the flags for the coded file; `asks` tells whether prompts are.
fn check_programs(
    programs: &Programs,
    options: &Options,
    coded_flags: &[String],
    asks: bool,
) -> Result<(), Error> {
    let mut names = vec!["llama-perplexity"];
    if options.wants(Part::Speed) {
        names.push("llama-bench");
    }
    if asks {
        names.push("llama-server");
    }
    for name in names {
        let help = programs.help(name)?;
        if let Some(flag) = coded_flags.iter().find(|flag| !help.contains(flag.as_str())) {
            let reason = format!(
                "the one in {} does not know {flag}: build the patched one with ./scripts/build-llama.sh, or name its folder with --bin-dir",
                options.bin_dir.display()
            );
            return Err(Error::program(name, reason));
        }
    }
    programs.path("llama-quantize").map(drop)
}

fn check_coding(base: &GgufFile, coded: &GgufFile) -> Result<(), Error> {
    let is_coded = |file: &GgufFile| !file.schemes().is_empty();
    if is_coded(base) {
        return Err(Error::input(base.path(), "is compressed: give the dense model as --base"));
    }
    if !is_coded(coded) {
        return Err(Error::input(
            coded.path(),
            "is not compressed: give a file by statecells-build or seeddelta-build as --sc",
        ));
    }
    let (a, b) = (base.architecture()?, coded.architecture()?);
    if a != b {
        let reason = format!(
            "is a model of {b}, {} one of {a}: give the file that it was made from as --base",
            base.path().display()
        );
        return Err(Error::input(coded.path(), reason));
    }
    Ok(())
}

fn overlap(
    options: &Options,
    coded: &GgufFile,
    vocabulary: &llama::Model,
    tokens: &[llama::Token],
) -> Result<Option<OverlapReport>, Error> {
    if !options.calib_text.is_empty() {
        let texts: Result<Vec<_>, Error> =
            options.calib_text.iter().map(|p| inputs::tokens(vocabulary, p)).collect();
        let texts = texts?;
        let sketch = calibration::TextSketch::of(texts.iter().map(Vec::as_slice));
        return Ok(Some(inputs::overlap(&sketch, tokens, "--calib-text".to_owned())));
    }
    let recorded = inputs::recorded_calibration(coded);
    if let Some(path) = &options.calib {
        let sketch = inputs::calibration_sketch(path, recorded.as_deref())?;
        return Ok(Some(inputs::overlap(&sketch, tokens, "--calib".to_owned())));
    }
    let sketch = inputs::recorded_sketch(coded);
    Ok(sketch.map(|s| inputs::overlap(&s, tokens, "the fingerprint in the file".to_owned())))
}

/// Size of the base's logits as llama-perplexity stores them: 16 bits each, for the second half of a chunk.
fn logits_bytes(n_vocab: usize, n_ctx: usize, chunks: usize) -> u64 {
    let per_token = 2 * (2 * n_vocab.div_ceil(2) + 4);
    let tokens = (n_ctx - 1).saturating_sub(n_ctx / 2) * chunks;
    (per_token * tokens + 4 * n_ctx * chunks) as u64
}

/// Checks that there is room for the logits and for the requantized files, which are not larger than Q8_0's.
fn check_room(
    folder: &Path,
    logits: u64,
    base: &Inspection,
    n_variants: usize,
) -> Result<(), Error> {
    let variants = n_variants as u64;
    let needed_bytes = logits + variants * base.file_bytes.saturating_mul(13) / 10 + MARGIN_BYTES;
    let stat =
        rustix::fs::statvfs(folder).map_err(|e| io(folder, "look for free space")(e.into()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    let reason = format!(
        "has {:.1} GB free, logits and requantized files need about {:.1}: use another --outdir, fewer --chunks or fewer types in --against",
        free_bytes as f64 / 1e9,
        needed_bytes as f64 / 1e9
    );
    Err(Error::input(folder, reason))
}

fn text_units(options: &Options, chunks: usize) -> u64 {
    (chunks * options.n_ctx) as u64
}

/// Units of making one file, which reads and writes it once.
pub(crate) const QUANTIZE_UNITS: u64 = 500;

/// Units of one round of speed of one file: a generated token takes about as long as five of a prompt.
pub(crate) fn round_units(options: &Options) -> u64 {
    (options.prompt_tokens + 5 * options.generation_tokens) as u64
}

/// Units of all prompts for one file.
pub(crate) fn qa_units(options: &Options) -> u64 {
    options.pack.prompts.iter().map(|p| 50 + 5 * p.tokens as u64).sum()
}

/// Number of steps and units of the whole plan, with or without what needs logits for the next token.
fn plan(options: &Options, n_variants: usize, chunks: usize, has_logits: bool) -> (usize, u64) {
    let runs = if has_logits { 3 + n_variants } else { 0 };
    let mut units = runs as u64 * text_units(options, chunks) + n_variants as u64 * QUANTIZE_UNITS;
    let mut steps = runs + n_variants;
    if options.wants(Part::Speed) {
        steps += 1;
        units += (options.rounds * (2 + n_variants)) as u64 * round_units(options);
    }
    if options.wants(Part::Qa) && has_logits {
        steps += 2;
        units += 2 * qa_units(options);
    }
    (steps, units)
}

/// A file to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// Short name.
    pub key: String,
    /// Where it is, if it could be made.
    pub path: Option<PathBuf>,
    /// What its content follows from: a hash.
    pub identity: String,
    /// Whether it runs from codes.
    pub coded: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 802 291 476 bytes were found for 32 chunks of 512 tokens and 49152 entries, header included.
    #[test]
    fn the_size_of_logits_is_that_of_a_real_file() {
        let estimate = logits_bytes(49152, 512, 32);
        assert!(estimate.abs_diff(802_291_476) < 1000, "{estimate}");
    }
}
