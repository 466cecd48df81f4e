#!/usr/bin/env bash
# What is measured on an NVIDIA GPU, where the package is not installed: bash benchmarks/gpu.sh FOLDER PART...
# Parts: smoke, attention, tiles, mla, kernels, engine, qwen, compiled, sanitize, emulator. Needs torch, Triton, nvcc, pybind11, CMake and Ninja. FOLDER
# gets the results; models go where TSC_MODELS says, which has to have room for 36 GB. TSC_FLASH_MLA and TSC_FLASH_3: libraries to time beside (gpu_peers.py).
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
models=${TSC_MODELS:-/dev/shm/tsc-models}
mkdir -p "$out" "$models"
export PYTHONPATH=tsc:passes:kernels:runtime:.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export XDG_CACHE_HOME=$models/cache

build() {  # an extension, by its package and name
    python3 -c "import $1.$2" 2>/dev/null && return
    local built=$models/build
    cmake -S . -B "$built" -G Ninja -Dpybind11_DIR="$(python3 -m pybind11 --cmakedir)" -DPython_EXECUTABLE="$(command -v python3)" >"$out/build.log" 2>&1 &&
        cmake --build "$built" --target "$2" >>"$out/build.log" 2>&1 || { tail -20 "$out/build.log"; return 1; }
    cp "$built/$2"*.so "$(python3 -c "import $1; print($1.__path__[0])")"
}

sanitize() {  # of the first argument's tool, the rest
    local tool=$1 log code
    shift
    log=$(mktemp)
    timeout 100 compute-sanitizer --tool "$tool" --error-exitcode 9 "$@" >"$log" 2>&1
    code=$?
    echo "$tool $*: exit $code, $(grep 'ERROR SUMMARY\|RACECHECK SUMMARY' "$log" | tail -1)"
    [ $code = 0 ] || grep -v '^=* *$' "$log" | head -30
}

for part in "$@"; do
    began=$SECONDS
    echo "== $part"
    case $part in
    smoke | engine | qwen | compiled) build tsrun _core || exit 1 ;;
    emulator) build tskernels _ptx || exit 1 ;;
    esac
    case $part in
    smoke) timeout 150 python3 benchmarks/gpu_engine.py --small --peers eager --folder "$models" --json "$out/smoke.json" ;;
    attention) timeout 120 python3 benchmarks/gpu_attention.py ${TSC_FLASH_3:+--flash-3 "$TSC_FLASH_3"} --json "$out/gpu_attention.json" ;;
    mla)
        timeout 60 python3 benchmarks/mla_decode.py --check ${TSC_FLASH_MLA:+--flash-mla "$TSC_FLASH_MLA"} --out "$out/mla_decode.json" --records "$out/kernels_mla_decode.json"
        timeout 60 python3 benchmarks/mla_decode.py --check --fp8 --out "$out/mla_decode_fp8.json"
        ;;
    kernels) timeout 200 python3 benchmarks/triton_kernels.py --json "$out/triton_kernels.json" | grep -v '^ok' ;;
    engine) timeout 330 python3 benchmarks/gpu_engine.py --peers eager --folder "$models" --json "$out/gpu_engine.json" ;;
    compiled) timeout 500 python3 benchmarks/gpu_engine.py --models qwen3-8b --peers compiled --limit 250 --folder "$models" --json "$out/gpu_engine_compiled.json" ;;
    sanitize)
        for tool in memcheck racecheck; do
            sanitize $tool python3 benchmarks/gpu_attention.py --small &
            sanitize $tool python3 benchmarks/mla_decode.py --only-check --most 4 &
        done
        wait
        ;;
    tiles) timeout 60 python3 benchmarks/gpu_attention.py --tiles ;;
    qwen) timeout 150 python3 benchmarks/gpu_engine.py --models qwen3-8b --peers eager --folder "$models" --json "$out/gpu_engine_qwen.json" ;;
    emulator) timeout 120 python3 benchmarks/gpu_emulated.py ;;
    *) echo "no part $part" ;;
    esac
    echo "== $part: $((SECONDS - began)) s"
done
