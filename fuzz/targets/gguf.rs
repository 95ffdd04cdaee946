//! Any bytes as a GGUF file: opening, every key, every tensor, and what statecells-inspect makes of it.
#![no_main]

use ggml::gguf::GgufFile;
use inspect::{Inspection, KvTypes};
use libfuzzer_sys::fuzz_target;
use program::Selection;

#[path = "file.rs"]
mod file;

fuzz_target!(|data: &[u8]| {
    let path = file::of(data);
    let Ok(file) = GgufFile::open(path) else { return };
    for key in file.keys() {
        assert!(file.value(&key).is_some());
        assert!(!key.contains(char::is_control));
    }
    for tensor in file.tensors() {
        assert!(tensor.offset() + tensor.n_bytes() <= data.len());
        assert_eq!(file.data(tensor).len(), tensor.n_bytes());
        if tensor.ty().has_to_float() {
            file.to_f32(tensor).expect("the tensor's rows are whole");
        }
    }
    drop(file);
    if let Ok(seen) = Inspection::new(path, &Selection::default(), None, KvTypes::default()) {
        serde_json::to_string(&seen).expect("plain data");
    }
});
