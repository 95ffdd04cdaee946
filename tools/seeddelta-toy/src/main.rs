//! `seeddelta-toy`: checks the SeedDelta codec on matrices whose error is known in closed form.

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum as _};
use format::MatrixShape;
use indicatif::{ProgressBar, ProgressStyle};
use lab::toy::check::{self, Outcome, Sabotage};
use lab::toy::plan::{self, Family, MAX_NOISE, MAX_WEIGHTS, Options};
use lab::toy::report::{Provenance, Report, ReportFile};
use rayon::prelude::*;

/// Exit code of a run whose measured errors are not the expected ones.
const EXIT_FAILED: u8 = 3;

/// Check the SeedDelta codec on matrices whose error is known beforehand.
///
/// Every case makes a matrix W from a seed, codes it as base + delta, writes and reads the tensors, and
/// compares the products (W0 + delta) x with W x over a complete orthonormal set of inputs. The expected
/// error follows from how the matrix was made (rounding of F16, noise times the degrees of freedom that
/// the base cannot follow, discarded singular values, residuals that the delta leaves out) and never
/// from the codec. Each family runs on every shape, with and without noise, with and without the base,
/// with white and with unequal inputs, stored as F32 and F16.
#[derive(Parser, Debug)]
#[command(version = VERSION, max_term_width = 100, after_help = AFTER_HELP)]
struct Args {
    /// Families to run, comma separated [default: all]
    #[arg(long = "case", value_delimiter = ',', value_name = "LIST")]
    cases: Vec<Family>,

    /// Shapes, comma separated, as inputs x outputs; the defaults are square, wide, tall, one row, one
    /// column and primes
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "LIST",
        value_parser = parse_shape,
        default_value = "32x32,48x48,96x40,24x72,64x1,1x50,37x53"
    )]
    sizes: Vec<MatrixShape>,

    /// Standard deviations of the noise added, comma separated, from 0 to 0.05 (weights are about 1)
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "LIST",
        value_parser = parse_noise,
        default_value = "0,0.03"
    )]
    noise: Vec<f64>,

    /// Matrices per case, each with a seed of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,

    /// Seed of all matrices
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Threads; 0 takes all cores. The report does not depend on it
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// Write every case with expected and measured gap to FILE
    #[arg(long, value_name = "FILE")]
    report_json: Option<PathBuf>,

    /// List every case in the terminal, not only those that fail
    #[arg(short, long)]
    verbose: bool,

    /// Make a mistake on purpose: the run must then fail with exit code 3
    #[arg(long, value_name = "MISTAKE", default_value = "none")]
    sabotage: Sabotage,
}

/// The other programs name the llama.cpp in them.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (links no llama.cpp)");

const AFTER_HELP: &str = "\
Reading the table:
  gap       root of the squared error over the energy of W x, as in all reports
  off by    distance from the expected squared error in units of the tolerance (3 standard deviations of
            noise and rounding, plus about 1e-6 of the gap for single precision); 1 or less agrees
  share     at least 95 % of the cases must agree, in all and in each family; of 370 correct ones about one
            lies outside 3 standard deviations by chance

Exit codes: 0 measured equals expected, 1 error, 2 wrong usage, 3 measured differs from expected

Examples:
  seeddelta-toy                                   everything, in seconds
  seeddelta-toy --case A3 --sizes 64x48 -v        low rank: one line for every rank
  seeddelta-toy --report-json toy.json --seed 7   other matrices, with a report
  seeddelta-toy --case A5 --sabotage shift-delta  proof that a wrong delta is noticed";

fn parse_shape(text: &str) -> Result<MatrixShape, String> {
    let (d_in, d_out) = text.split_once('x').ok_or("write inputs x outputs, as in 96x40")?;
    let number = |text: &str| text.parse::<usize>().ok().filter(|&n| n > 0);
    let (Some(d_in), Some(d_out)) = (number(d_in), number(d_out)) else {
        return Err("write inputs x outputs, both at least 1, as in 96x40".into());
    };
    let shape = MatrixShape::new(d_in, d_out);
    match shape.checked_n_weights() {
        Some(n) if n <= MAX_WEIGHTS => Ok(shape),
        _ => Err(format!("more than {MAX_WEIGHTS} weights; smaller matrices show the same")),
    }
}

fn parse_noise(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(noise) if (0.0..=MAX_NOISE).contains(&noise) => Ok(noise),
        _ => Err(format!("use 0 to {MAX_NOISE}: closed forms need noise well below the weights")),
    }
}

fn progress(n: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} cases, {eta} left");
    let bar = ProgressBar::new(n as u64).with_message("seeddelta-toy");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Prints `text`; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("standard output")
        }
        _ => Ok(()),
    }
}

fn options(args: &Args) -> Options {
    let mut families =
        if args.cases.is_empty() { Family::value_variants().to_vec() } else { args.cases.clone() };
    families.sort_unstable();
    families.dedup();
    Options {
        families,
        shapes: args.sizes.clone(),
        noise: args.noise.clone(),
        repeats: args.repeats,
    }
}

fn run(args: &Args) -> Result<bool> {
    let start = Instant::now();
    let cases = plan::cases(&options(args));
    let file = args.report_json.as_deref().map(ReportFile::create).transpose()?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build()
        .with_context(|| format!("--threads {}: cannot start them", args.threads))?;
    let bar = progress(cases.len());
    let outcomes: Vec<Option<Outcome>> = pool.install(|| {
        let run = |case| check::run(case, args.seed, args.sabotage).inspect(|_| bar.inc(1));
        cases.par_iter().map(run).collect::<Result<_>>()
    })?;
    bar.finish_and_clear();
    let provenance = Provenance {
        tool: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        arguments: std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect(),
        seed: args.seed,
        sabotage: args.sabotage,
    };
    let report = Report::new(provenance, cases.len(), outcomes.into_iter().flatten().collect());
    print(&report.to_text(args.verbose))?;
    eprintln!("{} cases in {:.1} s", report.total.cases, start.elapsed().as_secs_f64());
    if let Some(file) = file {
        file.finish(&report)?;
    }
    Ok(report.passed)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            eprintln!("seeddelta-toy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
