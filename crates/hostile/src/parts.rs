//! Models in several files whose parts lie, are missing or were mixed up.

use std::path::{Path, PathBuf};

use crate::gguf::{Gguf, Tensor, Value, tensor_type};
use crate::{Case, good};

const N_PARTS: usize = 3;
const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const N_TENSORS: &str = "split.tensors.count";

/// A bad model in several files.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The file that is opened, as a case.
    pub case: Case,
    /// What it is called.
    pub name: String,
    /// The other files, by name.
    pub others: Vec<(String, Vec<u8>)>,
}

impl Parts {
    /// Writes all files to `folder`, which is made, and gives the path to open.
    ///
    /// # Panics
    /// If that is not possible.
    #[must_use]
    pub fn write(&self, folder: &Path) -> PathBuf {
        std::fs::create_dir_all(folder).expect("a folder that can be made");
        for (name, bytes) in &self.others {
            std::fs::write(folder.join(name), bytes).expect("a writable folder");
        }
        let path = folder.join(&self.name);
        std::fs::write(&path, &self.case.bytes).expect("a writable folder");
        path
    }

    /// Bytes of all files.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.case.bytes.len() + self.others.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    fn stops_llama(self) -> Self {
        Self { case: self.case.stops_llama(), ..self }
    }

    fn fine_for_llama(self) -> Self {
        Self { case: self.case.fine_for_llama(), ..self }
    }
}

/// What the part `number`, from 0, of `count` is called.
fn name(number: usize, count: usize) -> String {
    format!("model-{:05}-of-{count:05}.gguf", number + 1)
}

/// The files, the first of which is opened.
fn files(what: &str, says: &[&'static str], files: Vec<(String, Vec<u8>)>) -> Parts {
    let mut files = files.into_iter();
    let (name, bytes) = files.next().expect("a first file");
    Parts { case: Case::new(format!("parts: {what}"), bytes, says), name, others: files.collect() }
}

/// [`good::model`] in three parts, changed.
fn changed(what: &str, says: &[&'static str], change: impl FnOnce(&mut [Gguf])) -> Parts {
    let mut parts = good::parts(&good::model(), N_PARTS);
    change(&mut parts);
    let named = |(i, part): (usize, &Gguf)| (name(i, N_PARTS), part.bytes());
    files(what, says, parts.iter().enumerate().map(named).collect())
}

/// Files for every program that reads models.
#[must_use]
pub fn parts() -> Vec<Parts> {
    [missing(), numbers(), mixed_up(), tensors(), bytes()].concat()
}

fn missing() -> Vec<Parts> {
    let without = |number: usize, says: &[&'static str]| {
        let mut parts = changed(&format!("no part {}", number + 1), says, |_| {});
        parts.others.retain(|(file, _)| *file != name(number, N_PARTS));
        parts
    };
    let renamed = |what: &str, says: &[&'static str], file: &str| {
        let parts = changed(what, says, |_| {});
        Parts { name: file.to_owned(), ..parts }
    };
    let mut of_60000 =
        changed("60000 claimed", &["model-00002-of-60000.gguf", "2 of 60000"], |p| {
            p[0].set(COUNT, Value::u16(60000));
        });
    of_60000.name = name(0, 60000);
    let mut second = changed("the second given", &["part 2 of 3", "model-00001-of-00003"], |p| {
        p.swap(0, 1);
    });
    second.name = name(1, N_PARTS);
    vec![
        without(1, &["model-00002-of-00003.gguf: is not there", "part 2 of 3"]),
        without(2, &["model-00003-of-00003.gguf: is not there", "part 3 of 3"]),
        renamed("another name", &["other.gguf", "NAME-00001-of-00003.gguf"], "other.gguf"),
        renamed("another count in the name", &["00001-of-00004", "of-00003"], &name(0, 4)),
        of_60000,
        second,
    ]
}

fn numbers() -> Vec<Parts> {
    let first = |what: &str, says: &[&'static str], key: &'static str, value: Value| {
        changed(&format!("{what} in the first"), says, |p| p[0].set(key, value))
    };
    let second = |what: &str, says: &[&'static str], key: &'static str, value: Value| {
        changed(&format!("{what} in the second"), says, |p| p[1].set(key, value))
    };
    vec![
        first("a count as text", &[COUNT, "u16"], COUNT, Value::text("3")),
        first("a count as u64", &[COUNT, "u16"], COUNT, Value::u64(3)),
        first("a count of 65535", &["NAME-00001-of-65535.gguf"], COUNT, Value::u16(u16::MAX)),
        changed("no number in the first", &[NUMBER, "u16"], |p| p[0].remove(NUMBER)),
        first("a number as u32", &[NUMBER, "u16"], NUMBER, Value::u32(0)),
        first("a number of 65535", &["part 65536 of 3", "first"], NUMBER, Value::u16(u16::MAX)),
        first("tensors as u32", &[N_TENSORS, "i32"], N_TENSORS, Value::u32(12)),
        first("-1 tensors", &[N_TENSORS], N_TENSORS, Value::i32(-1)),
        changed("no number of tensors", &[N_TENSORS], |p| p[0].remove(N_TENSORS)),
        changed("no number in the second", &["00002-of-00003", NUMBER], |p| p[1].remove(NUMBER)),
        second("a number as u32", &["00002-of-00003", NUMBER], NUMBER, Value::u32(1)).stops_llama(),
        second("a number as array", &[NUMBER], NUMBER, Value::texts(&["1"])).stops_llama(),
    ]
}

/// llama.cpp looks at no more than the number of a part and the number of all tensors.
fn mixed_up() -> Vec<Parts> {
    let says = ["00002-of-00003.gguf", "mixed up"];
    vec![
        changed("the second and the third swapped", &["is part 3", "mixed up"], |p| p.swap(1, 2)),
        changed("the second of four parts", &says, |p| p[1].set(COUNT, Value::u16(4)))
            .fine_for_llama(),
        changed("the second of a larger model", &says, |p| p[1].set(N_TENSORS, Value::i32(99)))
            .fine_for_llama(),
        changed("the first again", &["is part 1", "mixed up"], |p| p[1] = p[0].clone()),
    ]
}

fn tensors() -> Vec<Parts> {
    let mut cases = vec![
        changed("a tensor in two parts", &["'output.weight'", "two of its parts"], |p| {
            let n = p[0].tensors.len();
            p[0].tensors[n - 1] = p[2].tensor("output.weight").clone();
        }),
        changed("a tensor of the second is gone", &["11 tensors instead of 12"], |p| {
            p[1].tensors.pop();
        }),
        changed("a tensor too many", &["13 or more tensors instead of 12"], |p| {
            p[2].tensors.push(Tensor::f32("more", &[1], &[0.0]));
        }),
        changed("more tensors than claimed", &["instead of 3"], |p| {
            p.iter_mut().for_each(|part| part.set(N_TENSORS, Value::i32(3)));
        }),
        changed("2^31 - 1 tensors claimed", &["instead of 2147483647"], |p| {
            p.iter_mut().for_each(|part| part.set(N_TENSORS, Value::i32(i32::MAX)));
        }),
    ];
    // Each is 30 bytes in its file and hundreds in memory.
    cases.push(changed("65536 tensors and more in all", &["65536 tensors of any model"], |p| {
        for (i, part) in p.iter_mut().enumerate() {
            let empty = |n| Tensor::new(format!("t{i}.{n}"), tensor_type::F32, &[0], Vec::new());
            part.tensors.extend((0..30_000).map(empty));
            part.set(N_TENSORS, Value::i32(90_012));
        }
    }));
    cases
}

fn bytes() -> Vec<Parts> {
    let second = |what: &str, says: &[&'static str], change: &dyn Fn(&mut Vec<u8>)| {
        let mut parts = changed(what, says, |_| {});
        change(&mut parts.others[0].1);
        parts
    };
    let cut = ["model-00002-of-00003.gguf", "truncated or damaged"];
    vec![
        second("the second cut in the data", &cut, &|bytes| bytes.truncate(bytes.len() - 40)),
        second("the second cut in the names", &cut, &|bytes| bytes.truncate(200)),
        second("the second empty", &["00002-of-00003", "not a GGUF file"], &Vec::clear),
        second("the second a text", &["00002-of-00003", "not a GGUF file"], &|bytes| {
            *bytes = b"<!DOCTYPE html>\n<html></html>\n".to_vec();
        }),
        changed("places by another alignment", &["00002-of-00003", "offset"], |p| {
            p[1].set("general.alignment", Value::u32(4096));
        }),
        changed("a place behind the end", &["00002-of-00003", "offset"], |p| {
            p[1].tensors[1].offset = Some(1 << 40);
        }),
        changed("2^40 tensors claimed by the third", &["00003-of-00003", "claimed"], |p| {
            p[2].n_tensors = Some(1 << 40);
        }),
    ]
}
