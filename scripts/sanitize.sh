#!/usr/bin/env bash
# Runs tests under sanitizers: hostile files through llama.cpp, and the threads of the hook.
#
# usage: scripts/sanitize.sh [files | threads]
#
#   files     the corpus of crates/fixtures through llama-completion, built with AddressSanitizer and UBSan,
#             its hook with AddressSanitizer, debug assertions and overflow checks
#   threads   the hook's tests, which compute every product on several threads, with ThreadSanitizer
#   --help    this text; without an argument, both
#
# Any report of a sanitizer fails the test in which it is made. The instrumented llama.cpp is a build of its
# own in the cache, as long as the first one of build-llama.sh, and does not touch bin. Rust code is instrumented by the
# stable compiler (RUSTC_BOOTSTRAP), the standard library is not. Needs scripts/setup-tools.sh and
# scripts/build-llama.sh first.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# By SIGABRT, since tests of refusals wait for exit code 1. What a program that gives up still holds is no leak.
REPORTS=abort_on_error=1:halt_on_error=1:print_stacktrace=1

# is_instrumented SANITIZER PROGRAM ARGUMENT...
is_instrumented() {
  local said
  said=$(ASAN_OPTIONS=verbosity=1 TSAN_OPTIONS=verbosity=1 "${@:2}" 2>&1)
  [[ $said == *$1* ]] || die "$2 is not instrumented"
}

files() {
  "$SCRIPTS/build-llama.sh" --sanitize
  is_instrumented AddressSanitizer "$SANITIZED_BIN/llama-completion" --version
  (cd "$ROOT" && STATECELLS_BIN_DIR=$SANITIZED_BIN ASAN_OPTIONS=$REPORTS:detect_leaks=0 \
    UBSAN_OPTIONS=$REPORTS:suppressions=$SCRIPTS/ubsan.supp \
    cargo test --release --locked --workspace --test hostile_corpus)
}

# The standard library is used as it comes: its own locks are invisible, so tsan.supp leaves out who is built on them, the
# test harness and rayon (in the tests' preparation only), and rayon gets one thread. The hook uses none of it.
threads() {
  local tests test
  tests=$(RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
    sanitized_cargo test --manifest-path "$ROOT/Cargo.toml" --target-dir "$SANITIZED_TARGET/threads" \
    --package statecells-hook --lib --tests --no-run --message-format json | test_paths)
  while read -r test; do
    is_instrumented ThreadSanitizer "$test" --list
    # One test at a time: the threads under test are those of a product.
    (cd "$ROOT/crates/statecells-hook" && RAYON_NUM_THREADS=1 \
      TSAN_OPTIONS=$REPORTS:suppressions=$SCRIPTS/tsan.supp "$test" --test-threads=1)
  done <<<"$tests"
}

case ${1:-} in
  -h | --help) show_help && exit 0 ;;
  "") what=(files threads) ;;
  files | threads) what=("$1") ;;
  -*) usage_error "unknown option '$1'" ;;
  *) usage_error "'$1' is neither files nor threads" ;;
esac
[[ $# -le 1 ]] || usage_error "one argument at most"
for one in "${what[@]}"; do step "sanitizers: $one" "the report above names the place" "$one"; done
