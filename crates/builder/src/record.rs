//! How a file was made: stored in the output, and in the work folder while the build goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Method, Stage};

/// Version of [`Record`] that this program writes.
pub const RECORD_VERSION: u32 = 1;

/// Everything that decides the bytes of the output, and nothing else: no paths, times or threads.
///
/// A run goes on only with the same values, but for two: machines of another kind may go on with a warning, and what
/// belongs to a step that has not been done yet may change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub record_version: u32,
    /// Name of the program.
    pub tool: String,
    /// Its version.
    pub tool_version: String,
    /// Version of llama.cpp whose ggml did the arithmetic.
    pub llama_cpp: String,
    /// SHA-256 of the input file.
    pub input_sha256: String,
    /// Size of the input file.
    pub input_bytes: u64,
    /// Flags with their effective values; files stand as their SHA-256.
    pub arguments: BTreeMap<String, String>,
    /// How the machines compute that worked on it, each kind once: the last bits of sums depend on it. Empty in files
    /// of earlier versions, which did not tell.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub machines: BTreeSet<String>,
    /// Tensors of the plan by stem, in the work folder only: which were known of when others were made.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub planned: BTreeSet<String>,
    /// Finished tensors by stem (`blk.3.ffn_up`); empty in the work folder, where every tensor has
    /// its own file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tensors: BTreeMap<String, TensorRecord>,
}

/// What the record of an output says about one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorRecord {
    /// It is coded; SHA-256 over the data of its sidecars.
    Coded(String),
    /// Its gap, given here, was above `--gap-tol`, so the dense weight stays.
    Dense(f32),
}

impl Record {
    /// Checks that a build described by `self` has the arguments with which `earlier`, found at `path`,
    /// was made. `may_change` tells which recorded values may grow into the given ones.
    ///
    /// # Errors
    /// [`Error::Parameter`] with the first difference.
    pub fn check_arguments(
        &self,
        earlier: &Self,
        path: &Path,
        may_change: impl Fn(&str, &str, &str) -> bool,
    ) -> Result<(), Error> {
        let fixed = [
            (
                "the record's version",
                &earlier.record_version.to_string(),
                &self.record_version.to_string(),
            ),
            ("the program", &earlier.tool, &self.tool),
            ("the program's version", &earlier.tool_version, &self.tool_version),
            ("the version of llama.cpp", &earlier.llama_cpp, &self.llama_cpp),
        ];
        for (name, recorded, given) in fixed {
            same(path, name, recorded, given)?;
        }
        const UNSET: &str = "not set";
        let names: BTreeSet<&String> =
            earlier.arguments.keys().chain(self.arguments.keys()).collect();
        for name in names {
            let of = |record: &'_ Self| {
                record.arguments.get(name).map_or(UNSET, |v| v.as_str()).to_owned()
            };
            let (recorded, given) = (of(earlier), of(self));
            if !may_change(name, &recorded, &given) {
                same(path, name, &recorded, &given)?;
            }
        }
        Ok(())
    }

    /// Checks that a build described by `self` may go on with the checkpoints of the run that `earlier`, found at
    /// `path`, describes: with the same arguments but for those of steps that come after them.
    ///
    /// # Errors
    /// [`Error::Parameter`] with the first difference.
    pub(crate) fn check_checkpoints(
        &self,
        earlier: &Self,
        path: &Path,
        method: &dyn Method,
    ) -> Result<(), Error> {
        self.check_arguments(earlier, path, |name, recorded, given| {
            method.later_stage(name).is_some() || method.may_change(name, recorded, given)
        })
    }

    /// The first stage after coding that would be done otherwise than in the run of `earlier`, or not at all, or for the
    /// first time.
    pub(crate) fn changed_stage(&self, earlier: &Self, method: &dyn Method) -> Option<Stage> {
        let names = self.arguments.keys().chain(earlier.arguments.keys());
        let changed =
            names.filter(|name| self.arguments.get(*name) != earlier.arguments.get(*name));
        changed.filter_map(|name| method.later_stage(name)).min()
    }

    /// Takes over the kinds of machines that worked on `earlier`, found at `path`. A warning if they are not that of
    /// `self` alone.
    pub(crate) fn take_over_machines(&mut self, earlier: &Self, path: &Path) -> Option<String> {
        let others: Vec<&str> =
            earlier.machines.difference(&self.machines).map(String::as_str).collect();
        let warning = (!others.is_empty()).then(|| {
            let own: Vec<&str> = self.machines.iter().map(String::as_str).collect();
            format!(
                "{} was begun on a machine of another kind ({}; this one: {}): the last bits of what is coded here \
                 may differ from what one machine alone would have written",
                path.display(),
                others.join(" and "),
                own.join(" and "),
            )
        });
        self.machines.extend(earlier.machines.iter().cloned());
        warning
    }

    /// Checks that `self` and `earlier`, found at `path`, are about the same input.
    ///
    /// # Errors
    /// [`Error::OtherInput`].
    pub fn check_input(&self, earlier: &Self, path: &Path) -> Result<(), Error> {
        if earlier.input_sha256 == self.input_sha256 {
            return Ok(());
        }
        Err(Error::OtherInput { path: path.to_owned(), recorded: earlier.input_sha256.clone() })
    }
}

fn same(path: &Path, name: &str, recorded: &str, given: &str) -> Result<(), Error> {
    if recorded == given {
        return Ok(());
    }
    Err(Error::Parameter {
        path: path.to_owned(),
        name: name.to_owned(),
        recorded: recorded.to_owned(),
        given: given.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(arguments: &[(&str, &str)]) -> Record {
        Record {
            record_version: RECORD_VERSION,
            tool: "build".into(),
            tool_version: "1".into(),
            llama_cpp: "b1".into(),
            input_sha256: "00".into(),
            input_bytes: 1,
            arguments: arguments.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            machines: ["avx2".to_owned()].into(),
            planned: BTreeSet::new(),
            tensors: BTreeMap::new(),
        }
    }

    fn refusal(earlier: &Record, now: &Record) -> String {
        let arguments = now.check_arguments(earlier, Path::new("out"), |_, _, _| false);
        arguments.and_then(|()| now.check_input(earlier, Path::new("out"))).unwrap_err().to_string()
    }

    #[test]
    fn a_difference_is_named_with_both_values() {
        let (a, b) = (record(&[("--seed", "1")]), record(&[("--seed", "2")]));
        let text = refusal(&a, &b);
        assert!(text.starts_with("--resume: --seed is 2, but out was made with 1:"), "{text}");
        assert!(refusal(&a, &record(&[])).contains("--seed is not set, but out was made with 1"));
        assert!(a.check_arguments(&a, Path::new("out"), |_, _, _| false).is_ok());
    }

    #[test]
    fn another_input_or_program_is_named() {
        let a = record(&[]);
        assert!(refusal(&a, &Record { input_sha256: "01".into(), ..a.clone() }).contains("input"));
        assert!(refusal(&a, &Record { tool_version: "2".into(), ..a.clone() }).contains("version"));
    }

    #[test]
    fn an_argument_may_grow_where_the_method_allows_it() {
        let (a, b) = (record(&[("--scheme", "sign")]), record(&[("--scheme", "sign+row_scale")]));
        let grows = |name: &str, _: &str, _: &str| name == "--scheme";
        assert!(b.check_arguments(&a, Path::new("out"), grows).is_ok());
    }

    #[test]
    fn machines_of_another_kind_are_told_of_and_remembered() {
        let path = Path::new("out.gguf");
        let (a, mut b) = (record(&[]), record(&[]));
        assert_eq!(b.take_over_machines(&a, path), None);
        b.machines = ["avx512f".to_owned()].into();
        let warning = b.take_over_machines(&a, path).unwrap();
        for part in ["out.gguf", "avx2", "avx512f", "last bits"] {
            assert!(warning.contains(part), "{warning}");
        }
        // Nothing undoes that two worked on it, whichever goes on.
        let mut again = record(&[]);
        assert!(again.take_over_machines(&b, path).is_some() && again.machines == b.machines);
        // Records of earlier versions do not tell.
        let old: Record = serde_json::from_str(
            r#"{"record_version":1,"tool":"","tool_version":"","llama_cpp":"","input_sha256":"","input_bytes":0,"arguments":{}}"#,
        )
        .unwrap();
        assert_eq!(record(&[]).take_over_machines(&old, path), None);
    }
}
