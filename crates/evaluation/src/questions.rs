//! Prompts to the base and to the compressed file.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use crate::Error;
use crate::cache::Key;
use crate::measured::Measured;
use crate::qa::{self, Answers, QaReport};
use crate::run::read_lossy;
use crate::server::Server;
use crate::session::{Session, Subject, qa_units};

impl Session<'_> {
    /// Prompts to both files.
    pub(crate) fn qa(&mut self, subjects: &[Subject]) -> Result<Measured<QaReport>, Error> {
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
}
