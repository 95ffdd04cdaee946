#!/usr/bin/env bash
# Runs all tests, after making what they need: tools, llama.cpp, workspace, model.
#
# usage: scripts/test.sh [CARGO TEST ARGUMENT...]
#
#   --help   this text
#
# Arguments go to cargo test (a test's name, -p CRATE); with arguments, the tests in Python
# are left out. The tests find programs and models in bin and models. Ends with the summaries of
# the test runners and fails if one test does.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rust_tests() {
  local what=(--workspace)
  if (($# > 0)); then what=("$@"); fi
  (cd "$ROOT" && STATECELLS_BIN_DIR=$BIN_DIR STATECELLS_MODELS_DIR=$MODELS_DIR STATECELLS_PYTHON=$VENV/bin/python \
    cargo test --release --locked "${what[@]}")
}

# A run for each folder: both have a conftest.py.
python_tests() {
  local folder
  "$VENV/bin/shellcheck" --external-sources --source-path=SCRIPTDIR "$SCRIPTS"/*.sh "$ROOT/.ci/run"
  for folder in scripts/tests tests/python; do
    (cd "$ROOT" && STATECELLS_BIN_DIR=$BIN_DIR STATECELLS_MODELS_DIR=$MODELS_DIR \
      "$VENV/bin/python" -m pytest -q -p no:cacheprovider "$folder")
  done
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then show_help && exit 0; fi
again="mend what the message above names, then ./scripts/test.sh again: finished work is skipped"
step "tools" "$again" "$SCRIPTS/setup-tools.sh" --test
step "llama.cpp" "$again" "$SCRIPTS/build-llama.sh"
step "workspace" "$again" "$SCRIPTS/build-workspace.sh"
step "kernels" "see simd/mod.rs in crates/statecells-kernels" "$SCRIPTS/check-inlined.sh"
step "model" "$again" "$SCRIPTS/fetch-model.sh"
if (($# == 0)); then step "tests in Python: scripts and file format" "the failed check is named above" python_tests; fi
# Only pages are looked at with it: without Node.js or the network, these tests say that they are skipped.
browser() { "$SCRIPTS/setup-browser.sh" || err "   no browser: tests of pages will be skipped"; }
step "browser" "$again" browser
step "tests of the workspace" "the failed test is named above; run it alone with ./scripts/test.sh NAME" rust_tests "$@"
