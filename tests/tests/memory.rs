//! Peak memory: a build's follows the largest tensor and not the number of layers; a run maps the codes and
//! copies none of them.

use std::path::Path;

use end_to_end::model_file::{ModelFile, Tensor};
use end_to_end::programs::{Peak, peak_of};
use fixtures::models::Model;
use format::sections::{ATOMS, BLOCK, CODES, DICT, ROW_SCALE, SectionsLayout};
use format::{MatrixId, MatrixShape, Role, keys};
use ggml::Type;
use half::f16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// What a build may use beyond four times the largest matrix: promised is 1 GB, needed far less.
const BUILD_LIMIT: u64 = 300 * MIB;

/// Peak of a build of `model`, and the size of the model's file.
fn build(model: &Model, flags: &str) -> (Peak, u64) {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    model.write(Path::new(&path("model.gguf"))).unwrap();
    let files = ["-i".to_owned(), path("model.gguf"), "-o".to_owned(), path("out.gguf")];
    let flags = flags.split(' ').map(str::to_owned);
    let peak = peak_of("statecells-build", files.into_iter().chain(flags));
    (peak, std::fs::metadata(path("model.gguf")).unwrap().len())
}

const GLOBAL: &str = "--row-scale --dict-M 24 --dict-k 4 --dict-iters 1 --dict-refine 1 \
                      --dict-max-samples 128 -t 1";
const SECTIONS: &str = "--no-calib --S 2 --beam 1 --dict-max-samples 128 -t 1";

#[test]
fn a_build_follows_the_largest_tensor_and_not_the_file() {
    let small = Model { n_embd: 256, n_ff: 512, ..Model::default() };
    let large = Model {
        n_embd: 1024,
        n_ff: 4096,
        n_vocab: 16384,
        ffn_type: Type::F32,
        other_type: Type::F32,
        ..Model::default()
    };
    for model in [small, large] {
        let (peak, file) = build(&model, &format!("{GLOBAL} --layers 0"));
        let largest = 4 * (model.n_embd * model.n_ff) as u64;
        let allowed = BUILD_LIMIT + 4 * largest;
        println!("file {file} bytes, largest matrix {largest}, {peak:?}, allowed {allowed}");
        assert!(peak.resident < allowed, "{peak:?}, the largest matrix has {largest} bytes");
    }
}

#[test]
fn a_build_of_many_layers_needs_as_much_as_one_of_few() {
    let of = |n_layers| Model { n_layers, n_embd: 256, n_ff: 1024, ..Model::default() };
    for flags in [GLOBAL, SECTIONS] {
        let (few, small) = build(&of(2), flags);
        let (many, large) = build(&of(16), flags);
        println!("{flags}: 2 layers, {small} bytes: {few:?}; 16 layers, {large} bytes: {many:?}");
        let more = large - small;
        let own = many.own.saturating_sub(few.own);
        assert!(own < more / 8, "{few:?}, {many:?} for {more} bytes more");
        // Pages of the mapped model are given back too. The kernel maps more than what is touched, up to 2 MB at
        // a time where the page cache has such pages, so this limit is wider.
        let resident = many.resident.saturating_sub(few.resident);
        assert!(resident < more / 2, "{few:?}, {many:?} for {more} bytes more");
    }
}

/// Sections of a coded matrix below.
const S: usize = 6;

/// A model whose FFN weights are random codes, and the bytes of these: every byte is a sound pair of codes.
fn coded(folder: &Path, n_layers: usize) -> (String, u64) {
    let (n_embd, n_ff) = (512, 8192);
    let path = folder.join(format!("{n_layers}.gguf"));
    Model { n_layers, n_embd, n_ff: 32, ..Model::default() }.write(&path).unwrap();
    let mut file = ModelFile::read(&path);
    file.set("llama.feed_forward_length", n_ff as u32);
    file.set(keys::ENABLED, true);
    file.set(keys::VERSION, keys::FORMAT_VERSION);
    file.set(keys::SCHEME, "sections");
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut n_bytes = 0;
    for layer in 0..n_layers {
        for role in Role::PLAIN {
            let tensor = MatrixId { layer, role };
            let shape = match role {
                Role::Down => MatrixShape::new(n_ff, n_embd),
                _ => MatrixShape::new(n_embd, n_ff),
            };
            file.set(&keys::tensor_scheme(tensor), "sections");
            let sidecars = sidecars(tensor, shape, &mut random);
            n_bytes += sidecars[1].data.len() as u64;
            file.replace(&tensor.weight(), sidecars);
        }
    }
    file.write(&path);
    (path.to_str().unwrap().to_owned(), n_bytes)
}

fn sidecars(tensor: MatrixId, shape: MatrixShape, random: &mut ChaCha8Rng) -> [Tensor; 3] {
    let sidecar = |suffix: &str, ty: Type, dims: &[usize], data: Vec<u8>| Tensor {
        name: tensor.with_suffix(suffix),
        ty,
        dims: dims.to_vec(),
        data,
    };
    let codes = SectionsLayout { shape, sections: S }.codes();
    let mut bytes = vec![0; codes.dims.iter().product()];
    random.fill(&mut bytes[..]);
    let atoms: Vec<u8> = (0..BLOCK * ATOMS * S)
        .flat_map(|_| f16::from_f32(random.random_range(-0.01..0.01)).to_le_bytes())
        .collect();
    let scales = f16::ONE.to_le_bytes().repeat(shape.d_out);
    [
        sidecar(DICT, Type::F16, &[BLOCK, ATOMS, S], atoms),
        sidecar(CODES, Type::I8, &codes.dims, bytes),
        sidecar(ROW_SCALE, Type::F16, &[shape.d_out], scales),
    ]
}

/// Without repacking: what llama.cpp copies of the other weights for some CPUs (AMX: of all that are quantized) is its own.
fn run(path: &str, flags: &str) -> Peak {
    let always = "--statecells -no-cnv -p hello -n 4 --temp 0 --ignore-eos -c 64 -t 2 --no-warmup \
                  --no-repack -m";
    peak_of("llama-completion", always.split(' ').chain([path]).chain(flags.split_whitespace()))
}

#[test]
fn a_run_maps_the_codes_and_copies_none() {
    let folder = TempDir::new().unwrap();
    let (small, few) = coded(folder.path(), 1);
    let (large, many) = coded(folder.path(), 9);
    let (one, nine) = (run(&small, ""), run(&large, ""));
    println!("codes of {few} bytes: {one:?}; of {many} bytes: {nine:?}");
    let grown = nine.own.saturating_sub(one.own);
    // Half a MiB of each layer is its KV cache, which llama.cpp rounds up to 256 tokens.
    assert!(grown < (many - few) / 4, "{one:?}, {nine:?} for {} bytes of codes more", many - few);
    // Every code is used: the pages are there, as the file's. What reads the file instead is seen.
    assert!(nine.resident - one.resident > (many - few) / 2, "{one:?}, {nine:?}");
    let copied = run(&large, "--load-mode none");
    assert!(copied.own > many, "without a mapping {copied:?} cannot hold {many} bytes of codes");
}
