//! Builds killed by SIGKILL at any moment, with every scheme and several settings of the checkpoints: what stands
//! under the final name is complete, and `--resume` ends with the bytes of an uninterrupted run.
//!
//! A short form by default; `scripts/kill-test.sh N` kills N times and prints the figures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use end_to_end::programs::{Run, command};
use fixtures::architectures;
use fixtures::models::Model;
use ggml::gguf::GgufWriter;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

/// Kills of the short form.
const FEW: usize = 16;

/// Uninterrupted goes on after so many kills of one build, so that all of it is reached.
const KILLS_PER_BUILD: usize = 8;

/// What is built: a program and its flags.
const BUILDS: [(&str, &str, &str); 9] = [
    ("sections", "statecells-build", "-i model.gguf --S 4 --beam 2 --no-calib"),
    ("sections, own text", "statecells-build", "-i model.gguf --S 4 --beam 2 --tokens 1024"),
    ("sections, calib", "statecells-build", "-i model.gguf --S 4 --beam 2 --calib calib.gguf"),
    ("sections, shared out", "statecells-build", "-i model.gguf --bpw 7 --beam 2 --no-calib"),
    ("sign", "statecells-build", "-i model.gguf --scheme sign --dict-M 32 --dict-k 4"),
    (
        "sign+row_scale",
        "statecells-build",
        "-i model.gguf --row-scale --dict-M 32 --dict-k 4 --encoder omp",
    ),
    ("sign+vals", "statecells-build", "-i model.gguf --vals --dict-M 32 --dict-k 4"),
    ("sections, experts", "statecells-build", "-i mixture.gguf --S 4 --beam 2 --tokens 512"),
    ("seeddelta", "seeddelta-build", "-i model.gguf --base lowrank:8 --delta-k 8 --row-scale"),
];

const CHECKPOINTS: [u32; 3] = [1, 3, 100];

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// A folder with a model, its calibration, and a mixture of experts.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(TempDir::new().unwrap());
        let model = Model { n_layers: 4, n_embd: 64, n_ff: 96, ..Model::default() };
        let short = |writer: &mut GgufWriter| writer.set("llama.context_length", 128u32);
        model.write_with(&folder.path("model.gguf"), short, |_, _| {}).unwrap();
        architectures::write_experts("qwen3moe", &folder.path("mixture.gguf")).unwrap();
        let words = (0..600).map(|i| format!("w{} ", i * i % 131)).collect::<String>();
        fs::write(folder.path("text.txt"), words).unwrap();
        let path = |name| folder.path(name).into_os_string();
        let flags = ["-m".into(), path("model.gguf"), "-f".into(), path("text.txt")];
        let rest = [
            "-o".into(),
            path("calib.gguf"),
            "--ctx".into(),
            "128".into(),
            "--tokens".into(),
            "2048".into(),
        ];
        let _ = Run::of("statecells-calib", flags.into_iter().chain(rest)).ok();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self, (_, name, flags): (&str, &str, &str), more: &str) -> Child {
        let always = "-o out.gguf".split(' ');
        let mut command =
            command(name, always.chain(flags.split(' ')).chain(more.split_whitespace()));
        command.current_dir(self.0.path());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs to the end and gives the output, which is taken away.
    fn finish(&self, build: (&str, &str, &str), more: &str) -> Vec<u8> {
        let output = self.start(build, more).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {more}: {said}", build.0);
        self.take().expect("a build that succeeds leaves its output")
    }

    /// What stands under the final name; the calibration that was made for it goes as well.
    fn take(&self) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path("out.gguf")).ok()?;
        fs::remove_file(self.path("out.gguf")).unwrap();
        let _ = fs::remove_file(self.path("out.calib.gguf"));
        Some(bytes)
    }
}

/// What happened to one build with one setting.
#[derive(Default)]
struct Count {
    killed: usize,
    /// Kills of a build that had kept something already.
    with_checkpoints: usize,
    too_late: usize,
    resumed: usize,
}

fn kept(folder: &Path) -> usize {
    let work = fs::read_dir(folder).unwrap().flatten().find(|e| e.path().is_dir());
    let names = work.and_then(|w| fs::read_dir(w.path()).ok()).into_iter().flatten().flatten();
    names.filter(|e| e.path().extension().is_some_and(|e| e == "tensor")).count()
}

fn kill_builds(
    folder: &Folder,
    build: (&str, &str, &str),
    every: u32,
    n: usize,
    random: &mut impl Rng,
) -> Count {
    let start = Instant::now();
    let expected = folder.finish(build, "-t 2");
    let mut whole = start.elapsed();
    let mut count = Count::default();
    let mut since = 0;
    while count.killed < n {
        let threads = random.random_range(1..=2);
        let more = format!("--resume --checkpoint-every {every} -t {threads}");
        let mut child = folder.start(build, &more);
        std::thread::sleep(whole.mul_f64(random.random_range(0.0..1.0)));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            count.killed += 1;
            count.with_checkpoints += usize::from(kept(folder.0.path()) > 0);
        } else {
            count.too_late += 1;
            // The first run may have been slowed down by others.
            whole = whole.mul_f64(0.8);
        }
        child.wait().unwrap();
        since += 1;
        if let Some(bytes) = folder.take() {
            assert!(bytes == expected, "{}: other bytes under the final name", build.0);
            since = 0;
        }
        if since >= KILLS_PER_BUILD || count.killed == n {
            let bytes = folder.finish(build, "--resume");
            assert!(bytes == expected, "{}: resumed to other bytes", build.0);
            count.resumed += 1;
            since = 0;
        }
    }
    count
}

#[test]
fn killed_builds_resume_to_the_same_bytes() {
    let n_kills = number("STATECELLS_KILLS", FEW);
    let seed = number("STATECELLS_KILL_SEED", 1) as u64;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let folder = Folder::new();
    let start = Instant::now();
    let mut cases: Vec<_> = BUILDS.iter().flat_map(|b| CHECKPOINTS.map(|c| (*b, c))).collect();
    if n_kills < cases.len() {
        // The short form: every scheme, with the settings in turn.
        cases = BUILDS.iter().zip(CHECKPOINTS.iter().cycle()).map(|(b, c)| (*b, *c)).collect();
    }
    println!("| build | --checkpoint-every | kills | with checkpoints | came too late | resumed |");
    println!("|---|---|---|---|---|---|");
    let mut total = Count::default();
    for (i, (build, every)) in cases.iter().enumerate() {
        let n = n_kills * (i + 1) / cases.len() - n_kills * i / cases.len();
        let count = kill_builds(&folder, *build, *every, n, &mut random);
        let Count { killed, with_checkpoints, too_late, resumed } = count;
        println!(
            "| {} | {every} | {killed} | {with_checkpoints} | {too_late} | {resumed} |",
            build.0
        );
        total.killed += killed;
        total.with_checkpoints += with_checkpoints;
        total.too_late += too_late;
        total.resumed += resumed;
    }
    println!(
        "| all | | {} | {} | {} | {} |\nseed {seed}, {:.0} s",
        total.killed,
        total.with_checkpoints,
        total.too_late,
        total.resumed,
        start.elapsed().max(Duration::from_millis(1)).as_secs_f64()
    );
    assert_eq!(total.killed, n_kills);
    assert!(total.with_checkpoints > 0, "no kill met a build that had kept something");
}
