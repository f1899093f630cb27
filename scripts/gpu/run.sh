#!/usr/bin/env bash
# The one call on a machine with an NVIDIA GPU: bash .gpu/run.sh (packed by scripts/gpu/pack.mjs; scripts/gpu/README.md).
#   --stages a,b,...   of: device build sanitizer tests parity determinism ops layers model small   (default: all, in this order)
#   --limit SECONDS    all of it (default 570); a stage that does not fit any more is left out, and said so
#   --layers a,b,...   shapes of the stage layers, OUTPUTSxINPUTS (default 4096x4096,11008x4096,4096x11008)
#   --blocks N         blocks of the LLaMA2-7B-shaped model (default 3)
#   --profile          of the model stage: where its time goes
#   --device cpu       a rehearsal without a GPU: small sizes, no build and no sanitizer
# Results: summary.md, results.json, log.txt, sanitizer.txt and libalps_cuda.ptxas under $OUT (default ./gpu-results).
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stages=device,build,sanitizer,tests,parity,determinism,ops,layers,model,small
limit=570 layers=4096x4096,11008x4096,4096x11008 blocks=3 device=cuda profile=()
while [ $# -gt 0 ]; do
  case $1 in
    --stages) stages=$2 ;;
    --limit) limit=$2 ;;
    --layers) layers=$2 ;;
    --blocks) blocks=$2 ;;
    --device) device=$2 ;;
    --profile) profile=(--profile); shift; continue ;;
    *) echo "run.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
SECONDS=0
out=$(realpath -m "${OUT:-gpu-results}")
work=${ALPS_GPU_WORK:-/tmp/alps-gpu}
tree=$work/tree results=$work/results
mkdir -p "$out" "$results"
# Python keeps the libraries of its own machine.
python=$work/python
printf '#!/usr/bin/env bash\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "${LD_LIBRARY_PATH:-}" "$(command -v "${PYTHON:-python3}")" >"$python"
chmod +x "$python"
: >"$out/log.txt"
say() { echo "run.sh: $*" | tee -a "$out/log.txt"; }

# ---- Unpacking, once a pack. xz may be missing; Python's own is always there. ----------------------------------------
unpack() { # archive, folder
  [ -f "$here/$1.tar.xz" ] || return 0
  if [ "$(cat "$work/$1.sha256" 2>/dev/null)" != "$(cat "$here/$1.sha256")" ]; then
    rm -rf "$2"
    mkdir -p "$2"
    if command -v xz >/dev/null; then tar -xJf "$here/$1.tar.xz" -C "$2"; else "$python" -m tarfile -e "$here/$1.tar.xz" "$2"; fi || exit 1
    cp "$here/$1.sha256" "$work/$1.sha256"
    rm -rf "$results"  # of another version
  fi
}
if [ ! -f "$here/programs.tar.xz" ]; then say "no programs.tar.xz beside this script: run node scripts/gpu/pack.mjs"; exit 1; fi
programs=$work/programs
unpack programs "$programs"
if [ -f "$here/tree.tar.xz" ]; then
  unpack tree "$tree"
else
  # The checkout that .gpu/ lies in.
  rm -rf "$tree"
  mkdir -p "$tree"
  tar -C "$(dirname "$here")" --exclude=./.git --exclude=./.gpu --exclude=./node_modules --exclude=./build --exclude=./lib \
    --exclude=./gpu-results -cf - . | tar -C "$tree" -xf -
fi
unpack build "$work/build"
mkdir -p "$results"
cp -r "$work/build/." "$tree/"
ln -sfn "$programs/node_modules" "$tree/node_modules"
cd "$tree" || exit 1
export PATH=$programs/bin:$PATH LD_LIBRARY_PATH=$programs/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} PYTHONUNBUFFERED=1
say "$(node --version), unpacked after $SECONDS s"

# ---- Stages. ---------------------------------------------------------------------------------------------------------
summary() { node scripts/gpu/summary.mjs "$results" "$out" >>"$out/log.txt" 2>&1; }
stage() { # name, seconds at most, command...
  local name=$1 most=$2 left=$((limit - SECONDS - 5)) began=$SECONDS status
  shift 2
  case ,$stages, in *,$name,*) ;; *) return 0 ;; esac
  if [ "$left" -lt 15 ]; then
    say "$name: no time left"
    echo "{\"name\":\"$name\",\"status\":\"no time left\"}" >>"$results/stages.jsonl"
    return 1
  fi
  [ "$most" -lt "$left" ] || most=$left
  say "== $name, $most s at most"
  timeout -k 5 "$most" "$@" > >(tee -a "$out/log.txt") 2>&1
  status=$?
  say "$name: exit code $status after $((SECONDS - began)) s"
  echo "{\"name\":\"$name\",\"status\":$status,\"seconds\":$((SECONDS - began)),\"limit\":$most}" >>"$results/stages.jsonl"
  [ -n "${without_summary:-}" ] || summary
  return $status
}
export ALPS_CUDA_LIBRARY=$work/libalps_cuda.so
if [ "$device" = cpu ]; then
  sizes=256 ceilings=(--size 512) layer=384 parity=(--windows 8 --evaluation 16)
  hidden=(--hidden 256 --intermediate 688 --heads 4 --vocabulary 512 --windows 8 --length 128) small=("${hidden[@]}" --blocks 2 --of 2)
  ALPS_CUDA_LIBRARY=$tree/build/Release/libalps_cuda_host.so
else
  sizes=1024,4096,8192 ceilings=() layer=2048 hidden=() parity=(--windows 64 --evaluation 48)
  small=(--blocks 30 --of 30 --hidden 576 --intermediate 1536 --heads 9 --vocabulary 49152 --windows 32 --length 1024)
fi

stage device 60 "$python" scripts/gpu/ceilings.py --device "$device" "${ceilings[@]}" --out "$results/device.json"

if [ "$device" != cpu ]; then
  # With kernels in the pack (pack.mjs --kernels) only cuBLAS has to be found.
  packed=$tree/build/Release/libalps_cuda.so
  [ -f "$packed" ] || packed=
  PYTHON=$python PREBUILT=$packed stage build 240 bash scripts/gpu/build.sh "$ALPS_CUDA_LIBRARY"
  if [ ! -f "$ALPS_CUDA_LIBRARY" ]; then say "nothing can run without the kernels (stage build)"; summary; exit 1; fi
  cp "$ALPS_CUDA_LIBRARY.ptxas" "$out/libalps_cuda.ptxas" 2>/dev/null
  LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$(cat "$ALPS_CUDA_LIBRARY.cublas")
fi

# Beside the tests and parity, which are not timed.
one_tool() { # tool, checker
  timeout -k 5 170 "$2" --tool "$1" --error-exitcode 9 --print-limit 20 node bench/ops.mjs --device "$device" --sizes 72 --once >"$results/$1.txt" 2>&1
  local code=$? found
  found=$(grep -h 'SUMMARY' "$results/$1.txt" | tail -1 | tr -d '"=')
  echo "sanitizer $1: exit code $code; $found"
  echo "{\"tool\":\"$1\",\"status\":$code,\"summary\":\"$found\"}" >>"$results/sanitizer.jsonl"
  return $code
}
sanitizer() { # checker
  local tool status=0
  : >"$results/sanitizer.jsonl"
  one_tool memcheck "$1" & local memory=$!
  one_tool racecheck "$1" & local races=$!
  wait $memory || status=1
  wait $races || status=1
  for tool in memcheck racecheck; do
    echo "== $tool"
    tail -c 200000 "$results/$tool.txt"
  done >"$out/sanitizer.txt"
  return $status
}
checker=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
beside=
if [ -n "$checker" ] && [ "$device" != cpu ]; then
  export -f sanitizer one_tool
  export out device
  without_summary=1 stage sanitizer 190 bash -c 'sanitizer "$1"' sanitizer "$checker" &
  beside=$!
elif [ "$device" != cpu ]; then
  say "sanitizer: compute-sanitizer is not here"
fi

# Each file by itself, some at a time: one that hangs takes no other's results.
one() {
  local name
  name=$(basename "$1" .test.ts)
  rm -f "$results/jest-$name.json"
  timeout -k 5 120 node --experimental-vm-modules --disable-warning=ExperimentalWarning node_modules/jest/bin/jest.js --runInBand --forceExit \
    --json --outputFile="$results/jest-$name.json" "$1" >"$results/jest-$name.txt" 2>&1
  local status=$?
  if [ $status -ne 0 ]; then head -c 20000 "$results/jest-$name.txt"; fi
  echo "tests: $name: exit code $status"
  return $status
}
tests() { printf '%s\0' test/3[0-9]-*.test.ts | xargs -0 -n 1 -P "$at_once" bash -c 'one "$1" || exit 1' one; }
at_once=$(($(nproc) < 16 ? ($(nproc) + 1) / 2 : 8))
export -f one tests
export results at_once
stage tests 240 bash -c tests

stage parity 120 node scripts/gpu/parity.mjs --device "$device" "${parity[@]}" --out "$results/parity.json"
[ -z "$beside" ] || wait "$beside"

stage determinism 60 node scripts/gpu/determinism.mjs --device "$device" --size "$layer" --out "$results/determinism.json"

stage ops 60 node bench/ops.mjs --device "$device" --sizes "$sizes" --ceilings "$results/device.json" --out "$results/ops.json"

if [ -d "$programs/peers/ALPS" ]; then
  [ "$device" != cpu ] || layers=256x256
  stage layers 420 node bench/layer-peers.mjs --device "$device" --shapes "$layers" --alps "$programs/peers/ALPS" \
    --sparsegpt "$programs/peers/sparsegpt" --python "$python" --out "$results/layers.json" --scratch "$work/layers"
fi

stage model 240 node scripts/gpu/llama-7b.mjs --device "$device" --blocks "$blocks" "${hidden[@]}" "${profile[@]}" --folder "$work/llama-7b" \
  --out "$results/model.json"
# SmolLM2-135M's shapes, all of its blocks; but for grouped queries.
stage small 60 node scripts/gpu/llama-7b.mjs --device "$device" "${small[@]}" "${profile[@]}" --folder "$work/small" --out "$results/small.json"

summary
cat "$out/summary.md"
say "done after $SECONDS s; results in $out"
! grep -qvE '"status":(0|"no time left")' "$results/stages.jsonl"
