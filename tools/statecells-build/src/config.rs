//! From flags to a build: the second step of parsing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use builder::calibrate::{BesideOutput, CalibrationJob};
use builder::flags::DenseChoice;
use builder::methods::dictionary::GlobalMethod;
use builder::methods::sections::{
    Budget, FfnTuneStep, ModelSteps, Moments, SectionsMethod, Sensitivity, SensitivityRun,
    SequentialParams, TuneStep, Weighing, states_path, why_not_layers,
};
use builder::{BuildOptions, CalibrationSource, Error, Job, Method, Shaping, Source};
use clap::CommandFactory;
use clap::error::ErrorKind;
use dictionary::GlobalParams;
use format::{Role, Scheme};
use program::{Selection, outputs};
use sections::SectionsParams;
use whole_model::TuneParams;

use crate::NAME;
use crate::cli::{Cli, Dict, SchemeFlags, SectionsFlags};

/// The build that `cli` asks for, which must not be a call for completions only.
///
/// # Errors
/// Those of the file behind `--sensitivity`.
///
/// # Panics
/// If there is no input.
pub fn job(cli: Cli) -> Result<Job, Error> {
    check_sensitivity(&cli)?;
    let shaping = Shaping { eps: cli.text.imatrix_eps, power: cli.text.imatrix_power };
    let calib = calibration(&cli);
    let steps = match &calib {
        Some(source) => steps(&cli, matches!(source, CalibrationSource::Made(_)))?,
        None => ModelSteps::default(),
    };
    let is_calibrated = calib.is_some();
    Ok(Job {
        tool: NAME,
        tool_version: env!("CARGO_PKG_VERSION"),
        kind: "statecells",
        n_threads: cli.running.n_threads(),
        existing: cli.running.existing(),
        input: cli.files.input.expect("clap demands it"),
        output: cli.files.output,
        report_json: cli.files.report_json,
        method: method(&cli.scheme, &cli.dict, &cli.sections, is_calibrated.then_some(steps))?,
        selection: Selection {
            layers: cli.selection.layers,
            roles: cli.selection.roles,
            ..Selection::default()
        },
        imatrix: cli.text.imatrix.map(|path| (path, shaping)),
        calib: calib.map(|source| (source, shaping)),
        options: BuildOptions {
            gap_tol: cli.dense.gap_tol,
            keep_dense: cli.dense.dense == DenseChoice::Keep,
            eval_cols: cli.eval.eval_cols,
            eval_plain: cli.eval.eval_plain,
        },
        seed: cli.seed,
        checkpoint_every: cli.running.checkpoint_every as usize,
    })
}

/// What the build is calibrated with: a file, or a text of which the build makes one.
fn calibration(cli: &Cli) -> Option<CalibrationSource> {
    let flags = &cli.text;
    if let Some(path) = &flags.calib {
        return Some(CalibrationSource::File(path.clone()));
    }
    let is_wanted = scheme(&cli.scheme) == Scheme::Sections || flags.tokens.is_some();
    let wants_own = is_wanted && flags.imatrix.is_none() && !flags.no_calib;
    if flags.file.is_empty() && !wants_own {
        return None;
    }
    let tool = (NAME, env!("CARGO_PKG_VERSION"));
    let input = cli.files.input.clone().expect("clap demands it");
    let job = CalibrationJob {
        file: flags.file.clone(),
        tokens: flags.tokens,
        layers: cli.selection.layers.clone(),
        n_threads: cli.running.n_threads(),
        seed: cli.seed,
        force: cli.running.force,
        ..CalibrationJob::new(tool, input, PathBuf::new())
    };
    let beside = BesideOutput::new(job, cli.files.output.as_deref());
    Some(CalibrationSource::Made(Box::new(beside)))
}

/// What is done with the whole model; `makes_text` if the calibration's text is all that will be made.
fn steps(cli: &Cli, makes_text: bool) -> Result<ModelSteps, Error> {
    let flags = &cli.sections;
    let output = cli.files.output.as_deref().filter(|_| flags.keep_states);
    let states = output.map(states_path).transpose()?;
    let params = |every| SequentialParams {
        every: usize::from(every),
        weights: flags.token_weights,
        states: states.clone(),
    };
    let sequential = match flags.sequential {
        Some(0) => None,
        Some(every) => Some(params(every)),
        None if makes_text && scheme(&cli.scheme) == Scheme::Sections => {
            let source = Source::open(cli.files.input.as_deref().expect("clap demands it"))?;
            let reason = why_not_layers(&source)?;
            reason.iter().for_each(|why| eprintln!("{NAME}: note: without --sequential: {why}"));
            reason.is_none().then(|| params(1))
        }
        None => None,
    };
    let parts = [
        ("--keep-states", flags.keep_states),
        ("--token-weights", flags.token_weights != Weighing::Equal),
    ];
    if let Some((flag, _)) = parts.iter().find(|(_, given)| *given && sequential.is_none()) {
        return Err(Error::flag(flag, "is a matter of --sequential: add --sequential 1"));
    }
    let (tune_ffn, tune) = (tune_ffn_step(flags), tune_step(flags, cli.seed));
    Ok(ModelSteps { sequential, tune_ffn, tune })
}

/// The measurement that `cli` asks for in place of a build, if it does.
///
/// # Panics
/// If there is no input.
pub fn sensitivity_run(cli: &Cli) -> Option<SensitivityRun> {
    let flags = &cli.sections;
    let text = flags.measure_sensitivity.clone()?;
    Some(SensitivityRun {
        tool: (NAME, env!("CARGO_PKG_VERSION")),
        input: cli.files.input.clone().expect("clap demands it"),
        calib: cli.text.calib.clone().expect("clap demands it"),
        text,
        n_contexts: usize::from(flags.sensitivity_contexts),
        output: cli.files.output.clone(),
        replaces: cli.running.force,
        moments: Moments { shrink: flags.shrink, max_dim: flags.max_h_dim },
        n_threads: cli.running.n_threads(),
        seed: cli.seed,
    })
}

/// Checks that the file of `--sensitivity` will not be overwritten.
fn check_sensitivity(cli: &Cli) -> Result<(), Error> {
    let Some(path) = &cli.sections.sensitivity else { return Ok(()) };
    Ok(outputs::check_distinct(&[("--sensitivity", path)], &cli.files.written())?)
}

/// What clap cannot check: flags that only one scheme has.
///
/// # Errors
/// A usage error that names the flag.
pub fn check(cli: &Cli) -> Result<(), clap::Error> {
    let flags = &cli.sections;
    let is_sections = scheme(&cli.scheme) == Scheme::Sections;
    let dict = &cli.dict;
    let atoms = [dict.dict_m, dict.dict_m_gate, dict.dict_m_up, dict.dict_m_down];
    if is_sections && atoms.iter().any(Option::is_some) {
        let message =
            "--dict-M is for one dictionary over the whole input: add --scheme sign+row_scale";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, message));
    }
    let is_curved = flags.token_weights != Weighing::Equal;
    let is_sequential = match flags.sequential {
        Some(every) => every > 0,
        None => cli.text.calib.is_none(),
    };
    if is_curved && !is_sequential {
        let message = "--token-weights is a matter of --sequential: add --sequential 1";
        return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, message));
    }
    let given = [("--bpw", flags.bpw), ("--target-saving", flags.target_saving)];
    match given.into_iter().find(|(_, value)| value.is_some()) {
        Some((flag, _)) if !is_sections => Err(Cli::command().error(
            ErrorKind::MissingRequiredArgument,
            format!("{flag} shares out sections: add --scheme sections"),
        )),
        _ => Ok(()),
    }
}

fn method(
    flags: &SchemeFlags,
    dict: &Dict,
    sections: &SectionsFlags,
    calibrated: Option<ModelSteps>,
) -> Result<Box<dyn Method>, Error> {
    Ok(match scheme(flags) {
        Scheme::Sections => {
            let params = SectionsParams {
                sections: sections.sections,
                beam: sections.beam,
                rounds: sections.rounds,
                sweeps: sections.sweeps,
                outlier_share: sections.outliers,
                damping: sections.damping,
                ..SectionsParams::default()
            };
            let moments = Moments { shrink: sections.shrink, max_dim: sections.max_h_dim };
            let budget = budget(sections)?;
            let moments = calibrated.is_some().then_some(moments);
            let method = SectionsMethod::new(params, moments, budget)
                .with_shared_dictionary(sections.share_dict.is_some());
            Box::new(method.with_steps(calibrated.unwrap_or_default()))
        }
        global => Box::new(GlobalMethod::new(global, params(flags, dict))),
    })
}

fn tune_ffn_step(flags: &SectionsFlags) -> Option<FfnTuneStep> {
    let (steps, contexts) = (flags.tune_ffn? as usize, usize::from(flags.tune_ffn_contexts));
    Some(FfnTuneStep { params: TuneParams { steps, contexts, rate: flags.tune_ffn_rate } })
}

fn tune_step(flags: &SectionsFlags, seed: u64) -> Option<TuneStep> {
    let (steps, contexts) = (flags.tune? as usize, usize::from(flags.tune_contexts));
    Some(TuneStep { params: TuneParams { steps, contexts, rate: flags.tune_rate }, seed })
}

fn budget(flags: &SectionsFlags) -> Result<Option<(Budget, Sensitivity)>, Error> {
    let bits = flags.bpw.map(Budget::BitsPerWeight);
    let Some(budget) = bits.or(flags.target_saving.map(Budget::Saving)) else { return Ok(None) };
    let sensitivity = flags.sensitivity.as_deref().map(Sensitivity::read).transpose()?;
    Ok(Some((budget, sensitivity.unwrap_or_default())))
}

/// The scheme behind `--scheme` and its shorthands.
fn scheme(flags: &SchemeFlags) -> Scheme {
    match flags {
        SchemeFlags { vals: true, .. } => Scheme::SignVals,
        SchemeFlags { no_row_scale: true, .. } => Scheme::Sign,
        SchemeFlags { row_scale: true, .. } | SchemeFlags { no_vals: true, .. } => {
            Scheme::SignRowScale
        }
        _ => flags.scheme,
    }
}

/// Parameters for each role.
fn params(flags: &SchemeFlags, dict: &Dict) -> BTreeMap<Role, GlobalParams> {
    let of_target = |role| {
        let (m, k) = match role {
            Role::Gate | Role::GateExps | Role::GateShexp => (dict.dict_m_gate, dict.dict_k_gate),
            Role::Up | Role::UpExps | Role::UpShexp | Role::GateUpExps => {
                (dict.dict_m_up, dict.dict_k_up)
            }
            Role::Down | Role::DownExps | Role::DownShexp => (dict.dict_m_down, dict.dict_k_down),
        };
        let params = GlobalParams {
            scheme: scheme(flags),
            m: m.or(dict.dict_m),
            k: k.unwrap_or(dict.dict_k),
            eta: dict.dict_eta,
            iters: dict.dict_iters,
            refine: dict.dict_refine,
            max_samples: dict.dict_max_samples,
            dict_type: dict.dict_type,
            anti_hebb: dict.anti_hebb,
            encoder: flags.encoder,
        };
        (role, params)
    };
    Role::ALL.into_iter().map(of_target).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parse(flags: &str) -> Result<Job, clap::Error> {
        let args = format!("statecells-build -i in -o out --no-calib {flags}");
        Cli::try_parse_from(args.split_whitespace()).map(|cli| job(cli).unwrap())
    }

    #[test]
    fn shorthands_name_schemes() {
        let cases = [
            ("", Scheme::Sections),
            ("--scheme sign", Scheme::Sign),
            ("--vals", Scheme::SignVals),
            ("--no-vals", Scheme::SignRowScale),
            ("--row-scale", Scheme::SignRowScale),
            ("--row-scale --no-vals", Scheme::SignRowScale),
            ("--no-row-scale", Scheme::Sign),
            ("--no-row-scale --no-vals", Scheme::Sign),
            ("--vals --no-row-scale", Scheme::SignVals),
            ("--scheme sections", Scheme::Sections),
        ];
        for (flags, scheme) in cases {
            let arguments = parse(flags).unwrap().arguments(None);
            assert_eq!(arguments["--scheme"], scheme.as_str(), "{flags}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for flags in [
            "--vals --row-scale",
            "--vals --no-vals",
            "--row-scale --no-row-scale",
            "--scheme sign --vals",
            "--resume --force",
            "--scheme magic",
            "--layers 3-1",
            "--targets gate,sideways",
            "--anti-hebb 2",
            "--gap-tol -1",
            "--gap-tol nan",
            "--dict-eta 0",
            "--threads 0",
            "--checkpoint-every 0",
            "--unknown",
        ] {
            assert_eq!(parse(flags).err().unwrap().exit_code(), 2, "{flags}");
        }
    }

    #[test]
    fn flags_for_a_target_win() {
        let arguments = parse("--row-scale --dict-M 512 --dict-M-down 128 --dict-k-up 9")
            .unwrap()
            .arguments(None);
        let value = |name: &str| arguments[name].as_str();
        assert_eq!((value("--dict-M-gate"), value("--dict-M-down")), ("512", "128"));
        assert_eq!((value("--dict-k-gate"), value("--dict-k-up")), ("32", "9"));
        assert_eq!(parse("--row-scale").unwrap().arguments(None)["--dict-M-up"], "auto");
    }

    #[test]
    fn arguments_hold_no_paths_threads_or_modes() {
        let a = parse("-t 3 --resume --checkpoint-every 7 --layers 0 --eval-cols 9").unwrap();
        assert_eq!(a.arguments(None), parse("").unwrap().arguments(None));
        assert_ne!(parse("--seed 1").unwrap().arguments(None), a.arguments(None));
    }
}
