//! The JSON schemas that are committed.

/// For tests of `package`: fails if the committed `docs/schema/<name>` is not `schema`; with `UPDATE_SCHEMA`
/// set, writes it.
///
/// # Panics
/// If they differ.
#[doc(hidden)]
pub fn check_schema(name: &str, schema: &str, package: &str) {
    const REGENERATE: &str = "UPDATE_SCHEMA";
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema");
    if std::env::var_os(REGENERATE).is_some() {
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        std::fs::write(folder.join(name), schema).expect("the schema can be written");
    }
    let committed = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    assert!(
        committed == schema,
        "docs/schema/{name} differs from the types: run `{REGENERATE}=1 cargo test --release -p {package} \
         schema` and commit the result; a changed or removed field also needs a higher schema version"
    );
}
