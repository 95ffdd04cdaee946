//! Models in several files, as llama-gguf-split cuts them: `NAME-00001-of-0000N.gguf` and so on.
//!
//! Read as llama.cpp reads them: the first part is given and has the metadata, the others are looked for by its
//! name. Only a part that was opened and says that it is the one asked for is believed.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::context::Context;
use super::mapped::{map, read};
use super::scan::MAX_ENTRIES;
use super::tensor::TensorInfo;
use super::{GgufError, Value};

/// Which part it is, from 0, as U16.
const NUMBER_KEY: &str = "split.no";
/// How many there are, as U16; 0 and 1 stand for a whole file.
const COUNT_KEY: &str = "split.count";
/// Tensors of all parts, as I32.
const TENSORS_KEY: &str = "split.tensors.count";

/// One mapped file.
#[derive(Debug)]
pub(super) struct Part {
    pub path: PathBuf,
    pub map: Mmap,
}

/// All files of a model, the first part first, and what they hold together.
pub(super) struct Parts {
    pub files: Vec<Part>,
    /// Metadata of the first part.
    pub context: Context,
    pub tensors: Vec<TensorInfo>,
}

impl Parts {
    /// Maps the file at `path`, and all other parts where it is the first of several.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let map = map(path)?;
        let (context, tensors) = read(&map, path, 0)?;
        let files = vec![Part { path: path.to_owned(), map }];
        let mut parts = Self { files, context, tensors };
        if let Some(first) = First::of(&parts.context, path).map_err(unfit(path))? {
            for number in 1..first.count {
                parts.add(&first, number)?;
            }
            parts.check_complete(&first).map_err(unfit(path))?;
        }
        Ok(parts)
    }

    /// Maps the part `number`, from 0, and takes its tensors.
    fn add(&mut self, first: &First<'_>, number: u16) -> Result<(), GgufError> {
        let path = first.path_of(number);
        let map = map(&path).map_err(|error| match error {
            GgufError::Open { cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
                unfit(&path)(first.missing(number))
            }
            other => other,
        })?;
        let (context, tensors) = read(&map, &path, self.files.len())?;
        first.check_part(&context, number).map_err(unfit(&path))?;
        self.tensors.extend(tensors);
        self.files.push(Part { path, map });
        // Before the next one is opened: what is kept of all parts is bounded as for one file.
        self.check_tensors(first).map_err(unfit(&self.files[0].path))
    }

    /// Checks that there are not more tensors than the first part or any model counts.
    fn check_tensors(&self, first: &First<'_>) -> Result<(), String> {
        let n = self.tensors.len() as u64;
        if n > MAX_ENTRIES {
            return Err(format!("its parts hold more than the {MAX_ENTRIES} tensors of any model"));
        }
        if n > first.n_tensors {
            return Err(first.miscounted(&format!("{n} or more")));
        }
        Ok(())
    }

    fn check_complete(&self, first: &First<'_>) -> Result<(), String> {
        let n = self.tensors.len() as u64;
        if n != first.n_tensors {
            return Err(first.miscounted(&n.to_string()));
        }
        let mut names = HashSet::new();
        match self.tensors.iter().find(|tensor| !names.insert(tensor.name())) {
            None => Ok(()),
            Some(twice) => Err(format!(
                "tensor '{}' is in two of its parts: they are not of one model",
                twice.name()
            )),
        }
    }
}

/// What the first of several parts says.
struct First<'a> {
    path: &'a Path,
    count: u16,
    n_tensors: u64,
}

impl<'a> First<'a> {
    /// What `context`, read from `path`, says about other parts; `None` if it is a whole file.
    fn of(context: &Context, path: &'a Path) -> Result<Option<Self>, String> {
        let count = match context.value(COUNT_KEY) {
            None => return Ok(None),
            Some(_) => u16_key(context, COUNT_KEY)?,
        };
        if count < 2 {
            return Ok(None);
        }
        let number = u16_key(context, NUMBER_KEY)?;
        let n_tensors = match context.value(TENSORS_KEY) {
            Some(Value::I32(n)) => u64::try_from(n).ok(),
            _ => None,
        };
        let n_tensors = n_tensors.ok_or_else(|| wrong_key(TENSORS_KEY, "i32"))?;
        if number > 0 {
            return Err(another(path, number, count));
        }
        if stem(path, 0, count).is_none() {
            return Err(format!(
                "is the first of {count} parts ({COUNT_KEY}): it has to be called {}, and the others accordingly",
                part_name("NAME", 0, count)
            ));
        }
        Ok(Some(Self { path, count, n_tensors }))
    }

    fn path_of(&self, number: u16) -> PathBuf {
        let stem = stem(self.path, 0, self.count).expect("checked when it was read");
        path_of(stem, number, self.count)
    }

    fn missing(&self, number: u16) -> String {
        format!(
            "is not there: it is part {} of {} of {}, all parts have to be in one folder",
            u32::from(number) + 1,
            self.count,
            self.path.display()
        )
    }

    /// Checks that `context` is that of the part `number`; only its number has to be stated.
    fn check_part(&self, context: &Context, number: u16) -> Result<(), String> {
        let stated = u16_key(context, NUMBER_KEY)?;
        let has = |key: &str| context.value(key).is_some();
        let wanted = format!("part {} of {}", u32::from(number) + 1, self.count);
        let mixed_up = |found: String| {
            Err(format!("{found}, not {wanted} of {}: the parts are mixed up", self.path.display()))
        };
        if stated != number {
            return mixed_up(format!("is part {} ({NUMBER_KEY})", u32::from(stated) + 1));
        }
        if has(COUNT_KEY) && u16_key(context, COUNT_KEY)? != self.count {
            let count = u16_key(context, COUNT_KEY)?;
            return mixed_up(format!("is one of {count} parts ({COUNT_KEY})"));
        }
        match context.value(TENSORS_KEY) {
            None => Ok(()),
            Some(Value::I32(n)) if u64::try_from(n).ok() == Some(self.n_tensors) => Ok(()),
            Some(_) => mixed_up(format!("is of a model with another {TENSORS_KEY}")),
        }
    }

    fn miscounted(&self, found: &str) -> String {
        format!(
            "its {} parts hold {found} tensors instead of {} ({TENSORS_KEY}): they are not of one model",
            self.count, self.n_tensors
        )
    }
}

/// What to give instead of the part `number`.
fn another(path: &Path, number: u16, count: u16) -> String {
    let first = match stem(path, number, count) {
        Some(stem) => path_of(stem, 0, count).display().to_string(),
        None => part_name("NAME", 0, count),
    };
    format!("is part {} of {count} of a model: give the first one, {first}", u32::from(number) + 1)
}

/// The path up to what its number and count add; `None` if it does not end in these. Not the name alone: a part
/// may be called `folder/-00001-of-00002.gguf`, as for llama.cpp.
fn stem(path: &Path, number: u16, count: u16) -> Option<&[u8]> {
    let stem = path.as_os_str().as_bytes().strip_suffix(part_name("", number, count).as_bytes());
    stem.filter(|stem| !stem.is_empty())
}

fn path_of(stem: &[u8], number: u16, count: u16) -> PathBuf {
    let path = [stem, part_name("", number, count).as_bytes()].concat();
    OsString::from_vec(path).into()
}

/// How the part `number`, from 0, is called.
fn part_name(stem: &str, number: u16, count: u16) -> String {
    format!("{stem}-{:05}-of-{count:05}.gguf", u32::from(number) + 1)
}

fn u16_key(context: &Context, key: &str) -> Result<u16, String> {
    match context.value(key) {
        Some(Value::U16(value)) => Ok(value),
        _ => Err(wrong_key(key, "u16")),
    }
}

/// llama.cpp stops at keys of other types, also where the number would fit.
fn wrong_key(key: &str, expected: &str) -> String {
    format!(
        "is a part of a model, but has no metadata key '{key}' of type {expected}: it is damaged"
    )
}

fn unfit(path: &Path) -> impl Fn(String) -> GgufError {
    move |reason| GgufError::Parts { path: path.to_owned(), reason }
}
