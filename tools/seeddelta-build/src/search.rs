//! `--policy auto`: which tensors stand being coded, found by running forms of the model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use builder::{Error, Existing, by_tensor};
use format::MatrixId;
use lab::forms::auto::{self, SINGLE_K};
use lab::forms::bench::{Bench, Setup};
use lab::forms::plan::{Entry, Sweep};
use program::{files, outputs};
use seeddelta::Choice;

use crate::cli::{Cli, DEFAULT_BASE};
use crate::policy;

/// The policy for `cli`: the one that an earlier run left beside the output where `--resume` is given, else a
/// new one, which is left there for it.
pub fn policy(cli: &Cli) -> Result<BTreeMap<MatrixId, Choice>, Error> {
    if let Some(path) = kept(cli) {
        return policy::read(&path);
    }
    let output = cli.files.output.as_deref();
    let kept = output.map(beside);
    if let Some(path) = &kept {
        outputs::check_output(path)?;
    }
    let folder = Folder::new(output)?;
    let json = search(cli, &folder.0).map_err(refuse)?.ok_or_else(|| {
        refuse("no layer can be coded without loss: choose tensors by --layers and --targets")
    })?;
    if let Some(path) = &kept {
        files::write_atomically(path, json.as_bytes())?;
    }
    by_tensor::policy(json.as_bytes()).map_err(refuse)
}

/// The policy of an earlier run, if this one is to go on with it.
pub fn kept(cli: &Cli) -> Option<PathBuf> {
    let path = beside(cli.files.output.as_deref()?);
    (cli.running.existing() == Existing::Resume && path.is_file()).then_some(path)
}

/// Where the policy for `output` is left.
fn beside(output: &Path) -> PathBuf {
    files::beside(output, ".policy.json")
}

fn refuse(reason: impl Into<String>) -> Error {
    Error::flag("--policy auto", reason)
}

/// Where the forms are made, one after the other; each is about as large as the model.
struct Folder(PathBuf);

impl Folder {
    fn new(output: Option<&Path>) -> Result<Self, Error> {
        let default = std::env::temp_dir().join(format!("seeddelta-{}", std::process::id()));
        let path = output.map_or(default, |o| files::beside(o, ".seeddelta-trials"));
        // A killed search may have left it.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).map_err(program::io(&path, "make the folder"))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it: the next search removes what is left.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The policy as JSON; `None` if no layer passes.
fn search(cli: &Cli, folder: &Path) -> Result<Option<String>, String> {
    let setup = Setup {
        model: cli.files.input.clone().ok_or("no input")?,
        folder: folder.to_owned(),
        builder: std::env::current_exe().map_err(|e| e.to_string())?,
        threads: u16::try_from(cli.running.n_threads()).unwrap_or(u16::MAX),
    };
    let mut bench = Bench::open(setup, &cli.material).map_err(|e| e.to_string())?;
    let base = cli.base.as_ref().map_or(DEFAULT_BASE.to_owned(), ToString::to_string);
    let main = Entry { base: base.clone(), delta_k: SINGLE_K };
    let mut sweep = Sweep::new(bench.n_layers(), main, false);
    if let Some(layers) = &cli.layers {
        layers.check(bench.n_layers()).map_err(|e| e.to_string())?;
        sweep.layers.retain(|&l| layers.contains(l));
    }
    let say = &mut |line: &str| eprintln!("{line}");
    let found = bench
        .run_all(&sweep.single_layers(), say)
        .and_then(|single| auto::strict_policy(&mut bench, &base, &single, say));
    Ok(found.map_err(|e| e.to_string())?.map(|auto| auto.policy.to_json()))
}
