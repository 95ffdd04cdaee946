//! Names of the format's tables as C strings that stay.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

/// Owned names, and the pointers to them with a null at the end.
struct Names {
    names: Vec<CString>,
    list: Vec<*const c_char>,
}

// SAFETY: the pointers lead to strings that `names` owns, which nothing changes or moves once they are made.
unsafe impl Send for Names {}
// SAFETY: as above.
unsafe impl Sync for Names {}

impl Names {
    fn new(names: Vec<&'static str>) -> Self {
        let to_c = |name: &str| CString::new(name).unwrap_or_default(); // no name holds a zero
        let names: Vec<CString> = names.into_iter().map(to_c).collect();
        let list = names.iter().map(|name| name.as_ptr()).chain([std::ptr::null()]).collect();
        Self { names, list }
    }
}

/// Every suffix that a sidecar may have; ends with a null.
pub fn suffixes() -> *const *const c_char {
    static SUFFIXES: OnceLock<Names> = OnceLock::new();
    SUFFIXES.get_or_init(|| Names::new(format::sidecar_suffixes())).list.as_ptr()
}

/// The flag that runs matrices of `scheme`, see [`format::flag_of`].
pub fn flag_of(scheme: &str) -> *const c_char {
    static FLAGS: OnceLock<Names> = OnceLock::new();
    let flags = FLAGS.get_or_init(|| Names::new(format::flags()));
    let flag = format::flag_of(scheme);
    let found = flags.names.iter().find(|name| name.to_bytes() == flag.as_bytes());
    found.map_or(c"".as_ptr(), |name| name.as_ptr())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn text<'a>(name: *const c_char) -> &'a str {
        // SAFETY: a C string that stays.
        unsafe { CStr::from_ptr(name) }.to_str().unwrap()
    }

    #[test]
    fn the_names_are_those_of_the_format() {
        let (list, expected) = (suffixes(), format::sidecar_suffixes());
        for (i, suffix) in expected.iter().enumerate() {
            // SAFETY: the list has that many entries before its null.
            assert_eq!(text(unsafe { *list.add(i) }), *suffix);
        }
        // SAFETY: as above.
        assert!(unsafe { *list.add(expected.len()) }.is_null());
        for scheme in ["sections", "sign+vals", "seeddelta", "magic", ""] {
            assert_eq!(text(flag_of(scheme)), format::flag_of(scheme), "{scheme}");
        }
    }
}
