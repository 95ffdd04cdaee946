#!/usr/bin/env bash
# Runs tests under sanitizers: hostile files through llama.cpp, and the threads of the hook.
#
# usage: scripts/sanitize.sh [files | threads]
#
#   files     the corpus of crates/hostile through llama-completion, built with AddressSanitizer and UBSan,
#             its hook with AddressSanitizer, debug assertions and overflow checks
#   threads   the hook's tests under valgrind's DRD, which finds accesses of two threads without an order
#   --help    this text; without an argument, both
#
# Any report of a sanitizer fails the test in which it is made. The instrumented llama.cpp is a build of its
# own in the cache, as long as the first one of build-llama.sh, and does not touch bin. Rust code is instrumented by the
# stable compiler (RUSTC_BOOTSTRAP), the standard library is not. ThreadSanitizer would need an instrumented
# standard library, hence valgrind. Needs scripts/setup-tools.sh and scripts/build-llama.sh first.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

LOGS=$CARGO_TARGET_DIR/drd

# By SIGABRT, since tests of refusals wait for exit code 1. What a program that gives up still holds is no leak.
REPORTS=abort_on_error=1:halt_on_error=1:print_stacktrace=1

is_instrumented() {
  local said
  said=$(ASAN_OPTIONS=verbosity=1:$REPORTS "$SANITIZED_BIN/llama-completion" --version 2>&1)
  [[ $said == *AddressSanitizer* ]] || die "llama-completion in $SANITIZED_BIN is not instrumented"
}

files() {
  "$SCRIPTS/build-llama.sh" --sanitize
  is_instrumented
  (cd "$ROOT" && STATECELLS_BIN_DIR=$SANITIZED_BIN ASAN_OPTIONS=$REPORTS:detect_leaks=0 \
    UBSAN_OPTIONS=$REPORTS:suppressions=$SCRIPTS/ubsan.supp \
    cargo test --release --locked --workspace --test hostile_corpus)
}

# DRD takes the locks and atomics inside std and rayon for races. What counts are accesses made by the hook:
# those whose own stack, and not that of the other thread, goes through it.
races_of_the_hook() {
  awk -v RS='Conflicting ' '
    NR > 1 {
      split($0, own, /\n==[0-9]+==[ \t]*\n|\n==[0-9]+== (Address|Allocation|Other)/)
      if (own[1] ~ /statecells_(hook|kernels)::|statecells_(apply|prepare|check)/) { print "Conflicting " own[1]; n++ }
    }
    END { exit n > 0 }' "$1"
}

threads() {
  need valgrind "install valgrind"
  local tests test log
  # Unit tests, and those of the C ABI, which run a product on real threads.
  tests=$(test_programs --package statecells-hook --lib --tests)
  mkdir -p "$LOGS"
  while read -r test; do
    log=$LOGS/${test##*/}.log
    # One test at a time: the threads under test are those of a product.
    quietly "$LOGS/output" valgrind --tool=drd --log-file="$log" "$test" --test-threads=1
    grep -q "ERROR SUMMARY" "$log" || die "valgrind did not come to the end; see $log"
    races_of_the_hook "$log" || die "threads of the hook get in each other's way; all of it is in $log"
    say "   ${test##*/}: $(grep -c Conflicting "$log" || true) reports, none of the hook"
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
