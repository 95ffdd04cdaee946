//! The way through all measurements.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use ggml::gguf::GgufFile;
use program::Interrupt;

use crate::cache::Key;
use crate::error::io;
use crate::file_report::{FileKind, FileReport};
use crate::logs::{Divergence, Perplexity, parse_divergence, parse_perplexity};
use crate::machine::Machine;
use crate::measured::{Measured, value};
use crate::memory;
use crate::options::{Options, Part};
use crate::report::EvaluationReport;
use crate::session::{QUANTIZE_UNITS, Session, Subject, Task};
use crate::variants::{self, Made, Source, Variant};
use crate::{Error, inputs};

/// Makes all measurements and the report.
///
/// # Errors
/// For inputs that cannot be used, and a request to stop. A measurement that fails is part of the report.
pub fn evaluate(options: &Options, interrupt: &Interrupt) -> Result<EvaluationReport, Error> {
    let mut session = Session::new(options, interrupt)?;
    // Not before: what cannot be used is refused at once.
    let machine = Machine::here();
    let report = run(&mut session, machine);
    session.progress.finish();
    report
}

fn run(session: &mut Session<'_>, machine: Machine) -> Result<EvaluationReport, Error> {
    let options = session.options;
    let mut files = session.given_files();
    let mut subjects = vec![
        Subject {
            key: "base".into(),
            path: Some(options.base.clone()),
            identity: session.base_sha256.clone(),
            coded: false,
        },
        Subject {
            key: "statecells".into(),
            path: Some(options.coded.clone()),
            identity: session.coded_sha256.clone(),
            coded: true,
        },
    ];
    let variants = options.variants(session.helps);
    for variant in &variants {
        let identity = session.variant_identity(*variant)?;
        subjects.push(Subject { key: variant.key(), path: None, identity, coded: false });
    }
    if session.no_logits.is_none() {
        session.perplexities(&mut files, &subjects)?;
        session.look_for_logits(&mut files);
    }
    let bench = options.wants(Part::Speed) && !session.speeds_are_known(&subjects)?;
    for (variant, subject) in variants.iter().zip(&mut subjects[2..]) {
        files.push(session.variant(*variant, subject, bench)?);
    }
    if session.no_logits.is_none() {
        session.divergences(&mut files, &subjects)?;
    }
    if options.wants(Part::Speed) {
        session.speeds(&mut files, &subjects)?;
    }
    let asks = options.wants(Part::Qa) && session.no_logits.is_none();
    let qa = if asks { Some(session.qa(&subjects)?) } else { None };
    session.clean_up(&mut files);
    session.report(machine, files, qa)
}

impl Session<'_> {
    /// The base and the compressed file, with their sizes.
    fn given_files(&self) -> Vec<FileReport> {
        let sizes = |path: &Path| match memory::sizes(path, self.options.kv) {
            Ok(sizes) => Measured::of(sizes),
            Err(error) => Measured::failed(error.to_string()),
        };
        let file = |key: &str, label: &str, kind, path: &Path, sha256: &str| FileReport {
            key: key.to_owned(),
            label: label.to_owned(),
            kind,
            mix: None,
            extent: None,
            path: path.display().to_string(),
            sha256: Some(sha256.to_owned()),
            sizes: sizes(path),
            notes: Vec::new(),
            perplexity: None,
            divergence: None,
            speed: None,
        };
        let (base, coded) = (&self.options.base, &self.options.coded);
        vec![
            file("base", "base", FileKind::Base, base, &self.base_sha256),
            file("statecells", "StateCells", FileKind::Statecells, coded, &self.coded_sha256),
        ]
    }

    /// What requantized files are made from.
    fn variant_source(&self) -> Source<'_> {
        let n_layers = self.base_inspection.n_layers;
        Source { base: &self.base, n_layers, coded: &self.coded_matrices }
    }

    /// Hash of everything that a requantized file follows from.
    fn variant_identity(&self, variant: Variant) -> Result<String, Error> {
        let rules = variant.rules(self.variant_source())?;
        let imatrix = self.imatrix.as_ref().filter(|_| variant.has_imatrix);
        let imatrix = imatrix.map_or("", |(_, sha256)| sha256);
        let program = self.program_sha256("llama-quantize")?;
        let parts =
            [&*self.base_sha256, &program, variant.mix.name(), &variant.key(), &rules, imatrix];
        Ok(Key::of(parts).text().to_owned())
    }

    /// Key of a run of llama-perplexity.
    fn text_key(&self, kind: &str, subject: &Subject) -> Result<Key, Error> {
        let program = self.program_sha256("llama-perplexity")?;
        let numbers =
            [self.options.n_ctx, self.chunks, self.options.n_threads].map(|n| n.to_string());
        let flags = self.options.cache_flags().join(" ");
        let parts =
            [kind, &program, &subject.identity, &self.base_sha256, &self.text_sha256, &flags];
        Ok(Key::of(parts.into_iter().chain(numbers.iter().map(String::as_str))))
    }

    /// Where the base's logits are.
    fn logits(&self, subjects: &[Subject]) -> Result<PathBuf, Error> {
        let key = self.text_key("logits", &subjects[0])?;
        Ok(self.cache.folder().join(format!("base-{}.kld", &key.text()[..16])))
    }

    fn text_arguments(&self, path: &Path, coded: bool) -> Vec<OsString> {
        let mut arguments = self.model_flags(path, coded);
        arguments.extend(["-f".into(), self.options.text.clone().into_os_string()]);
        let numbers = [
            "-c",
            &self.options.n_ctx.to_string(),
            "--chunks",
            &self.chunks.to_string(),
            "-fit",
            "off",
        ]
        .map(OsString::from);
        arguments.extend(numbers);
        arguments
    }

    /// Perplexity of base and compressed file; the base's run also stores its logits.
    fn perplexities(
        &mut self,
        files: &mut [FileReport],
        subjects: &[Subject],
    ) -> Result<(), Error> {
        let logits = self.logits(subjects)?;
        let mut pending = false;
        for subject in &subjects[1..] {
            pending |= !self.has_divergence(subject)?;
        }
        for (file, subject) in files.iter_mut().zip(subjects) {
            let path = subject.path.as_deref().expect("both are given");
            let mut arguments = self.text_arguments(path, subject.coded);
            let unfinished = logits.with_extension("kld.tmp");
            let stores = !subject.coded && pending;
            if stores {
                arguments.extend(["--kl-divergence-base".into(), unfinished.clone().into()]);
            }
            let parse = |log: &str, _| {
                if stores {
                    fs::rename(&unfinished, &logits)
                        .map_err(io(&logits, "put the logits in place"))?;
                }
                parse_perplexity(log)
            };
            let task: Task<'_, Perplexity> = Task {
                name: format!("perplexity-{}", subject.key),
                title: format!(
                    "{}: perplexity, {} chunks of {} tokens",
                    file.label, self.chunks, self.options.n_ctx
                ),
                key: self.text_key("perplexity", subject)?,
                units: self.text_units(),
                reuse: !stores || logits.is_file(),
                invocation: self.invocation(
                    "llama-perplexity",
                    arguments,
                    &format!("perplexity_{}.log", subject.key),
                )?,
                parse: &parse,
            };
            file.perplexity = Some(self.measure(task)?);
            // What a failed run left behind is of no use.
            let _ = fs::remove_file(&unfinished);
        }
        Ok(())
    }

    /// Drops perplexities that say nothing, those of a model whose logits turn out to be all the same.
    fn look_for_logits(&mut self, files: &mut [FileReport]) {
        let base = value(&files[0].perplexity);
        self.no_logits = base.and_then(|p| inputs::equal_logits(&p.chunk_nll, self.n_vocab));
        if self.no_logits.is_some() {
            files.iter_mut().for_each(|file| file.perplexity = None);
        }
    }

    /// Makes a requantized file where measurements of it are missing, speed if `bench`, and gives its report.
    fn variant(
        &mut self,
        variant: Variant,
        subject: &mut Subject,
        bench: bool,
    ) -> Result<FileReport, Error> {
        let folder = self.cache.folder().to_owned();
        let output = variants::path(&folder, variant, &subject.identity);
        let unfinished = output.with_extension("gguf.tmp");
        let rules = output.with_extension("rules");
        fs::write(&rules, variant.rules(self.variant_source())?).map_err(io(&rules, "write"))?;
        let imatrix = self.imatrix.as_ref().map(|(path, _)| path.as_path());
        let further = (imatrix, self.options.n_threads);
        let arguments = variant.arguments(&self.options.base, &unfinished, &rules, further);
        let (name, key) = (
            format!("sizes-{}", subject.key),
            Key::of(["sizes", &subject.identity, &self.options.cache_flags().join(" ")]),
        );
        let known = self.cache.find::<Made>(&name, &key).map(|e| e.value.sha256);
        let is_there = known.is_some() && output.is_file() && inputs::sha256(&output).ok() == known;
        let (options, n_layers) = (self.options, self.base_inspection.n_layers);
        let (base, coded) = (GgufFile::open(&options.base)?, self.coded_matrices.clone());
        let parse = |_: &str, _| {
            let source = Source { base: &base, n_layers, coded: &coded };
            let made = Made::of(variant, &unfinished, source, options.kv)?;
            fs::rename(&unfinished, &output)
                .map_err(io(&output, "put the finished file in place"))?;
            Ok(made)
        };
        let invocation =
            self.invocation("llama-quantize", arguments, &format!("quantize_{}.log", subject.key))?;
        let task: Task<'_, Made> = Task {
            name,
            title: format!("{}: requantizing the base", variant.label()),
            reuse: is_there || (known.is_some() && !bench && self.needs_no_divergence(subject)?),
            key,
            units: QUANTIZE_UNITS,
            invocation,
            parse: &parse,
        };
        let made = self.measure(task)?;
        let _ = fs::remove_file(&unfinished);
        let _ = fs::remove_file(&rules);
        subject.path = (made.value.is_some() && output.is_file()).then(|| output.clone());
        Ok(variant_report(variant, subject, made))
    }

    /// Whether the divergence of `subject` is known, or there will be none.
    fn needs_no_divergence(&self, subject: &Subject) -> Result<bool, Error> {
        Ok(self.no_logits.is_some() || self.has_divergence(subject)?)
    }

    /// Whether the divergence of `subject` is known from an earlier run.
    fn has_divergence(&self, subject: &Subject) -> Result<bool, Error> {
        let key = self.text_key("divergence", subject)?;
        Ok(self.cache.find::<Divergence>(&format!("divergence-{}", subject.key), &key).is_some())
    }

    /// Distance of all files from the base.
    fn divergences(&mut self, files: &mut [FileReport], subjects: &[Subject]) -> Result<(), Error> {
        let logits = self.logits(subjects)?;
        for (file, subject) in files.iter_mut().zip(subjects).skip(1) {
            let path = subject.path.clone().unwrap_or_default();
            let mut arguments = self.text_arguments(&path, subject.coded);
            arguments.extend([
                "--kl-divergence".into(),
                "--kl-divergence-base".into(),
                logits.clone().into(),
            ]);
            let task: Task<'_, Divergence> = Task {
                name: format!("divergence-{}", subject.key),
                title: format!("{}: divergence from the base", file.label),
                key: self.text_key("divergence", subject)?,
                units: self.text_units(),
                reuse: true,
                invocation: self.invocation(
                    "llama-perplexity",
                    arguments,
                    &format!("divergence_{}.log", subject.key),
                )?,
                parse: &|log, _| parse_divergence(log),
            };
            let known = self.cache.find::<Divergence>(&task.name, &task.key).is_some();
            file.divergence = Some(if known || (subject.path.is_some() && logits.is_file()) {
                self.measure(task)?
            } else {
                self.progress.begin(&task.title);
                self.progress.end(task.units, true);
                let reason = if subject.path.is_some() {
                    "there are no logits of the base"
                } else {
                    "there is no file"
                };
                Measured::failed(reason)
            });
        }
        Ok(())
    }

    /// Removes what can be made again.
    fn clean_up(&self, files: &mut [FileReport]) {
        if self.options.keep_variants {
            return;
        }
        for file in files.iter_mut().filter(|f| f.kind == FileKind::Requantized) {
            // What cannot be removed stays.
            let _ = fs::remove_file(&file.path);
            file.path.clear();
        }
        let is_logits = |path: &Path| path.extension().is_some_and(|e| e == "kld");
        for entry in fs::read_dir(self.cache.folder()).into_iter().flatten().flatten() {
            if is_logits(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn variant_report(variant: Variant, subject: &Subject, made: Measured<Made>) -> FileReport {
    let value = made.value.as_ref();
    FileReport {
        key: subject.key.clone(),
        label: variant.label(),
        kind: FileKind::Requantized,
        mix: Some(variant.mix.to_string()),
        extent: Some(variant.extent),
        path: subject.path.as_ref().map_or_else(String::new, |p| p.display().to_string()),
        sha256: value.map(|m| m.sha256.clone()),
        notes: value.map_or_else(Vec::new, |m| m.fallbacks.clone()),
        sizes: made.map(|m| m.sizes),
        perplexity: None,
        divergence: None,
        speed: None,
    }
}
