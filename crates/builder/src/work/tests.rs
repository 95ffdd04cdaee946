use format::{ElementType, Role};
use numerics::metrics::Metrics;

use super::*;
use crate::{ErrorMetrics, RECORD_VERSION, StoredSpec, TuningReport};

const TENSOR: MatrixId = MatrixId { layer: 3, role: Role::Up };

fn sidecars() -> Vec<Sidecar> {
    vec![
        Sidecar::from_f32("dict", &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        Sidecar::from_i16("codes", &[1, 3], &[1, -2, 0]),
    ]
}

fn specs() -> Vec<SidecarSpec> {
    sidecars().into_iter().map(|s| s.spec).collect()
}

fn result() -> TensorResult {
    let metrics = Metrics {
        gap: f64::INFINITY,
        rel_error: 0.1 + 0.2,
        cos_mean: -0.0,
        cos_p05: f64::MIN_POSITIVE,
        error_energy: 1e300,
        weight_energy: 0.0,
    };
    TensorResult {
        scheme: Some("sign".to_owned()),
        gap: 0.3,
        metrics: Some(ErrorMetrics {
            white: metrics,
            weighted: Some(metrics),
            eval_gap: None,
            functional: None,
        }),
        seconds: 1.5,
        sidecars: specs().iter().map(StoredSpec::from).collect(),
        sidecars_sha256: sidecars_sha256(sidecars().iter().map(|s| s.data.as_slice())),
        expert_inputs: vec![7, 0],
        ffn_tuned: None,
        tuned: None,
    }
}

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        WorkFolder::path_for(&self.dir.path().join("out.gguf"), "test")
    }

    fn open(&self, existing: Existing) -> Result<WorkFolder, Error> {
        WorkFolder::open(&self.path(), existing, 1)
    }
}

#[test]
fn a_checkpoint_comes_back_as_it_was() {
    let fixture = Fixture::new();
    let mut folder = fixture.open(Existing::Refuse).unwrap();
    folder.save(TENSOR, &result(), &sidecars()).unwrap();
    drop(folder);
    let folder = fixture.open(Existing::Resume).unwrap();
    assert_eq!(folder.finished(Stage::Coded).unwrap(), BTreeMap::from([(TENSOR, result())]));
    assert_eq!(folder.load(TENSOR, Stage::Coded, &specs()).unwrap(), sidecars());
}

#[test]
fn a_checkpoint_damaged_at_any_byte_or_cut_anywhere_is_done_again() {
    let fixture = Fixture::new();
    let mut folder = fixture.open(Existing::Refuse).unwrap();
    folder.save(TENSOR, &result(), &sidecars()).unwrap();
    let path = folder.checkpoint_path(TENSOR, Stage::Coded);
    let whole = fs::read(&path).unwrap();
    let damaged = (0..whole.len()).map(|i| {
        let mut bytes = whole.clone();
        bytes[i] ^= 0x10;
        bytes
    });
    let cut = (0..whole.len()).map(|n| whole[..n].to_vec());
    let longer = std::iter::once([whole.as_slice(), b"x"].concat());
    for bytes in damaged.chain(cut).chain(longer) {
        fs::write(&path, &bytes).unwrap();
        assert!(folder.load(TENSOR, Stage::Coded, &specs()).is_err());
        assert!(folder.finished(Stage::Coded).unwrap().is_empty());
        assert!(!path.exists());
    }
}

#[test]
fn what_was_tuned_is_kept_beside_what_it_was_made_from() {
    let fixture = Fixture::new();
    let mut folder = fixture.open(Existing::Refuse).unwrap();
    folder.save(TENSOR, &result(), &sidecars()).unwrap();
    let report = TuningReport { steps: 1, divergence_before: 2.0, divergence_after: 1.0 };
    let tuned = TensorResult { tuned: Some(report), ..result() };
    let mut moved = sidecars();
    moved[0].data[0] ^= 1;
    folder.save(TENSOR, &tuned, &moved).unwrap();
    assert_eq!(folder.finished(Stage::Tuned).unwrap(), BTreeMap::from([(TENSOR, tuned)]));
    assert_eq!(folder.load(TENSOR, Stage::Tuned, &specs()).unwrap(), moved);
    assert_eq!(folder.load(TENSOR, Stage::Coded, &specs()).unwrap(), sidecars());
    assert_eq!(folder.n_kept(), 1);
    folder.forget(Stage::Tuned).unwrap();
    assert!(folder.finished(Stage::Tuned).unwrap().is_empty());
    assert_eq!(folder.finished(Stage::Coded).unwrap().len(), 1);
    // One of a stage under the name of the other is none.
    let coded = folder.checkpoint_path(TENSOR, Stage::Coded);
    fs::rename(coded, folder.checkpoint_path(TENSOR, Stage::Tuned)).unwrap();
    assert!(folder.finished(Stage::Tuned).unwrap().is_empty());
}

#[test]
fn a_folder_can_be_looked_at_without_touching_it() {
    let fixture = Fixture::new();
    WorkFolder::check(&fixture.path()).unwrap();
    assert!(!fixture.path().exists());
    let held = fixture.open(Existing::Refuse).unwrap();
    assert!(matches!(WorkFolder::check(&fixture.path()), Err(Error::Locked { .. })));
    drop(held);
    WorkFolder::check(&fixture.path()).unwrap();
    fs::remove_dir_all(fixture.path()).unwrap();
    fs::write(fixture.path(), "a file").unwrap();
    assert!(matches!(
        WorkFolder::check(&fixture.path()),
        Err(Error::Program(program::Error::Io { .. }))
    ));
    assert!(WorkFolder::check(&fixture.dir.path().join("x".repeat(256))).is_err());
}

#[test]
fn other_sidecars_than_planned_are_refused() {
    let fixture = Fixture::new();
    let mut folder = fixture.open(Existing::Refuse).unwrap();
    folder.save(TENSOR, &result(), &sidecars()).unwrap();
    let mut other = specs();
    other[0].element_type = ElementType::I32;
    assert!(folder.load(TENSOR, Stage::Coded, &other).is_err());
    assert!(folder.load(TENSOR, Stage::Coded, &specs()[..1]).is_err());
}

#[test]
fn commits_wait_for_the_given_number_of_tensors() {
    let fixture = Fixture::new();
    let mut folder = WorkFolder::open(&fixture.path(), Existing::Refuse, 2).unwrap();
    let tensor = |layer| MatrixId { layer, ..TENSOR };
    for (layer, visible) in [(0, 0), (1, 2), (2, 2)] {
        folder.save(tensor(layer), &result(), &sidecars()).unwrap();
        assert_eq!(folder.finished(Stage::Coded).unwrap().len(), visible);
    }
    folder.commit().unwrap();
    assert_eq!(folder.finished(Stage::Coded).unwrap().len(), 3);
}

#[test]
fn an_existing_folder_is_refused_resumed_or_emptied() {
    let fixture = Fixture::new();
    let mut folder = fixture.open(Existing::Refuse).unwrap();
    folder.save(TENSOR, &result(), &sidecars()).unwrap();
    drop(folder);
    assert!(matches!(fixture.open(Existing::Refuse), Err(Error::Exists { .. })));
    assert_eq!(fixture.open(Existing::Resume).unwrap().finished(Stage::Coded).unwrap().len(), 1);
    assert_eq!(fixture.open(Existing::Replace).unwrap().finished(Stage::Coded).unwrap().len(), 0);
}

#[test]
fn two_builds_do_not_share_a_folder() {
    let fixture = Fixture::new();
    let _first = fixture.open(Existing::Refuse).unwrap();
    for existing in [Existing::Resume, Existing::Replace] {
        assert!(matches!(fixture.open(existing), Err(Error::Locked { .. })));
    }
}

#[test]
fn removal_takes_own_files_only() {
    let fixture = Fixture::new();
    let mut folder = fixture.open(Existing::Refuse).unwrap();
    folder.save(TENSOR, &result(), &sidecars()).unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    assert!(folder.remove().is_err());
    let left: Vec<_> =
        fs::read_dir(fixture.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["notes.txt"]);
    fs::remove_file(fixture.path().join("notes.txt")).unwrap();
    fixture.open(Existing::Resume).unwrap().remove().unwrap();
    assert!(!fixture.path().exists());
}

#[test]
fn the_record_is_kept() {
    let fixture = Fixture::new();
    let folder = fixture.open(Existing::Refuse).unwrap();
    assert!(folder.record().unwrap().is_none());
    let record = Record {
        record_version: RECORD_VERSION,
        tool: "test".to_owned(),
        tool_version: "1".to_owned(),
        llama_cpp: "2".to_owned(),
        input_sha256: "00".to_owned(),
        input_bytes: 3,
        arguments: BTreeMap::from([("--seed".to_owned(), "4".to_owned())]),
        machines: ["a machine".to_owned()].into(),
        planned: ["blk.3.ffn_up".to_owned()].into(),
        tensors: BTreeMap::new(),
    };
    folder.set_record(&record).unwrap();
    assert_eq!(folder.record().unwrap(), Some(record));
    fs::write(folder.path().join(MANIFEST), "{").unwrap();
    assert!(matches!(folder.record(), Err(Error::Resume { .. })));
}
