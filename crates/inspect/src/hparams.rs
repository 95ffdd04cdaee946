//! Numbers of a model's metadata that may differ from layer to layer.

use ggml::gguf::{Array, GgufFile, Value};

/// The number `<architecture>.<key>`, or its entry for `layer` where it is an array.
pub(crate) fn per_layer(
    file: &GgufFile,
    architecture: &str,
    key: &str,
    layer: usize,
) -> Option<u64> {
    match file.value(&format!("{architecture}.{key}"))? {
        Value::Array(array) => array_entry(&array, layer),
        value => value.as_u64(),
    }
}

/// The entry of an array of any integer type.
fn array_entry(array: &Array, index: usize) -> Option<u64> {
    let value = match array {
        Array::U32(v) => Value::U32(*v.get(index)?),
        Array::I32(v) => Value::I32(*v.get(index)?),
        Array::U64(v) => Value::U64(*v.get(index)?),
        Array::I64(v) => Value::I64(*v.get(index)?),
        Array::U16(v) => Value::U16(*v.get(index)?),
        Array::I16(v) => Value::I16(*v.get(index)?),
        Array::U8(v) => Value::U8(*v.get(index)?),
        Array::I8(v) => Value::I8(*v.get(index)?),
        _ => return None,
    };
    value.as_u64()
}
