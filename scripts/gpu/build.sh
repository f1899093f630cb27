#!/usr/bin/env bash
# bash scripts/gpu/build.sh OUT.so: builds libalps_cuda.so with nvcc alone, for a machine that has neither CMake nor Node's headers.
#   NVCC or CUDA_HOME   the compiler; else from PATH, /usr/local/cuda
#   ARCH                for example 90; else that of the GPU here
#   PREBUILT            a library that is taken as it is; only cuBLAS is looked for
#   PYTHON              whose packages may hold cuBLAS (nvidia-cublas) where the toolkit has none; default python3
# Registers, shared memory and spills of the kernels go to OUT.so.ptxas.
set -euo pipefail
out=$(realpath -m "${1:?the library to write}")
rm -f "$out"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
native="$root/native"

nvcc=${NVCC:-}
for candidate in ${CUDA_HOME:+"$CUDA_HOME/bin/nvcc"} "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
  if [ -z "$nvcc" ] && [ -x "$candidate" ]; then nvcc=$candidate; fi
done
if [ -z "$nvcc" ]; then echo "build.sh: no nvcc (NVCC, CUDA_HOME, PATH, /usr/local/cuda)" >&2; exit 1; fi
toolkit=$(dirname "$(dirname "$(realpath "$nvcc")")")

arch=${ARCH:-}
if [ -z "$arch" ]; then
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '. ')
fi

# cuBLAS: the toolkit's, or that of the Python packages.
places=("$toolkit" "$toolkit/targets/x86_64-linux")
while IFS= read -r place; do places+=("$place"); done < <("${PYTHON:-python3}" - <<'PYTHON' 2>/dev/null || true
import pathlib, site, sys
for base in dict.fromkeys([*site.getsitepackages(), site.getusersitepackages(), *sys.path]):
    for folder in sorted(pathlib.Path(base or ".").glob("nvidia/*")):
        if (folder / "lib").is_dir():
            print(folder)
PYTHON
)
header= blas= blasLt=
for place in "${places[@]}"; do
  if [ -z "$header" ] && [ -f "$place/include/cublas_v2.h" ]; then header="$place/include"; fi
  for folder in "$place/lib64" "$place/lib"; do
    for library in "$folder"/libcublas.so.[0-9]*; do
      # The major version alone is the name that the loader will look for.
      if [ -z "$blas" ] && [[ "$library" =~ \.so\.[0-9]+$ ]] && [ -f "$library" ]; then
        blas=$library
        blasLt=$folder/libcublasLt.so.${library##*.}
      fi
    done
  done
done
if [ -z "$header" ] || [ -z "$blas" ] || [ ! -f "$blasLt" ]; then
  echo "build.sh: cuBLAS was not found (header '$header', library '$blas') in: ${places[*]}" >&2
  exit 1
fi
dirname "$blas" > "$out.cublas"
if [ -n "${PREBUILT:-}" ]; then
  cp "$PREBUILT" "$out"
  echo "build.sh: $PREBUILT, $blas"
  exit 0
fi
echo "build.sh: $nvcc for sm_$arch, $header, $blas"

objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
flags=(-std=c++20 -O3 -DNDEBUG --expt-relaxed-constexpr --extended-lambda -Xcompiler -Wall,-fPIC,-fvisibility=hidden -Xptxas -v
  -gencode "arch=compute_$arch,code=sm_$arch" "-I$native" -isystem "$header")
export nvcc objects
# The largest files first, so that the last one to finish is a small one.
find "$native/cuda" -maxdepth 1 \( -name '*.cu' -o -name '*.cc' \) -printf '%s %p\0' | sort -z -rn | cut -z -d' ' -f2- |
  xargs -0 -n 1 -P "${JOBS:-$(nproc)}" bash -c '
    name=$(basename "${!#}")
    if ! "$nvcc" "${@:1:$#-1}" -c "${!#}" -o "$objects/$name.o" >"$objects/$name.log" 2>&1; then
      echo "build.sh: $name does not compile" >&2
      cat "$objects/$name.log" >&2
      exit 255
    fi' build "${flags[@]}"
for log in "$objects"/*.log; do
  echo "== $(basename "$log" .log)"
  c++filt <"$log"
done >"$out.ptxas"
"$nvcc" -shared -cudart static -o "$out" "$objects"/*.o -Xlinker "$blas" -Xlinker "$blasLt" -Xlinker --no-undefined -ldl -lpthread -lrt
spills=$(grep -cE '[1-9][0-9]* bytes spill stores' "$out.ptxas" || true)
echo "build.sh: $out, $(stat -c %s "$out") bytes; kernels with register spills: $spills"
