//! Train, validation and test examples without overlap, as jsonl.

use std::collections::HashSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use program::files::Unfinished;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::tiny::Error;
use crate::tiny::tasks::{Example, Task};

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// To learn from.
    Train,
    /// To watch while learning.
    Validation,
    /// To measure the finished model.
    Test,
}

impl Split {
    /// All parts.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// Name of its file.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Train => "train.jsonl",
            Self::Validation => "validation.jsonl",
            Self::Test => "test.jsonl",
        }
    }
}

/// How many examples of each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Examples to learn from, at most: there are only 10 000 sums.
    pub train: usize,
    /// Examples to watch.
    pub validation: usize,
    /// Examples to measure with.
    pub test: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { train: 30_000, validation: 300, test: 400 }
    }
}

/// Draws in a row that bring nothing new before a task counts as exhausted.
const PATIENCE: usize = 2_000;

/// All three parts: distinct prompts throughout, test drawn first, then validation, then train; within a
/// part the tasks take turns.
///
/// # Errors
/// [`Error::Model`] if a task has not as many different examples as test and validation ask for.
pub fn generate(seed: u64, sizes: Sizes) -> Result<[Vec<Example>; 3], Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut seen = HashSet::new();
    let mut part = |n: usize| {
        let per_task = Task::ALL.map(|task| distinct(task, n, &mut seen, &mut rng));
        let longest = per_task.iter().map(Vec::len).max().unwrap_or(0);
        let turn = |i: usize| per_task.iter().filter_map(move |examples| examples.get(i)).cloned();
        let mixed: Vec<Example> = (0..longest).flat_map(turn).collect();
        (mixed, per_task.map(|examples| examples.len()))
    };
    let (test, n_test) = part(sizes.test);
    let (validation, n_validation) = part(sizes.validation);
    let (train, n_train) = part(sizes.train);
    for (task, i) in Task::ALL.into_iter().zip(0..) {
        let complete = n_test[i] == sizes.test && n_validation[i] == sizes.validation;
        if !complete || n_train[i] == 0 {
            return Err(Error::Model(format!(
                "there are fewer different examples of '{task}' than asked for: ask for less"
            )));
        }
    }
    Ok([train, validation, test])
}

fn distinct(
    task: Task,
    n: usize,
    seen: &mut HashSet<String>,
    rng: &mut ChaCha8Rng,
) -> Vec<Example> {
    let (mut examples, mut misses) = (Vec::with_capacity(n), 0);
    while examples.len() < n && misses < PATIENCE {
        let example = task.example(rng);
        if seen.insert(example.prompt.clone()) {
            examples.push(example);
            misses = 0;
        } else {
            misses += 1;
        }
    }
    examples
}

/// Writes `examples` to the part's file in `folder`, which appears when it is complete.
///
/// # Errors
/// [`Error::Io`] or [`Error::Program`].
pub fn write(folder: &Path, split: Split, examples: &[Example]) -> Result<PathBuf, Error> {
    let path = folder.join(split.file_name());
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut file = Unfinished::create(&path)?;
    let mut out = BufWriter::new(file.file());
    let mut write = || -> std::io::Result<()> {
        for example in examples {
            serde_json::to_writer(&mut out, example)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    write().map_err(program::io(&path, "write"))?;
    drop(out);
    file.publish()?;
    Ok(path)
}

/// Reads a part back.
///
/// # Errors
/// [`Error::Io`], or [`Error::Data`] naming the line that is no example, or whose answer is wrong.
pub fn read(path: &Path) -> Result<Vec<Example>, Error> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let example = |(i, line): (usize, &str)| {
        let refuse = |reason: String| Error::Data { path: path.to_owned(), line: i + 1, reason };
        let example: Example = serde_json::from_str(line).map_err(|e| refuse(e.to_string()))?;
        match example.task.solve(&example.prompt) {
            Some(answer) if answer == example.answer => Ok(example),
            _ => Err(refuse(format!(
                "'{}' is not the answer to '{}'",
                example.answer, example.prompt
            ))),
        }
    };
    text.lines().enumerate().map(example).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Sizes = Sizes { train: 9_500, validation: 50, test: 60 };

    #[test]
    fn parts_do_not_overlap_and_the_seed_decides() {
        let parts = generate(1, SMALL).unwrap();
        let prompts: HashSet<&String> = parts.iter().flatten().map(|e| &e.prompt).collect();
        assert_eq!(prompts.len(), parts.iter().map(Vec::len).sum::<usize>());
        assert_eq!((parts[1].len(), parts[2].len()), (150, 180));
        assert!(parts[0].iter().filter(|e| e.task == Task::Sum).count() > 7_000);
        assert_eq!(parts, generate(1, SMALL).unwrap());
        assert_ne!(parts, generate(2, SMALL).unwrap());
        assert!(generate(1, Sizes { test: 20_000, ..SMALL }).is_err());
    }

    #[test]
    fn a_wrong_answer_in_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let [_, validation, _] = generate(1, SMALL).unwrap();
        let path = write(folder.path(), Split::Validation, &validation).unwrap();
        assert_eq!(read(&path).unwrap(), validation);
        let text = fs::read_to_string(&path).unwrap();
        let wrong = r#"{"task":"sum","prompt":"s11+11=","answer":"230"}"#;
        fs::write(&path, format!("{text}{wrong}\n")).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.ends_with("line 151: '230' is not the answer to 's11+11='"), "{message}");
    }
}
