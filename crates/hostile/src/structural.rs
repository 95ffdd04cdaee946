//! Files whose structure is broken: no reader of GGUF may take them, whatever it wants from them.

use crate::Case;
use crate::gguf::{Gguf, Tensor, Value, tensor_type, value_type};
use crate::good;

/// 2^63: negative as a signed number.
const HUGE: u64 = 1 << 63;

/// [`good::model`] cut after each of its parts but the last, and in the middle of some.
#[must_use]
pub fn truncated() -> Vec<Case> {
    let whole = good::model().encode();
    let n = whole.bytes.len();
    let mut cases: Vec<Case> = Vec::new();
    // The last part is the padding behind the last tensor, which readers can do without.
    let last = whole.boundaries[whole.boundaries.len() - 2].1;
    for (part, end) in whole.boundaries.iter().filter(|(_, end)| *end < last.min(n)) {
        if cases.last().is_none_or(|c| c.bytes.len() != *end) {
            cases.push(cut(&whole.bytes, *end, &format!("cut after {part}")));
        }
    }
    cases.push(cut(&whole.bytes, 0, "cut after nothing"));
    cases.push(cut(&whole.bytes, 2, "cut after half the magic"));
    cases.push(cut(&whole.bytes, 12, "cut after half the number of tensors"));
    cases.push(cut(&whole.bytes, last - 1, "cut after all but a byte"));
    cases
}

fn cut(bytes: &[u8], end: usize, name: &str) -> Case {
    let says: &[&str] = if end < 4 { &["not a GGUF file"] } else { &["truncated or damaged"] };
    Case::new(name, bytes[..end].to_vec(), says)
}

/// Files with a lie in a count, a length, a name, a type, a shape or a place.
#[must_use]
pub fn structure() -> Vec<Case> {
    [header(), metadata(), names(), shapes(), places()].concat()
}

fn changed(name: &str, says: &[&'static str], change: impl FnOnce(&mut Gguf)) -> Case {
    let mut file = good::model();
    change(&mut file);
    Case::of(name, &file, says)
}

fn header() -> Vec<Case> {
    let mut cases = vec![
        changed("another magic", &["not a GGUF file"], |f| f.magic = *b"GGML"),
        changed("version 0", &["version 0"], |f| f.version = 0),
        changed("version 1", &["version 1"], |f| f.version = 1),
        changed("version 4", &["version 4"], |f| f.version = 4),
        changed("big endian", &["version 50331648"], |f| f.version = 3u32.swap_bytes()),
    ];
    for (name, n) in [("2^63", HUGE), ("2^64 - 1", u64::MAX), ("2^40", 1 << 40)] {
        let tensors = format!("{name} tensors");
        cases.push(changed(&tensors, &["tensors claimed"], |f| f.n_tensors = Some(n)));
        let keys = format!("{name} keys");
        cases.push(changed(&keys, &["metadata keys claimed"], |f| f.n_keys = Some(n)));
    }
    // Each is 25 bytes in the file and hundreds in memory.
    cases.push(changed("65537 tensors", &["65537 tensors", "more than the 65536"], |f| {
        f.tensors = vec![Tensor::new("t", tensor_type::F32, &[], Vec::new()); 65537];
    }));
    cases.push(changed("a tensor more than there are", &["tensor"], |f| {
        f.n_tensors = Some(f.tensors.len() as u64 + 1);
    }));
    cases.push(changed("a key more than there are", &["text claimed"], |f| {
        f.n_keys = Some(f.keys.len() as u64 + 1);
    }));
    cases
}

fn metadata() -> Vec<Case> {
    let with = |name: &str, says: &[&'static str], key: &str, value: Value| {
        changed(name, says, |f| f.set(key, value))
    };
    let length = |n: u64| Value::raw(value_type::STRING, n.to_le_bytes().to_vec());
    let array = |ty, n| Value::array(ty, n, Vec::new());
    let mut cases = vec![
        with("text of 2^63 bytes", &["'t'", "claimed"], "t", length(HUGE)),
        with("text of 2^64 - 1 bytes", &["'t'", "claimed"], "t", length(u64::MAX)),
        with("array of 2^63 bytes", &["'a'", "claimed"], "a", array(0, HUGE)),
        with("array of 2^61 + 1 u64", &["'a'", "claimed"], "a", array(10, (1 << 61) + 1)),
        with("array of 2^63 texts", &["'a'", "claimed"], "a", array(value_type::STRING, HUGE)),
        with("array of 2^32 texts", &["'a'", "claimed"], "a", array(value_type::STRING, 1 << 32)),
        with("array of arrays", &["'a'", "no type of a value"], "a", array(value_type::ARRAY, 1)),
        with("array of an unknown type", &["'a'", "no type of a value"], "a", array(99, 1)),
        with("unknown value type", &["'v'", "no type of a value"], "v", Value::raw(99, vec![0; 8])),
        with("value type 2^32 - 1", &["'v'", "no type"], "v", Value::raw(u32::MAX, vec![0; 8])),
        changed("key twice", &["duplicate key", "'general.name'"], |f| {
            f.keys.push((b"general.name".to_vec(), Value::u32(1)));
        }),
        with("alignment 0", &["alignment 0"], "general.alignment", Value::u32(0)),
        with("alignment 48", &["alignment 48"], "general.alignment", Value::u32(48)),
        with("alignment 2^31", &["truncated or damaged"], "general.alignment", Value::u32(1 << 31)),
        with("alignment as text", &["general.alignment"], "general.alignment", Value::text("32")),
        with("alignment as u64", &["general.alignment"], "general.alignment", Value::u64(32)),
    ];
    cases.push(changed("key of 2^63 bytes", &["metadata key"], |f| {
        // What follows the counts is the first key's length.
        f.keys.clear();
        f.tensors.clear();
        f.n_keys = Some(1);
    }));
    if let Some(case) = cases.last_mut() {
        case.bytes.truncate(24);
        case.bytes.extend(HUGE.to_le_bytes());
        case.bytes.extend([0; 64]);
    }
    cases
}

fn names() -> Vec<Case> {
    let key = |name: &str, says: &[&'static str], key: &[u8]| {
        changed(name, says, |f| f.keys.push((key.to_vec(), Value::u32(1))))
    };
    let tensor = |name: &str, says: &[&'static str], tensor: &[u8]| {
        changed(name, says, |f| f.tensors.push(Tensor::f32(tensor, &[1], &[0.0])))
    };
    vec![
        key("key without a name", &["empty"], b""),
        key("key with NUL", &["not a text"], b"a\0b").fine_for_llama(),
        key("key with a line break", &["control character"], b"a\nb").fine_for_llama(),
        key("key with an escape sequence", &["control character"], b"\x1b[2J").fine_for_llama(),
        key("key that is not UTF-8", &["not a text"], b"\xff\xfe").fine_for_llama(),
        tensor("tensor name with NUL", &["not a text"], b"a\0b"),
        tensor("tensor name with a line break", &["control character"], b"a\nerror: b"),
        tensor("tensor name with an escape sequence", &["control character"], b"\x1b]0;title\x07"),
        tensor("tensor name with C1 controls", &["control character"], "a\u{9b}31m".as_bytes()),
        tensor("tensor name that is not UTF-8", &["not a text"], b"\xc3\x28"),
        tensor("tensor name of 64 bytes", &["too long"], &[b'n'; 64]),
        changed("tensor twice", &["duplicate tensor name", "'output.weight'"], |f| {
            f.tensors.push(Tensor::f32("output.weight", &[1], &[0.0]));
        }),
    ]
}

fn shapes() -> Vec<Case> {
    // The last tensor: behind any other the next one's place would be what is wrong first.
    let last = "output.weight";
    let dims = |name: &str, dims: &[u64]| {
        changed(name, &["output.weight"], |f| f.tensor(last).dims = dims.to_vec())
    };
    let ty =
        |name: &str, ty: u32| changed(name, &["output.weight", "type"], |f| f.tensor(last).ty = ty);
    vec![
        changed("5 dimensions", &["output.weight", "5 dimensions"], |f| {
            f.tensor(last).dims = vec![1; 5];
        }),
        changed("2^32 - 1 dimensions", &["output.weight", "dimensions"], |f| {
            f.tensor(last).n_dims = Some(u32::MAX);
        }),
        dims("dimension of 2^63", &[HUGE]),
        dims("dimension of 2^64 - 1", &[u64::MAX, 64]),
        dims("product of 2^64", &[1 << 32, 1 << 32]),
        dims("product of 2^64 by four", &[1 << 16; 4]),
        dims("bytes of 2^64", &[1 << 31, 1 << 31]),
        dims("bytes of 2^62", &[1 << 30, 1 << 30]),
        changed("rows that are not there", &["output.weight", "truncated or damaged"], |f| {
            f.tensor(last).dims = vec![32, 1 << 20];
        }),
        changed("no elements, and data", &["blk.0.ffn_down.weight", "offset"], |f| {
            f.tensor("blk.0.ffn_up.weight").dims = vec![0, 1 << 62, 4];
        }),
        // 2^62 blocks of 18 bytes are 0 in arithmetic that wraps.
        changed("bytes that wrap to 0", &["output.weight"], |f| {
            f.tensor(last).ty = tensor_type::Q4_0;
            f.tensor(last).dims = vec![1 << 62];
        }),
        changed("half a block", &["output.weight", "block size"], |f| {
            f.tensor(last).ty = tensor_type::Q8_0;
            f.tensor(last).dims = vec![31, 64];
        }),
        ty("tensor type 1000", 1000),
        ty("tensor type 2^32 - 1", u32::MAX),
        // Q4_2, taken out of ggml.
        ty("tensor type that was removed", 4),
    ]
}

fn places() -> Vec<Case> {
    let down = "blk.0.ffn_down.weight";
    let offset = |name: &str, offset: u64| {
        changed(name, &["blk.0.ffn_down.weight", "offset"], |f| {
            f.tensor(down).offset = Some(offset);
        })
    };
    let mut cases = vec![
        offset("overlapping tensors", 0),
        offset("offset past the end", 1 << 40),
        offset("offset of 2^63", HUGE),
        offset("offset of 2^64 - 1", u64::MAX),
        offset("offset that wraps", u64::MAX - 31),
    ];
    let unaligned = changed("unaligned tensor", &["blk.0.ffn_down.weight", "offset"], |f| {
        let at = f.tensors.iter().position(|t| t.name == down.as_bytes()).expect("it is there");
        let n: usize = f.tensors[..at].iter().map(|t| t.data.len().next_multiple_of(32)).sum();
        f.tensors[at].offset = Some(n as u64 + 4);
    });
    cases.push(unaligned);
    cases
}
