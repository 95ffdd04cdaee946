//! Models in several files, written by hand, against the same model in one file.

use std::path::{Path, PathBuf};

use fixtures::hostile::gguf::{ALIGNMENT, Gguf, Value};
use fixtures::hostile::good;
use ggml::gguf::{GgufFile, GgufWriter, TensorInfo};

fn name(number: usize, count: usize) -> String {
    format!("m-{:05}-of-{count:05}.gguf", number + 1)
}

/// Writes `parts` and gives the path of the first.
fn write(folder: &Path, parts: &[Gguf]) -> PathBuf {
    for (i, part) in parts.iter().enumerate() {
        std::fs::write(folder.join(name(i, parts.len())), part.bytes()).unwrap();
    }
    folder.join(name(0, parts.len()))
}

fn whole(folder: &Path) -> GgufFile {
    let path = folder.join("whole.gguf");
    std::fs::write(&path, good::model().bytes()).unwrap();
    GgufFile::open(&path).unwrap()
}

/// Everything about the tensors but where they lie.
fn contents(file: &GgufFile) -> Vec<(&str, ggml::Type, &[usize], &[u8])> {
    let content = |t| -> (_, _, _, _) {
        let t: &TensorInfo = t;
        (t.name(), t.ty(), t.dims(), file.data(t))
    };
    file.tensors().iter().map(content).collect()
}

#[test]
fn all_parts_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let whole = whole(folder.path());
    for n in [2, 3, whole.tensors().len()] {
        let path = write(folder.path(), &good::parts(&good::model(), n));
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(contents(&file), contents(&whole), "{n} parts");
        let paths: Vec<PathBuf> = file.paths().map(Path::to_owned).collect();
        assert_eq!(paths, (0..n).map(|i| folder.path().join(name(i, n))).collect::<Vec<_>>());
        let n_bytes: u64 = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
        assert_eq!((file.n_bytes() as u64, file.path()), (n_bytes, path.as_path()));
        assert_eq!(file.value("general.name"), whole.value("general.name"));
        let last = file.tensors().last().unwrap();
        assert_eq!(file.to_f32(last).unwrap(), whole.to_f32(&whole.tensors()[11]).unwrap());
        file.release(last);
        assert_eq!(file.data(last), whole.data(whole.tensor(last.name()).unwrap()));
    }
}

/// `llama-gguf-split --no-tensor-first-split`, and what other writers may leave out behind the first part.
#[test]
fn the_first_part_may_hold_no_tensors_and_the_others_only_their_number() {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = good::parts(&good::model(), 2);
    let first: Vec<_> = parts[0].tensors.drain(..).collect();
    parts[1].tensors.splice(0..0, first);
    parts[1].remove("split.count");
    parts[1].remove("split.tensors.count");
    let file = GgufFile::open(&write(folder.path(), &parts)).unwrap();
    assert_eq!(contents(&file), contents(&whole(folder.path())));
}

/// As for llama.cpp, each part's places follow from its own alignment.
#[test]
fn a_part_may_have_an_alignment_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = good::parts(&good::model(), 2);
    // All sizes are multiples of it, so that only the place where the data begin differs.
    let alignment = 4 * ALIGNMENT;
    parts[1].set("general.alignment", Value::u32(alignment as u32));
    let path = write(folder.path(), &parts);
    let mut encoded = parts[1].encode();
    let padding = |(part, _): &&(String, usize)| part == "padding after the descriptions";
    let start = encoded.boundaries.iter().find(padding).unwrap().1;
    assert_ne!(start % alignment, 0, "nothing would be tested");
    let more = vec![0; start.next_multiple_of(alignment) - start];
    encoded.bytes.splice(start..start, more);
    std::fs::write(folder.path().join(name(1, 2)), &encoded.bytes).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(contents(&file), contents(&whole(folder.path())));
}

#[test]
fn a_merged_file_is_a_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.gguf");
    for count in [0, 1] {
        let merged = good::model()
            .with("split.no", Value::u16(0))
            .with("split.count", Value::u16(count))
            .with("split.tensors.count", Value::i32(12));
        std::fs::write(&path, merged.bytes()).unwrap();
        assert_eq!(GgufFile::open_whole(&path).unwrap().paths().len(), 1);
    }
}

#[test]
fn what_has_to_be_whole_is_refused_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &good::parts(&good::model(), 2));
    let error = GgufFile::open_whole(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("is one of 2 parts: join them with llama-gguf-split --merge"),
        "{error}"
    );
}

#[test]
fn another_than_the_first_names_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let first = write(folder.path(), &good::parts(&good::model(), 3));
    let error = |path: &Path| GgufFile::open(path).unwrap_err().to_string();
    let third = folder.path().join(name(2, 3));
    let expected = format!("is part 3 of 3 of a model: give the first one, {}", first.display());
    assert_eq!(error(&third), format!("{}: {expected}", third.display()));
    // Under a name that tells nothing, what it should be called.
    let renamed = folder.path().join("renamed.gguf");
    std::fs::rename(third, &renamed).unwrap();
    assert!(error(&renamed).ends_with("give the first one, NAME-00001-of-00003.gguf"));
    // Links have names of their own: those of downloads lead to files named by their hash.
    let linked = folder.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    for (number, link) in [first, folder.path().join(name(1, 3)), renamed].iter().enumerate() {
        std::os::unix::fs::symlink(link, linked.join(name(number, 3))).unwrap();
    }
    assert!(GgufFile::open(&linked.join(name(0, 3))).is_ok());
}

#[test]
fn what_is_written_says_nothing_about_parts() {
    let folder = tempfile::tempdir().unwrap();
    let file = GgufFile::open(&write(folder.path(), &good::parts(&good::model(), 2))).unwrap();
    let mut writer = GgufWriter::new();
    writer.copy_metadata_from(&file, |_| true);
    for key in ["split.no", "split.count", "split.tensors.count"] {
        assert!(file.value(key).is_some() && writer.value(key).is_none(), "{key}");
    }
}
