//! Speed and memory while running, all files in turn.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::cache::Key;
use crate::error::io;
use crate::file_report::{FileReport, Speed};
use crate::logs::{BenchRun, parse_bench};
use crate::measured::Measured;
use crate::run::read_lossy;
use crate::session::{Session, Subject, round_units};

impl Session<'_> {
    /// Speed of all files, in turn: what changes on the machine meanwhile meets all alike.
    pub(crate) fn speeds(
        &mut self,
        files: &mut [FileReport],
        subjects: &[Subject],
    ) -> Result<(), Error> {
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

    pub(crate) fn speed_key(&self, subjects: &[Subject]) -> Result<Key, Error> {
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
        let mut invocation =
            self.invocation("llama-bench", arguments, &format!("speed_{}.log", subject.key))?;
        let stdout = o.outdir.join(format!("speed_{}.json.tmp", subject.key));
        invocation.stdout = Some(stdout.clone());
        let ran = invocation.run(self.interrupt, |_| ());
        let output = read_lossy(&stdout);
        let _ = fs::remove_file(&stdout);
        raw.push_str(&format!(
            "# {}\n{}{output}\n",
            invocation.command_line().join(" "),
            read_lossy(&invocation.log)
        ));
        speeds.command = invocation.command_line();
        match ran.and_then(|usage| Ok((usage, parse_bench(&output)?))) {
            Ok((usage, BenchRun { prompt, generation })) => {
                // The whole of it stands in speed.log.
                let _ = fs::remove_file(&invocation.log);
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

    /// Whether the speeds of `subjects` are known from an earlier run.
    pub(crate) fn speeds_are_known(&self, subjects: &[Subject]) -> Result<bool, Error> {
        Ok(self
            .cache
            .find::<BTreeMap<String, Speeds>>("speed", &self.speed_key(subjects)?)
            .is_some())
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
