//! What the subcommands do.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use lab::tiny::batch::Encoded;
use lab::tiny::checkpoint;
use lab::tiny::dataset::{self, Sizes, Split};
use lab::tiny::export;
use lab::tiny::model::{Config, Score};
use lab::tiny::tasks::{Example, Task};
use lab::tiny::train::{self, Hyperparameters, Trainer};

use crate::cli::{Cli, Command, Data, HyperparameterFlags, Train};

/// Runs the subcommand.
pub fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Data(flags) => data(flags),
        Command::Train(flags) => train(flags),
        Command::Export(flags) => {
            let trainer = stored(&flags.checkpoint)?;
            Ok(export::write(&trainer.model, &flags.output)?)
        }
        Command::Score(flags) => {
            let examples = dataset::read(&flags.data)?;
            let scores = train::score(&stored(&flags.checkpoint)?.model, &examples)?;
            for (task, score) in &scores {
                println!("{}", line(*task, score));
            }
            Ok(())
        }
    }
}

fn data(flags: &Data) -> Result<()> {
    let sizes = Sizes { train: flags.train, validation: flags.validation, test: flags.test };
    let parts = dataset::generate(flags.seed, sizes)?;
    for (split, examples) in Split::ALL.into_iter().zip(&parts) {
        let path = dataset::write(&flags.output, split, examples)?;
        let of = |task| examples.iter().filter(|e: &&Example| e.task == task).count();
        let counts: Vec<String> = Task::ALL.iter().map(|&t| format!("{t} {}", of(t))).collect();
        println!("{}: {}", path.display(), counts.join(", "));
    }
    Ok(())
}

/// The training of a checkpoint, to look at; it needs no data.
fn stored(path: &Path) -> Result<Trainer> {
    let any = Example { task: Task::Copy, prompt: "caaa=".to_owned(), answer: "aaa".to_owned() };
    Ok(checkpoint::resume(path, checkpoint::hyperparameters(path)?, vec![Encoded::new(&any)])?)
}

fn hyperparameters(flags: &HyperparameterFlags) -> Hyperparameters {
    let config = Config {
        n_layers: flags.layers,
        n_embd: flags.embd,
        n_ff: flags.ff,
        n_heads: flags.heads,
        n_experts: flags.experts,
        n_used: flags.used,
    };
    let HyperparameterFlags { steps, rows, length, rate, seed, .. } = *flags;
    Hyperparameters { config, steps, rows, length, rate, seed }
}

fn train(flags: &Train) -> Result<()> {
    let path = flags.checkpoint.clone().unwrap_or_else(|| default_checkpoint(&flags.output));
    let hyper = hyperparameters(&flags.hyper);
    let (examples, validation) = material(flags, hyper.length)?;
    let mut trainer = match flags.resume {
        true => checkpoint::resume(&path, hyper, examples)?,
        false => Trainer::new(hyper, examples)?,
    };
    let screen = Screen::new(&trainer);
    let last =
        flags.stop_after.map_or(hyper.steps, |n| hyper.steps.min(trainer.optimizer.step + n));
    while trainer.optimizer.step < last {
        let report = trainer.step()?;
        screen.step(&trainer, &report);
        let step = trainer.optimizer.step;
        if step.is_multiple_of(flags.every) || step == last {
            checkpoint::save(&trainer, &path)?;
            if !validation.is_empty() {
                screen.scores(step, &train::score(&trainer.model, &validation)?);
            }
        }
    }
    screen.bar.finish_and_clear();
    if trainer.is_done() {
        export::write(&trainer.model, &flags.output)?;
        println!("{}: {} steps", flags.output.display(), hyper.steps);
    }
    Ok(())
}

/// What is learned, and what is watched: nothing of a plain text.
fn material(flags: &Train, length: usize) -> Result<(Vec<Encoded>, Vec<Example>)> {
    if let Some(path) = &flags.text {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return Ok((Encoded::of_text(&text, length), Vec::new()));
    }
    let folder = flags.data.as_deref().context("give --data or --text")?;
    let read = |split: Split| dataset::read(&folder.join(split.file_name()));
    Ok((train::of_tasks(&read(Split::Train)?), read(Split::Validation)?))
}

fn default_checkpoint(output: &Path) -> PathBuf {
    let mut path = output.as_os_str().to_owned();
    path.push(".checkpoint");
    path.into()
}

/// `sum: 98.7 % exact, perplexity 1.013`.
fn line(task: Task, score: &Score) -> String {
    let rate = 100.0 * score.exact_rate();
    format!(
        "{task}: {rate:.1} % of {} exact, perplexity {:.4}",
        score.n_answers,
        score.perplexity()
    )
}

/// A bar on a terminal, lines elsewhere.
struct Screen {
    bar: ProgressBar,
    started: Instant,
    first: u64,
}

impl Screen {
    fn new(trainer: &Trainer) -> Self {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(trainer.hyper.steps),
            false => ProgressBar::hidden(),
        };
        let style = "{bar:30} {pos}/{len} steps, {msg}, {eta} left";
        bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
        let first = trainer.optimizer.step;
        bar.set_position(first);
        bar.reset_eta();
        Self { bar, started: Instant::now(), first }
    }

    fn step(&self, trainer: &Trainer, report: &train::StepReport) {
        let (hyper, step) = (&trainer.hyper, trainer.optimizer.step);
        let tokens = (step - self.first) * (hyper.rows * hyper.length) as u64;
        let speed = tokens as f64 / self.started.elapsed().as_secs_f64();
        let rate = 100.0 * report.exact_rate;
        let text = format!("loss {:.4}, {rate:.0} % exact, {speed:.0} tokens/s", report.loss);
        if self.bar.is_hidden() && step.is_multiple_of(50) {
            eprintln!("step {step}/{}: {text}", hyper.steps);
        }
        self.bar.set_message(text);
        self.bar.set_position(step);
    }

    fn scores(&self, step: u64, scores: &[(Task, Score)]) {
        let lines: Vec<String> = scores.iter().map(|(task, score)| line(*task, score)).collect();
        let text = format!("step {step}, validation: {}", lines.join("; "));
        self.bar.suspend(|| eprintln!("{text}"));
    }
}
