//! The flags that fit together, as an order.

use clap::CommandFactory;
use clap::error::ErrorKind;
use dictionary::GlobalParams;
use format::{ExpertStack, MatrixShape, Scheme};
use ggml::Type;
use lab::bench::{Coded, Experts, Order};
use sections::SectionsParams;

use crate::cli::Cli;

/// Sections of the default `--bpw`.
const DEFAULT_SECTIONS: usize = 6;

/// The order that the flags give.
///
/// # Errors
/// A usage error if flags contradict each other.
pub fn order(cli: &Cli) -> Result<Order, clap::Error> {
    let size = |n: Option<u32>| n.map_or(0, |n| n as usize);
    let shape = MatrixShape::new(size(cli.cols), size(cli.rows));
    let (coded, experts) = (coded(cli)?, experts(cli, shape)?);
    coded.sidecars(shape).map_err(|e| usage(&e.to_string()))?;
    Ok(Order {
        shape,
        experts,
        batches: cli.batch.iter().map(|&n| n as usize).collect(),
        n_threads: usize::from(cli.threads),
        coded,
        against: against(cli, shape)?,
        cold_bytes: cli.cold_mib.map_or_else(Order::default_cold_bytes, mib),
        rounds: cli.rounds as usize,
    })
}

fn experts(cli: &Cli, each: MatrixShape) -> Result<Option<Experts>, clap::Error> {
    let (Some(n), Some(n_used)) = (cli.experts, cli.used) else { return Ok(None) };
    let (n, n_used) = (n as usize, n_used as usize);
    if n_used > n {
        return Err(usage(&format!(
            "--used {n_used}: a token cannot use more than all {n} experts"
        )));
    }
    if cli.scheme != Scheme::Sections {
        return Err(usage(&format!("--experts has no meaning for --scheme {}", cli.scheme)));
    }
    let stack = ExpertStack { each, n_experts: n };
    stack.check().map_err(|reason| usage(&format!("--experts {n}: {reason}")))?;
    Ok(Some(Experts { n, n_used }))
}

fn coded(cli: &Cli) -> Result<Coded, clap::Error> {
    let stray = match cli.scheme {
        Scheme::Sections => {
            [("--dict-M", cli.dict_m.is_some()), ("--dict-k", cli.dict_k.is_some())]
        }
        _ => [("--bpw", cli.sections.is_some()), ("--outliers", cli.outliers.is_some())],
    };
    if let Some((flag, _)) = stray.iter().find(|(_, given)| *given) {
        return Err(usage(&format!("{flag} has no meaning for --scheme {}", cli.scheme)));
    }
    Ok(match cli.scheme {
        Scheme::Sections => Coded::Sections(SectionsParams {
            sections: cli.sections.unwrap_or(DEFAULT_SECTIONS),
            outlier_share: cli.outliers.unwrap_or(0.0),
            ..SectionsParams::default()
        }),
        scheme => {
            let default = GlobalParams::default();
            let k = cli.dict_k.unwrap_or(default.k);
            Coded::Global(GlobalParams { scheme, m: cli.dict_m, k, ..default })
        }
    })
}

/// The types to compare with, each once.
fn against(cli: &Cli, shape: MatrixShape) -> Result<Vec<Type>, clap::Error> {
    let mut against: Vec<Type> = Vec::new();
    for &ty in &cli.against {
        if ty.row_bytes(shape.d_in).is_none() {
            return Err(usage(&format!(
                "--cols {} is no multiple of the {} values in a block of {ty} (--against)",
                shape.d_in,
                ty.block_size()
            )));
        }
        if !against.contains(&ty) {
            against.push(ty);
        }
    }
    Ok(against)
}

fn mib(n: u32) -> usize {
    n as usize * (1 << 20)
}

fn usage(message: &str) -> clap::Error {
    Cli::command().error(ErrorKind::ValueValidation, message)
}
