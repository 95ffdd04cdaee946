#!/usr/bin/env bash
# Builds everything and copies every program to bin/: the patched llama.cpp, then the workspace.
#
# usage: scripts/build.sh
#
#   --help   this text
#
# Environment as in setup-tools.sh, fetch-llama.sh and build-llama.sh, which it runs.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

build_workspace() {
  (cd "$ROOT" && cargo build --release --locked --workspace --bins)
  local lines programs target_dir program
  lines=$(workspace_programs)
  mapfile -t programs <<<"$lines"
  target_dir=${programs[0]}
  for program in "${programs[@]:1}"; do install_program "$target_dir/release/$program" "$program"; done
}

no_options "$@"
step "tools: cmake, ninja, libclang in .tools" "read the message above; the network is needed once" \
  "$SCRIPTS/setup-tools.sh"
step "llama.cpp: pinned source, checked" "read the message above; the network is needed once" \
  "$SCRIPTS/fetch-llama.sh"
step "llama.cpp: patched programs in bin" "fix the cause named above and run it again; finished files are kept" \
  "$SCRIPTS/build-llama.sh"
step "workspace: programs in bin" "fix the cause named above and run it again; finished crates are kept" \
  build_workspace
