//! From flags to a build: the second step of parsing.

use builder::flags::DenseChoice;
use builder::methods::seeddelta::{Choices, SeedDeltaMethod};
use builder::{BuildOptions, Error, Job, Shaping, Source};
use program::{Selection, outputs};
use seeddelta::Choice;

use crate::NAME;
use crate::cli::{Cli, DEFAULT_BASE, DEFAULT_ROLES, DeltaChoice, PolicySource};
use crate::{policy, search};

/// Importance as it is: a floor only against inputs that the text never used.
const SHAPING: Shaping = Shaping { eps: 0.001, power: 1.0 };

/// The build that `cli` asks for, which must not be a call for completions only.
///
/// # Errors
/// Those of the file behind `--policy`.
///
/// # Panics
/// If there is no input.
pub fn job(cli: &Cli) -> Result<Job, Error> {
    check_overrides(cli)?;
    let tensors = match &cli.policy {
        None => return Ok(job_of(cli, same_for_all(cli)?)),
        Some(PolicySource::Auto) => {
            // The search takes as long as many builds: what one of them would refuse is refused before it.
            if search::kept(cli).is_none() {
                job_of(cli, same_for_all(cli)?).check()?;
            }
            search::policy(cli)?
        }
        Some(PolicySource::File(path)) => {
            if cli.base.is_some() || cli.layers.is_some() {
                let reason = "a file decides alone: leave out --base and --layers".to_owned();
                return Err(Error::flag("--policy", reason));
            }
            outputs::check_distinct(&[("--policy", path)], &cli.files.written())?;
            policy::read(path)?
        }
    };
    let named = tensors.keys().copied().collect();
    let selection = Selection { tensors: Some(named), ..Selection::default() };
    Ok(job_of(cli, (Choices::Policy(tensors), selection)))
}

fn job_of(cli: &Cli, (choices, selection): (Choices, Selection)) -> Job {
    let method = SeedDeltaMethod { choices, base_type: cli.base_type, row_scale: cli.row_scale };
    Job {
        tool: NAME,
        tool_version: env!("CARGO_PKG_VERSION"),
        kind: format::seeddelta::SCHEME,
        n_threads: cli.running.n_threads(),
        existing: cli.running.existing(),
        checkpoint_every: cli.running.checkpoint_every as usize,
        input: cli.files.input.clone().expect("clap demands it"),
        output: cli.files.output.clone(),
        report_json: cli.files.report_json.clone(),
        method: Box::new(method),
        selection,
        imatrix: cli.imatrix.clone().map(|path| (path, SHAPING)),
        calib: None,
        options: BuildOptions {
            gap_tol: cli.dense.gap_tol,
            keep_dense: cli.dense.dense == DenseChoice::Keep,
            eval_cols: 0,
            eval_plain: false,
        },
        seed: 0,
    }
}

/// Checks that overrides name layers of the model.
fn check_overrides(cli: &Cli) -> Result<(), Error> {
    let (Some(input), false) = (&cli.files.input, cli.overrides.is_empty()) else { return Ok(()) };
    let n_layers = Source::open(input)?.n_layers();
    match cli.overrides.iter().find(|o| o.layers.check(n_layers).is_err()) {
        None => Ok(()),
        Some(o) => {
            let reason = format!("{o}: the model has {n_layers} layers, numbered from 0");
            Err(Error::flag("--override", reason))
        }
    }
}

fn same_for_all(cli: &Cli) -> Result<(Choices, Selection), Error> {
    let delta_k = if cli.delta == DeltaChoice::None { 0 } else { cli.delta_k };
    if delta_k == 0 && cli.delta == DeltaChoice::Coo {
        let reason = "0 residuals are none: use --delta none".to_owned();
        return Err(Error::flag("--delta-k", reason));
    }
    let base = || DEFAULT_BASE.parse().expect("a base");
    let all = Choice { base: cli.base.clone().unwrap_or_else(base), delta_k };
    let selection = Selection {
        layers: cli.layers.clone(),
        roles: cli.roles.clone(),
        default_roles: DEFAULT_ROLES.to_vec(),
        ..Selection::default()
    };
    Ok((Choices::Flags(all, cli.overrides.clone()), selection))
}
