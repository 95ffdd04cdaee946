//! The way through all measurements.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use builder::Interrupt;
use ggml::gguf::GgufFile;
use serde::{Deserialize, Serialize};

use crate::cache::Key;
use crate::error::io;
use crate::logs::{
    BenchRun, Divergence, Perplexity, parse_bench, parse_divergence, parse_perplexity,
};
use crate::machine::{self, Machine};
use crate::measured::Measured;
use crate::memory;
use crate::options::{Options, Part};
use crate::qa::{self, Answers, QaReport};
use crate::report::{
    EVALUATION_VERSION, EvaluationReport, FileId, FileReport, Role, Settings, Speed, Summary,
};
use crate::run::read_lossy;
use crate::server::Server;
use crate::session::{QUANTIZE_UNITS, Session, Subject, Task, qa_units, round_units};
use crate::variants::{self, Made, Variant};
use crate::verdict::Verdict;
use crate::{Error, inputs};

/// A load average above this share of the cores before anything ran: somebody else is at work.
const BUSY: f64 = 0.5;

/// So few chunks say little.
const FEW_CHUNKS: usize = 8;

/// Makes all measurements and the report.
///
/// # Errors
/// For inputs that cannot be used, and a request to stop. A measurement that fails is part of the report.
pub fn evaluate(options: &Options, interrupt: &Interrupt) -> Result<EvaluationReport, Error> {
    let machine = Machine::here();
    let mut session = Session::new(options, interrupt)?;
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
    let variants = options.variants();
    for variant in &variants {
        let identity = session.variant_identity(*variant)?;
        subjects.push(Subject { key: variant.key(), path: None, identity, coded: false });
    }
    session.perplexities(&mut files, &subjects)?;
    for (variant, subject) in variants.iter().zip(&mut subjects[2..]) {
        files.push(session.variant(*variant, subject)?);
    }
    session.divergences(&mut files, &subjects)?;
    if options.wants(Part::Speed) {
        session.speeds(&mut files, &subjects)?;
    }
    let qa = if options.wants(Part::Qa) { Some(session.qa(&subjects)?) } else { None };
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
        let file = |key: &str, label: &str, role, path: &Path, sha256: &str| FileReport {
            key: key.to_owned(),
            label: label.to_owned(),
            role,
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
            file("base", "base", Role::Base, base, &self.base_sha256),
            file("statecells", "StateCells", Role::Statecells, coded, &self.coded_sha256),
        ]
    }

    /// Hash of everything that a requantized file follows from.
    fn variant_identity(&self, variant: Variant) -> Result<String, Error> {
        let rules = variant.rules(&self.base, self.base_inspection.n_layers)?;
        let program = self.program_sha256("llama-quantize")?;
        Ok(Key::of([&self.base_sha256, &program, variant.mix.name(), &variant.key(), &rules])
            .text()
            .to_owned())
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
            let key = self.text_key("divergence", subject)?;
            pending |= self
                .cache
                .find::<Divergence>(&format!("divergence-{}", subject.key), &key)
                .is_none();
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
                job: self.job(
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

    /// Makes a requantized file where measurements of it are missing, and gives its report.
    fn variant(&mut self, variant: Variant, subject: &mut Subject) -> Result<FileReport, Error> {
        let folder = self.cache.folder().to_owned();
        let output = variants::path(&folder, variant, &subject.identity);
        let unfinished = output.with_extension("gguf.tmp");
        let rules = output.with_extension("rules");
        let n_layers = self.base_inspection.n_layers;
        fs::write(&rules, variant.rules(&self.base, n_layers)?).map_err(io(&rules, "write"))?;
        let arguments =
            variant.arguments(&self.options.base, &unfinished, &rules, self.options.n_threads);
        let (name, key) = (
            format!("sizes-{}", subject.key),
            Key::of(["sizes", &subject.identity, &self.options.cache_flags().join(" ")]),
        );
        let known = self.cache.find::<Made>(&name, &key).map(|e| e.value.sha256);
        let is_there = known.is_some() && output.is_file() && inputs::sha256(&output).ok() == known;
        let (options, base) = (self.options, GgufFile::open(&self.options.base)?);
        let parse = |_: &str, _| {
            let made = Made::of(variant, &unfinished, &base, n_layers, options.kv)?;
            fs::rename(&unfinished, &output)
                .map_err(io(&output, "put the finished file in place"))?;
            Ok(made)
        };
        let job =
            self.job("llama-quantize", arguments, &format!("quantize_{}.log", subject.key))?;
        let task: Task<'_, Made> = Task {
            name,
            title: format!("{}: requantizing the base", variant.label()),
            reuse: is_there || (known.is_some() && !self.needs_file(subject)?),
            key,
            units: QUANTIZE_UNITS,
            job,
            parse: &parse,
        };
        let made = self.measure(task)?;
        let _ = fs::remove_file(&unfinished);
        let _ = fs::remove_file(&rules);
        subject.path = (made.value.is_some() && output.is_file()).then(|| output.clone());
        Ok(variant_report(variant, subject, made))
    }

    /// Whether something of `subject` is still to be measured.
    fn needs_file(&self, subject: &Subject) -> Result<bool, Error> {
        let key = self.text_key("divergence", subject)?;
        let has_divergence =
            self.cache.find::<Divergence>(&format!("divergence-{}", subject.key), &key).is_some();
        // Speeds are measured together or not at all; looking for them needs all files.
        Ok(!has_divergence || self.options.wants(Part::Speed))
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
                job: self.job(
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

    /// Speed of all files, in turn: what changes on the machine meanwhile meets all alike.
    fn speeds(&mut self, files: &mut [FileReport], subjects: &[Subject]) -> Result<(), Error> {
        let units = (self.options.rounds * subjects.len()) as u64 * round_units(self.options);
        self.progress.begin(&format!(
            "speed: {} rounds over {} files in turn",
            self.options.rounds,
            subjects.len()
        ));
        let key = self.speed_key(subjects)?;
        let log = self.options.outdir.join("speed.log");
        if let Some(entry) = self.cache.find::<BTreeMap<String, Speeds>>("speed", &key) {
            let _ = fs::write(&log, &entry.log);
            self.progress.end(units, true);
            for file in files {
                if let Some(speeds) = entry.value.get(&file.key) {
                    file.speed = Some(Measured { reused: true, ..speeds.clone().measured() });
                }
            }
            return Ok(());
        }
        let mut found: BTreeMap<String, Speeds> = BTreeMap::new();
        let mut raw = String::new();
        for round in 0..self.options.rounds {
            for (i, subject) in subjects.iter().enumerate() {
                let speeds = found.entry(subject.key.clone()).or_default();
                if speeds.failure.is_none() {
                    self.bench(subject, speeds, &mut raw)?;
                }
                let done = round * subjects.len() + i + 1;
                self.progress
                    .part(units, done as f64 / (self.options.rounds * subjects.len()) as f64);
            }
        }
        self.progress.end(units, false);
        fs::write(&log, &raw).map_err(io(&log, "write"))?;
        for file in files.iter_mut() {
            let speeds = found.get(&file.key).cloned().unwrap_or_default();
            if let Some(failure) = &speeds.failure {
                self.progress.line(&format!("failed: {}: speed: {failure}", file.label));
            }
            file.speed = Some(speeds.measured());
        }
        if found.values().all(|s| s.failure.is_none()) {
            let seconds = found.values().map(|s| s.seconds).sum();
            self.cache.keep("speed", &key, found, raw, seconds)?;
        }
        Ok(())
    }

    fn speed_key(&self, subjects: &[Subject]) -> Result<Key, Error> {
        let o = self.options;
        let numbers =
            [o.rounds, o.prompt_tokens, o.generation_tokens, o.n_threads].map(|n| n.to_string());
        let mut parts = vec![self.program_sha256("llama-bench")?, o.cache_flags().join(" ")];
        parts.extend(numbers);
        parts.extend(subjects.iter().map(|s| s.identity.clone()));
        Ok(Key::of(parts))
    }

    /// One round of one file.
    fn bench(
        &mut self,
        subject: &Subject,
        speeds: &mut Speeds,
        raw: &mut String,
    ) -> Result<(), Error> {
        let Some(path) = &subject.path else {
            speeds.failure = Some("there is no file".to_owned());
            return Ok(());
        };
        let o = self.options;
        let mut arguments = self.model_flags(path, subject.coded);
        let tests = [
            "-p",
            &o.prompt_tokens.to_string(),
            "-n",
            &o.generation_tokens.to_string(),
            "-r",
            "1",
            "-o",
            "json",
        ]
        .map(OsString::from);
        arguments.extend(tests);
        let mut job = self.job("llama-bench", arguments, &format!("speed_{}.log", subject.key))?;
        let stdout = o.outdir.join(format!("speed_{}.json.tmp", subject.key));
        job.stdout = Some(stdout.clone());
        let ran = job.run(self.interrupt, |_| ());
        let output = read_lossy(&stdout);
        let _ = fs::remove_file(&stdout);
        raw.push_str(&format!(
            "# {}\n{}{output}\n",
            job.command_line().join(" "),
            read_lossy(&job.log)
        ));
        speeds.command = job.command_line();
        match ran.and_then(|usage| Ok((usage, parse_bench(&output)?))) {
            Ok((usage, BenchRun { prompt, generation })) => {
                // The whole of it stands in speed.log.
                let _ = fs::remove_file(&job.log);
                speeds.prompt.push(prompt);
                speeds.generation.push(generation);
                speeds.peak_memory_bytes = speeds.peak_memory_bytes.max(usage.peak_bytes);
                speeds.seconds += usage.seconds;
            }
            Err(Error::Stopped) => return Err(Error::Stopped),
            Err(error) => speeds.failure = Some(error.to_string()),
        }
        Ok(())
    }

    /// Prompts to both files.
    fn qa(&mut self, subjects: &[Subject]) -> Result<Measured<QaReport>, Error> {
        let base = self.answers(&subjects[0])?;
        let coded = self.answers(&subjects[1])?;
        let seconds = base.seconds + coded.seconds;
        let failure = base.failure.or(coded.failure);
        Ok(match (base.value, coded.value) {
            (Some(a), Some(b)) => Measured {
                seconds,
                reused: base.reused && coded.reused,
                log: coded.log,
                command: coded.command,
                ..Measured::of(QaReport::new(&self.options.pack, &a, &b))
            },
            _ => Measured {
                log: coded.log,
                command: coded.command,
                ..Measured::failed(failure.unwrap_or_default())
            },
        })
    }

    fn answers(&mut self, subject: &Subject) -> Result<Measured<Answers>, Error> {
        let (units, name) = (qa_units(self.options), format!("qa-{}", subject.key));
        let log = format!("qa_{}.log", subject.key);
        let log_path = self.options.outdir.join(&log);
        self.progress.begin(&format!(
            "{}: {} prompts",
            subject.key,
            self.options.pack.prompts.len()
        ));
        let mut parts = vec![
            self.program_sha256("llama-server")?,
            subject.identity.clone(),
            self.options.cache_flags().join(" "),
        ];
        parts.extend([self.options.n_threads.to_string(), format!("{:?}", self.options.pack)]);
        let key = Key::of(parts);
        if let Some(entry) = self.cache.find::<Answers>(&name, &key) {
            let _ = fs::write(&log_path, &entry.log);
            self.progress.end(units, true);
            return Ok(Measured {
                log: Some(log),
                seconds: entry.seconds,
                reused: true,
                ..Measured::of(entry.value)
            });
        }
        let path = subject.path.clone().expect("both are given");
        let mut arguments = self.model_flags(&path, subject.coded);
        arguments.extend(["-c", "2048", "-np", "1", "-fit", "off"].map(OsString::from));
        let started = std::time::Instant::now();
        let asked = self.ask(&arguments, &log_path, units);
        self.progress.end(units, false);
        let seconds = started.elapsed().as_secs_f64();
        match asked {
            Ok(answers) => {
                let entry =
                    self.cache.keep(&name, &key, answers, read_lossy(&log_path), seconds)?;
                Ok(Measured { log: Some(log), seconds, ..Measured::of(entry.value) })
            }
            Err(Error::Stopped) => Err(Error::Stopped),
            Err(error) => {
                self.progress.line(&format!("failed: {}: prompts: {error}", subject.key));
                Ok(Measured { log: Some(log), ..Measured::failed(error.to_string()) })
            }
        }
    }

    fn ask(&self, arguments: &[OsString], log: &Path, units: u64) -> Result<Answers, Error> {
        let program = self.programs.path("llama-server")?;
        let server = Server::start(&program, arguments, log, self.interrupt)?;
        let n = self.options.pack.prompts.len() as f64;
        let has_template = self.base.value("tokenizer.chat_template").is_some();
        qa::ask(&server, &self.options.pack, has_template, |done| {
            self.progress.part(units, done as f64 / n);
            !self.interrupt.is_set()
        })
    }

    /// Removes what can be made again.
    fn clean_up(&self, files: &mut [FileReport]) {
        if self.options.keep_variants {
            return;
        }
        for file in files.iter_mut().filter(|f| f.role == Role::Requantized) {
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

    fn report(
        &self,
        machine: Machine,
        files: Vec<FileReport>,
        qa: Option<Measured<QaReport>>,
    ) -> Result<EvaluationReport, Error> {
        let o = self.options;
        let find = |key: &str| files.iter().find(|f| f.key == key);
        let reference = find("ffn-Q5_K_M").expect("it is always measured");
        let (base, coded) = (&files[0], &files[1]);
        Ok(EvaluationReport {
            schema_version: EVALUATION_VERSION,
            tool: o.tool.clone(),
            tool_version: o.tool_version.clone(),
            llama_cpp: ggml::LLAMA_CPP_VERSION.to_owned(),
            date: machine::now(),
            warnings: self.warnings(&machine, &files),
            machine,
            command: o.command.clone(),
            settings: Settings {
                threads: o.n_threads,
                n_ctx: o.n_ctx,
                chunks: self.chunks,
                cache_type_k: o.kv.keys.to_string(),
                cache_type_v: o.kv.values.to_string(),
                rounds: o.rounds,
                prompt_tokens: o.prompt_tokens,
                generation_tokens: o.generation_tokens,
            },
            text: FileId {
                path: o.text.display().to_string(),
                bytes: fs::metadata(&o.text).map_err(io(&o.text, "read"))?.len(),
                sha256: self.text_sha256.clone(),
            },
            overlap: self.overlap.clone(),
            statecells: Summary::new(coded, base, reference),
            verdict: Verdict::new(coded, reference, find("whole-Q5_K_M")),
            tensors: memory::inspect(&o.coded, None, o.kv)?.tensors,
            files,
            qa,
        })
    }

    fn warnings(&self, machine: &Machine, files: &[FileReport]) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut say = |text: String| warnings.push(text);
        if let Some(overlap) = self.overlap.as_ref().filter(|o| o.suspicious) {
            say(format!(
                "The evaluation text shares {} of {} compared runs of {} tokens with the calibration text ({}): perplexity and \
                 divergence of the compressed file are better than on text it has not seen. Use another --text.",
                overlap.n_shared, overlap.n_compared, overlap.run_tokens, overlap.source
            ));
        }
        let source = self.coded.string(codec::keys::RECORD).ok().flatten();
        let source = source.and_then(|r| serde_json::from_str::<builder::Record>(&r).ok());
        if source.is_some_and(|r| r.input_sha256 != self.base_sha256) {
            say("The compressed file was made from another file than --base: differences are not due to its codes alone.".to_owned());
        }
        let quantized: Vec<&str> = dense_types(self);
        if !quantized.is_empty() {
            say(format!(
                "The FFN of the base is itself quantized ({}): requantizing flatters types whose grid contains it.",
                quantized.join(", ")
            ));
        }
        if self.options.wants(Part::Speed)
            && machine.load_at_start.is_some_and(|l| l > BUSY * machine.cores as f64)
        {
            let load = machine.load_at_start.unwrap_or_default();
            say(format!(
                "The machine was busy when the evaluation began (load {load:.1} on {} cores): the speeds say little.",
                machine.cores
            ));
        }
        if self.chunks < FEW_CHUNKS {
            say(format!("{} chunks are few: see the standard errors.", self.chunks));
        }
        if files.iter().any(|f| f.speed.as_ref().is_some_and(|s| s.reused)) {
            say("Speeds were taken over from an earlier run.".to_owned());
        }
        warnings
    }
}

/// Quantized types among the FFN matrices of the base.
fn dense_types<'s>(session: &'s Session<'_>) -> Vec<&'s str> {
    let types = session.base_inspection.tensors.iter().filter_map(|t| t.dense_type.as_deref());
    let mut quantized: Vec<&str> =
        types.filter(|t| !matches!(*t, "f32" | "f16" | "bf16")).collect();
    quantized.sort_unstable();
    quantized.dedup();
    quantized
}

fn variant_report(variant: Variant, subject: &Subject, made: Measured<Made>) -> FileReport {
    let value = made.value.as_ref();
    FileReport {
        key: subject.key.clone(),
        label: variant.label(),
        role: Role::Requantized,
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

/// Speeds as they are kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Speeds {
    prompt: Vec<f64>,
    generation: Vec<f64>,
    peak_memory_bytes: u64,
    seconds: f64,
    failure: Option<String>,
    command: Vec<String>,
}

impl Speeds {
    fn measured(self) -> Measured<Speed> {
        let Self { prompt, generation, peak_memory_bytes, seconds, failure, command } = self;
        let value = failure.is_none().then_some(Speed { prompt, generation, peak_memory_bytes });
        Measured {
            value,
            failure,
            command,
            log: Some("speed.log".to_owned()),
            seconds,
            reused: false,
        }
    }
}
