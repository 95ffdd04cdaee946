#!/usr/bin/env bash
# Builds the Rust workspace and copies its programs to bin/.
#
# usage: scripts/build-workspace.sh
#
#   --help   this text
#
# Needs scripts/build-llama.sh first: the workspace links its libraries.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

build_workspace() {
  (cd "$ROOT" && cargo build --release --locked --workspace --bins)
  local lines programs target_dir program
  lines=$(workspace_programs)
  mapfile -t programs <<<"$lines"
  target_dir=${programs[0]}
  for program in "${programs[@]:1}"; do install_program "$target_dir/release/$program" "$program"; done
  say "   in bin: ${programs[*]:1}"
}

no_options "$@"
need cargo "install a Rust toolchain"
[[ -f $PREFIX_FILE || -n ${STATECELLS_LLAMA_PREFIX:-} ]] || die "no llama.cpp yet; run ./scripts/build-llama.sh"
build_workspace
