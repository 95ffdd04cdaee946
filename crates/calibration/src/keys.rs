//! Metadata keys of calibration files.

/// STRING `general.type`: what llama.cpp and the build programs tell files apart by.
pub const TYPE: &str = "general.type";
/// The value of [`TYPE`].
pub const TYPE_VALUE: &str = "calibration";
/// UINT32: version of the file format, [`FORMAT_VERSION`].
pub const VERSION: &str = "calibration.version";
/// STRING: SHA-256 of the model file.
pub const MODEL_SHA256: &str = "calibration.model.sha256";
/// STRING: the model's `general.architecture`.
pub const MODEL_ARCHITECTURE: &str = "calibration.model.architecture";
/// UINT32: layers of the model.
pub const MODEL_N_LAYER: &str = "calibration.model.n_layer";
/// UINT32: width of the model's hidden state.
pub const MODEL_N_EMBD: &str = "calibration.model.n_embd";
/// UINT32: width of the model's widest FFN.
pub const MODEL_N_FF: &str = "calibration.model.n_ff";
/// ARRAY of STRING: names of the text files, without folders.
pub const TEXT_NAMES: &str = "calibration.text.names";
/// ARRAY of STRING: SHA-256 of every text file.
pub const TEXT_SHA256: &str = "calibration.text.sha256";
/// UINT64: tokens that were fitted to.
pub const N_FITTED: &str = "calibration.tokens.fitted";
/// UINT64: tokens that were held out.
pub const N_HELD_OUT: &str = "calibration.tokens.held_out";
/// ARRAY of INT32: all contexts, one after the other. Optional.
pub const TOKENS: &str = "calibration.tokens.ids";
/// UINT32: tokens per context.
pub const N_CTX: &str = "calibration.n_ctx";
/// UINT64: seed that chose the samples.
pub const SEED: &str = "calibration.seed";
/// STRING: program and version that wrote the file.
pub const TOOL: &str = "calibration.tool";
/// STRING: version of llama.cpp that ran the model.
pub const LLAMA_CPP: &str = "calibration.llama_cpp";
/// UINT32: tokens per hashed run of the text.
pub const SHINGLE_TOKENS: &str = "calibration.text.shingle_tokens";
/// ARRAY of UINT64: the smallest hashes of such runs, ascending.
pub const SHINGLE_HASHES: &str = "calibration.text.shingle_hashes";

/// The file format this version reads and writes.
pub const FORMAT_VERSION: u32 = 1;
