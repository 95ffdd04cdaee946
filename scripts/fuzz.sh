#!/usr/bin/env bash
# Fuzzes every reader of untrusted files, the run-time hook and llama.cpp's loader in front of it.
#
# usage: scripts/fuzz.sh [SECONDS] [TARGET...]
#
#   SECONDS   in total, shared out evenly among the targets (default 60)
#   TARGET    only these: gguf, imatrix, calibration, policy, hook, loader
#   --help    this text
#
# Seeds are the corpus of crates/fixtures; what is found on the way is kept in fuzz/corpus, so the next
# run goes on from there. An input that breaks a target is written to fuzz/artifacts and named. The
# targets are built with AddressSanitizer, debug assertions and overflow checks, by the stable
# compiler (RUSTC_BOOTSTRAP). Needs scripts/setup-tools.sh --fuzz and scripts/build-llama.sh first.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TOTAL=60
TARGETS=(gguf imatrix calibration policy hook loader)
FUZZ=$ROOT/fuzz
BUILT=$CARGO_TARGET_DIR/fuzz
# The C++ libraries are not instrumented: what they do to a std::vector is unknown to the sanitizer.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_container_overflow=0}

build() {
  (cd "$ROOT" && RUSTC_BOOTSTRAP=1 PATH=$VENV/bin:$PATH cargo fuzz build --fuzz-dir "$FUZZ" --target-dir "$BUILT" --release)
  (cd "$ROOT" && cargo run --quiet --release --locked --package fixtures --example seeds -- "$FUZZ/seeds")
}

# Which seeds a target starts from; the hook makes its own inputs.
seeds_of() { if [[ -d $FUZZ/seeds/$1 ]]; then say "$FUZZ/seeds/$1"; fi; }

run() {
  local target=$1 seconds=$2 corpus=$FUZZ/corpus/$1 log=$FUZZ/artifacts/$1.log seeds
  mkdir -p "$corpus" "$FUZZ/artifacts"
  seeds=$(seeds_of "$target")
  # Files are read by way of the temporary folder: in memory where there is one.
  local temporary=${TMPDIR:-/tmp}
  if [[ -w /dev/shm ]]; then temporary=/dev/shm; fi
  # shellcheck disable=SC2086 # no seeds are no argument
  if ! TMPDIR=$temporary "$BUILT/$(rust_host)/release/$target" -max_total_time="$seconds" -malloc_limit_mb=64 \
    -rss_limit_mb=1024 -timeout=10 -max_len=131072 -print_final_stats=1 \
    -artifact_prefix="$FUZZ/artifacts/$target-" "$corpus" $seeds >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    die "the target '$target' failed; its input is in $FUZZ/artifacts (all output: $log)"
  fi
  local runs cover
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  cover=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
  say "   $target: $runs inputs in $seconds s, $cover, no failure"
}

case ${1:-} in
  -h | --help) show_help && exit 0 ;;
  -*) usage_error "unknown option '$1'" ;;
esac
if (($# > 0)); then
  [[ $1 =~ ^[1-9][0-9]*$ ]] || usage_error "'$1' is no number of seconds"
  TOTAL=$1
  shift
fi
if (($# > 0)); then TARGETS=("$@"); fi
[[ -x $VENV/bin/cargo-fuzz ]] || die "no cargo-fuzz in .tools; run ./scripts/setup-tools.sh --fuzz"
step "fuzz targets" "mend what is named above" build
for target in "${TARGETS[@]}"; do
  step "$target" "run it again with the named input" run "$target" $(((TOTAL + ${#TARGETS[@]} - 1) / ${#TARGETS[@]}))
done
