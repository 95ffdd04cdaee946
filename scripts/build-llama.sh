#!/usr/bin/env bash
# Builds the patched llama.cpp and copies its programs to bin/.
#
# usage: scripts/build-llama.sh [--jobs N]
#
#   --jobs N   compile N files at a time (default: one per core)
#   --help     this text
#
# The build lies outside the checkout, in a folder of $STATECELLS_CACHE_DIR (default
# ~/.cache/statecells) named after everything it depends on: source, patches, flags, compiler and
# CPU features. .tools/llama-prefix names it for cargo. The first build takes about 12 minutes on
# 2 cores; afterwards a changed hook costs only the links. Old builds are never used again
# and may be deleted. Needs scripts/setup-tools.sh first; LLAMA_CPP_DIR as in fetch-llama.sh.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The web interface would be downloaded during the build.
CMAKE_FLAGS=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
  -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF)
HOOK=libstatecells_hook.a
JOBS=$(nproc)
PREFIX=

check_programs() {
  need cargo "install a Rust toolchain"
  need "${CC:-cc}" "install a C compiler or name one with CC"
  need "${CXX:-c++}" "install a C++ compiler or name one with CXX"
  need strip "install binutils"
  need flock "install util-linux"
  [[ -x $VENV/bin/cmake && -x $VENV/bin/ninja ]] || die "no cmake and ninja in .tools; run ./scripts/setup-tools.sh"
  compgen -G "$PATCHES_DIR/*.patch" >/dev/null || die "no patches in $PATCHES_DIR; the checkout is not complete"
  export PATH=$VENV/bin:$PATH
}

# All predefined macros: they tell compiler, version and the CPU features of -march=native.
compiler_id() {
  "${CC:-cc}" -march=native -dM -E -x c /dev/null
  "${CXX:-c++}" -march=native -dM -E -x c++ /dev/null
}

build_key() {
  {
    "$SCRIPTS/fetch-llama.sh" --id
    cat "$PATCHES_DIR"/*.patch
    printf '%s\n' "${CMAKE_FLAGS[@]}" "${CFLAGS:-}" "${CXXFLAGS:-}" "${LDFLAGS:-}"
    cat "$SCRIPTS/requirements.txt"
    compiler_id
  } | sha256_of_stdin
}

# The hook needs no ggml, so it comes first.
build_hook() {
  say "   the run-time hook ($HOOK)"
  (cd "$ROOT" && cargo build --release --locked --package statecells-hook)
}

# Into the prefix, without debug sections (they hold this checkout's path), so that equal hooks
# from two checkouts are equal files and cause no new links.
place_hook() {
  local hook=$PREFIX/hook/$HOOK built
  built=$(cargo_target_dir)/release/$HOOK
  mkdir -p "$PREFIX/hook"
  strip --strip-debug -o "$hook.tmp" "$built"
  if cmp -s "$hook.tmp" "$hook"; then rm -f "$hook.tmp"; else mv -f "$hook.tmp" "$hook"; fi
}

prepare_source() {
  if [[ -d $PREFIX/src ]]; then
    say "   source: already patched"
  else
    rm -rf "$PREFIX/build"
    "$SCRIPTS/fetch-llama.sh" --into "$PREFIX/src"
  fi
}

# Programs must not tell where they were built: equal input, equal bytes.
configure() {
  [[ ! -f $PREFIX/build/build.ninja ]] || return 0
  say "   configuring"
  local map="\"-ffile-prefix-map=$PREFIX/src=llama.cpp\" \"-ffile-prefix-map=$PREFIX/build=build\""
  rm -rf "$PREFIX/build"
  GIT_CEILING_DIRECTORIES=$PREFIX quietly "$PREFIX/configure.log" \
    cmake -G Ninja -S "$PREFIX/src" -B "$PREFIX/build" "${CMAKE_FLAGS[@]}" \
    "-DCMAKE_C_FLAGS=${CFLAGS:-} $map" "-DCMAKE_CXX_FLAGS=${CXXFLAGS:-} $map" \
    "-DLLAMA_BUILD_NUMBER=0" "-DLLAMA_BUILD_COMMIT=$("$SCRIPTS/fetch-llama.sh" --id)" \
    "-DSTATECELLS_HOOK_LIB=$PREFIX/hook/$HOOK"
}

# Every twentieth line of ninja's progress, and everything that is not progress.
thin_out() { awk '!/^\[[0-9]+\/[0-9]+\]/ || ++n % 20 == 1 { print "   " $0; fflush() }'; }

compile() {
  say "   compiling with $JOBS jobs (the first time takes minutes, see $PREFIX/build.log)"
  GIT_CEILING_DIRECTORIES=$PREFIX ninja -C "$PREFIX/build" -j "$JOBS" "${LLAMA_PROGRAMS[@]}" 2>&1 |
    tee "$PREFIX/build.log" | thin_out
}

install_programs() {
  local program
  for program in "${LLAMA_PROGRAMS[@]}"; do install_program "$PREFIX/build/bin/$program" "$program"; done
}

build() {
  place_hook
  prepare_source
  configure
  compile
  install_programs
  say "$PREFIX" | write_file "$PREFIX_FILE"
}

main() {
  case ${1:-} in
    --jobs)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage_error "--jobs needs a number above 0"
      JOBS=$2
      ;;
    *) no_options "$@" ;;
  esac
  check_programs
  local key
  key=$(build_key)
  PREFIX=$CACHE_DIR/llama/${key:0:16}
  build_hook
  with_lock "$PREFIX.lock" build
}

main "$@"
