#!/usr/bin/env bash
# Gets the pinned llama.cpp source, checked by sha256, and patches a copy of it.
#
# usage: scripts/fetch-llama.sh [--into DIR | --id]
#
#   --into DIR   also write the patched source tree to DIR, which must not exist yet
#   --id         print what identifies the source, and nothing else
#   --help       this text
#
# LLAMA_CPP_DIR names a llama.cpp checkout of yours to use instead; it is copied, never changed.
# The patches are those in ggml-sys/patches; its src folder holds files of ours that join llama.cpp's.
# A patch that does not apply is named, and nothing is left behind.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Files of the user's checkout, NUL-separated: what git knows or would add, else everything but
# build folders.
list_checkout() {
  local dir=$1
  if [[ -e $dir/.git ]] && git -C "$dir" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git -C "$dir" ls-files -z --cached --others --exclude-standard
  else
    (cd "$dir" && find . \( -name .git -o -path './build*' \) -prune -o \( -type f -o -type l \) -print0)
  fi | (cd "$dir" && while IFS= read -r -d '' file; do
    # A tracked file may be deleted, and a submodule is listed as a folder.
    if [[ -f $file ]]; then printf '%s\0' "${file#./}"; fi
  done) | LC_ALL=C sort -zu
}

check_checkout() {
  [[ -f $LLAMA_CPP_DIR/ggml/include/gguf.h && -f $LLAMA_CPP_DIR/src/llama-model.cpp ]] ||
    die "LLAMA_CPP_DIR=$LLAMA_CPP_DIR is no llama.cpp checkout (no ggml/include/gguf.h or src/llama-model.cpp)"
}

source_id() {
  if [[ -z ${LLAMA_CPP_DIR:-} ]]; then
    say "$LLAMA_PACKAGE-$LLAMA_PACKAGE_VERSION"
    return
  fi
  check_checkout
  local files
  files=$(list_checkout "$LLAMA_CPP_DIR" | (cd "$LLAMA_CPP_DIR" && xargs -0 sha256sum --) | sha256_of_stdin)
  say "checkout-${files:0:12}"
}

fetch() {
  if [[ -n ${LLAMA_CPP_DIR:-} ]]; then
    check_checkout
    say "   using $LLAMA_CPP_DIR (LLAMA_CPP_DIR)"
    return
  fi
  # This option only: with ':all:' pip would compile cmake from source.
  pypi_file "$LLAMA_PACKAGE" "$LLAMA_PACKAGE_VERSION" "$LLAMA_SDIST" "$LLAMA_SDIST_SHA256" \
    --no-binary "$LLAMA_PACKAGE"
}

copy_source() {
  local to=$1
  mkdir -p "$to"
  if [[ -n ${LLAMA_CPP_DIR:-} ]]; then
    list_checkout "$LLAMA_CPP_DIR" | tar -C "$LLAMA_CPP_DIR" --null -T - -cf - | tar -C "$to" --no-same-owner -xf -
  else
    tar -C "$to" --no-same-owner --strip-components=3 -xzf "$DOWNLOADS/$LLAMA_SDIST" \
      "${LLAMA_SDIST%.tar.gz}/vendor/llama.cpp"
    # A file that points to a repository which the package does not hold.
    rm -f "$to/.git"
  fi
}

# git must not find a repository above the copy: inside one, 'git apply' skips our files silently.
apply_patches() {
  local to=$1 patch
  for patch in "$PATCHES_DIR"/*.patch; do
    GIT_CEILING_DIRECTORIES=$(dirname "$to") git -C "$to" apply --whitespace=nowarn "$patch" ||
      die "$(basename "$patch") does not apply to $(source_id)$(patch_advice)"
  done
  if [[ -d $PATCHES_DIR/src ]]; then cp -R "$PATCHES_DIR/src/." "$to/src/"; fi
}

patch_advice() {
  [[ -z ${LLAMA_CPP_DIR:-} ]] ||
    say ", the llama.cpp in LLAMA_CPP_DIR=$LLAMA_CPP_DIR; unset LLAMA_CPP_DIR to use the pinned source"
}

write_tree() {
  local into=$1 part=$1.$$.tmp
  [[ ! -e $into ]] || die "--into $into exists already; remove it or name another folder"
  mkdir -p "$(dirname "$into")"
  TEMPORARY+=("$part")
  copy_source "$part"
  apply_patches "$(cd "$part" && pwd -P)"
  mv "$part" "$into"
  say "   patched source in $into"
}

main() {
  need git "install git"
  case ${1:-} in
    --id) source_id ;;
    --into)
      [[ -n ${2:-} ]] || usage_error "--into needs a folder"
      fetch
      write_tree "$2"
      ;;
    *)
      no_options "$@"
      fetch
      ;;
  esac
}

main "$@"
