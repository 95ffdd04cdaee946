#!/usr/bin/env bash
# Builds the patched llama.cpp and copies its programs to bin/.
#
# usage: scripts/build-llama.sh [--jobs N] [--sanitize]
#
#   --jobs N     compile N files at a time (default: one per core)
#   --sanitize   only llama-completion and the hook, with AddressSanitizer (and UBSan for C and C++), to
#                .tools/sanitized; see sanitize.sh
#   --help       this text
#
# The build lies outside the checkout, in a folder of $STATECELLS_CACHE_DIR (default
# ~/.cache/statecells) named after source, flags, compiler and CPU features. The first build takes
# about 12 minutes on 2 cores; afterwards a changed patch costs the files that it touches, and a
# changed hook the links. Headers and libraries for cargo are kept for each state of the patches;
# .tools/llama-prefix names the one in use. All of the folder may be deleted at any time.
# Needs scripts/setup-tools.sh first; LLAMA_CPP_DIR as in fetch-llama.sh.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The web interface would be downloaded during the build.
CMAKE_FLAGS=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
  -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF)
HOOK=libstatecells_hook.a
HOOK_HEADER=$ROOT/crates/statecells-hook/include/statecells.h
# What ggml-sys reads of the two trees.
HEADERS=(CMakeLists.txt include ggml/CMakeLists.txt ggml/include src/llama-layers.h)
LIBRARIES=(src/libllama.a ggml/src/libggml.a ggml/src/libggml-base.a ggml/src/libggml-cpu.a
  CMakeCache.txt common/build-info.cpp)
JOBS=$(nproc)
SANITIZE= # not empty: the form for sanitize.sh
SOURCE_ID=
BUILT_HOOK=
WORK=   # src, build and hook: one for all states of the patches, used under a lock
PREFIX= # src and build for cargo: one for each state of the patches, never changed

check_programs() {
  need cargo "install a Rust toolchain"
  need "${CC:-cc}" "install a C compiler or name one with CC"
  need "${CXX:-c++}" "install a C++ compiler or name one with CXX"
  need strip "install binutils"
  need flock "install util-linux"
  [[ -x $VENV/bin/cmake && -x $VENV/bin/ninja ]] || die "no cmake and ninja in .tools; run ./scripts/setup-tools.sh"
  compgen -G "$PATCHES_DIR/*.patch" >/dev/null || die "no patches in $PATCHES_DIR; the checkout is not complete"
}

# All predefined macros: they tell compiler, version and the CPU features of -march=native.
compiler_id() {
  "${CC:-cc}" -march=native -dM -E -x c /dev/null
  "${CXX:-c++}" -march=native -dM -E -x c++ /dev/null
}

build_id() {
  printf '%s\n' "${LLAMA_CPP_DIR:-$SOURCE_ID}" "${CMAKE_FLAGS[@]}" "${CFLAGS:-}" "${CXXFLAGS:-}" "${LDFLAGS:-}"
  cat "$SCRIPTS/requirements.txt"
  compiler_id
}

patched_id() {
  say "$SOURCE_ID"
  (cd "$PATCHES_DIR" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum --)
  cat "$HOOK_HEADER"
}

name_folders() {
  local build patched
  SOURCE_ID=$("$SCRIPTS/fetch-llama.sh" --id)
  build=$(build_id | sha256_of_stdin)
  patched=$(patched_id | sha256_of_stdin)
  WORK=$CACHE_DIR/llama/${build:0:16}/work
  PREFIX=$CACHE_DIR/llama/${build:0:16}/${patched:0:16}
}

# Everything the same but for the programs, the optimization (none: it would take most of the time, and hide what
# is undefined) and the instrumentation.
ask_for_sanitizers() {
  SANITIZE=1
  local flags="-fsanitize=address,undefined -fno-omit-frame-pointer"
  CFLAGS="${CFLAGS:-} $flags" CXXFLAGS="${CXXFLAGS:-} $flags"
  CMAKE_FLAGS+=("-DCMAKE_C_FLAGS_RELEASE=-O0 -g1 -DNDEBUG" "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -g1 -DNDEBUG")
  LLAMA_PROGRAMS=(llama-completion)
}

# The hook needs no ggml, so it comes first. Sanitizers need a compiler that takes unstable options, and a
# target by name, without which cargo would instrument build scripts as well.
build_hook() {
  say "   the run-time hook ($HOOK)"
  cd "$ROOT"
  if [[ -z $SANITIZE ]]; then
    cargo build --release --locked --package statecells-hook
    BUILT_HOOK=$(cargo_target_dir)/release/$HOOK
  else
    RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address -Cdebug-assertions -Coverflow-checks -Cdebuginfo=1" \
      sanitized_cargo build --package statecells-hook --target-dir "$SANITIZED_TARGET"
    BUILT_HOOK=$SANITIZED_TARGET/$(rust_host)/release/$HOOK
  fi
}

place_file() {
  if cmp -s "$1" "$2"; then rm -f "$1"; else mv -f "$1" "$2"; fi
}

# Into the work folder, and touched only when different, so that nothing is linked without need.
place_hook() {
  local hook=$WORK/hook
  mkdir -p "$hook"
  # Reports of a sanitizer name lines by what is stripped here.
  if [[ -n $SANITIZE ]]; then cp "$BUILT_HOOK" "$hook/new.a"; else strip --strip-debug -o "$hook/new.a" "$BUILT_HOOK"; fi
  place_file "$hook/new.a" "$hook/$HOOK"
  cp "$HOOK_HEADER" "$hook/new.h"
  place_file "$hook/new.h" "$hook/${HOOK_HEADER##*/}"
  say "#define STATECELLS_PATCHES \"${PREFIX##*/}\"" >"$hook/new.h"
  place_file "$hook/new.h" "$hook/statecells-build.h"
}

# cmake writes the paths of cmake and ninja into the build files: copies that outlive the checkout.
place_tools() {
  local tools=$WORK/tools data
  if [[ -d $tools ]]; then return; fi
  data=$("$VENV/bin/python" -c 'import cmake, pathlib; print(pathlib.Path(cmake.__file__).parent / "data")')
  rm -rf "$tools.new"
  mkdir -p "$tools.new/bin" "$tools.new/share"
  cp "$data/bin/cmake" "$VENV/bin/ninja" "$tools.new/bin"
  cp -R "$data"/share/cmake-* "$tools.new/share"
  mv "$tools.new" "$tools"
}

patch_source() {
  rm -rf "$WORK/src.new"
  "$SCRIPTS/fetch-llama.sh" --into "$WORK/src.new"
  # Without the source that the objects are of, nobody knows which of them are old.
  if [[ -d $WORK/src ]]; then python "$SCRIPTS/adopt_times.py" "$WORK/src" "$WORK/src.new"; else rm -rf "$WORK/build"; fi
  rm -rf "$WORK/src"
  mv "$WORK/src.new" "$WORK/src"
}

place_source() { once "patched source" "$WORK/src-is-now" "${PREFIX##*/}" "$WORK/src" -- patch_source; }

# Programs must not tell where they were built: equal input, equal bytes.
configure() {
  if [[ -f $WORK/build/build.ninja ]]; then return; fi
  say "   configuring"
  # A checkout changes under this build, its state now is no name for it.
  local commit=$SOURCE_ID
  if [[ -n ${LLAMA_CPP_DIR:-} ]]; then commit=checkout; fi
  local map="\"-ffile-prefix-map=$WORK/src=llama.cpp\" \"-ffile-prefix-map=$WORK/build=build\""
  rm -rf "$WORK/build"
  quietly "$WORK/configure.log" \
    "$WORK/tools/bin/cmake" -G Ninja "-DCMAKE_MAKE_PROGRAM=$WORK/tools/bin/ninja" \
    -S "$WORK/src" -B "$WORK/build" "${CMAKE_FLAGS[@]}" \
    "-DCMAKE_C_FLAGS=${CFLAGS:-} $map" "-DCMAKE_CXX_FLAGS=${CXXFLAGS:-} $map" \
    "-DLLAMA_BUILD_NUMBER=0" "-DLLAMA_BUILD_COMMIT=$commit" \
    "-DSTATECELLS_HOOK_LIB=$WORK/hook/$HOOK"
}

# Every twentieth line of ninja's progress, and everything that is not progress.
thin_out() { awk '!/^\[[0-9]+\/[0-9]+\]/ || ++n % 20 == 1 { print "   " $0; fflush() }'; }

compile() {
  say "   compiling with $JOBS jobs (the first time takes minutes; all output is in $WORK/build.log)"
  "$WORK/tools/bin/ninja" -C "$WORK/build" -j "$JOBS" "${LLAMA_PROGRAMS[@]}" 2>&1 | tee "$WORK/build.log" | thin_out
}

# cargo links these for as long as the checkout stays as it is, whatever is built here next.
keep_for_cargo() {
  if [[ -d $PREFIX ]]; then return; fi
  local part=$PREFIX.$$.tmp
  TEMPORARY+=("$part")
  mkdir -p "$part/src" "$part/build"
  tar -C "$WORK/src" -cf - "${HEADERS[@]}" | tar -C "$part/src" --no-same-owner -xf -
  tar -C "$WORK/build" -cf - "${LIBRARIES[@]}" | tar -C "$part/build" --no-same-owner -xf -
  mv "$part" "$PREFIX"
}

# What every program shows as the hash of its patches.
name_patches() {
  if [[ ! -f $PREFIX/patches-id ]]; then say "${PREFIX##*/}" | write_file "$PREFIX/patches-id"; fi
}

install_programs() {
  local program
  for program in "${LLAMA_PROGRAMS[@]}"; do install_program "$WORK/build/bin/$program" "$program"; done
}

build() {
  # cmake asks git for a commit: not that of a repository which happens to hold the cache.
  export GIT_CEILING_DIRECTORIES=$WORK
  place_tools
  place_hook
  place_source
  configure
  compile
  if [[ -n $SANITIZE ]]; then
    install -D -t "$SANITIZED_BIN" "$WORK/build/bin/llama-completion"
    return
  fi
  keep_for_cargo
  name_patches
  install_programs
  say "$PREFIX" | write_file "$PREFIX_FILE"
}

main() {
  while (($# > 0)); do
    case $1 in
      --jobs)
        number_of "$@"
        JOBS=$2
        shift
        ;;
      --sanitize) ask_for_sanitizers ;;
      *) no_options "$@" ;;
    esac
    shift
  done
  check_programs
  name_folders
  build_hook
  with_lock "$WORK/.lock" build
}

main "$@"
