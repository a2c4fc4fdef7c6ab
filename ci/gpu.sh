#!/usr/bin/env bash
# Builds `core` and `lm` for the GPU that is there, runs the tests with label `gpu`, in which a skip is
# a failure, and measures the engine beside PyTorch (ci/gpu.py), the most important first. Needs
# LibTorch or PyTorch, nvcc, cmake and ninja; no MPI, no HDF5, no network. Results go to gpu.json and
# gpu.md in $OUT (default build/gpu/results) as they come.
#
#   ci/gpu.sh              everything, in ten minutes
#   ci/gpu.sh --quick      in three
#   ci/gpu.sh --rehearse   the same on a machine without a GPU: the build for CPUs, tiny sizes
#   ci/gpu.sh --pack       copies the libraries that such a machine may lack (headers, GoogleTest) into
#                          build/gpu-libraries, where the others look for them
set -uo pipefail
start=$SECONDS
cd "$(dirname "$0")/.."
mode=full limit=570
case "${1:-}" in
  "") ;;
  --quick) mode=quick limit=170 ;;
  --rehearse) mode=rehearse limit=600 ;;
  --pack)
    rm -rf build/gpu-libraries
    mkdir -p build/gpu-libraries/include build/gpu-libraries/src
    for header in toml++ nlohmann fmt eigen3 xxhash.h; do
      cp -rL "/usr/include/$header" build/gpu-libraries/include/ || exit 1
    done
    cp -r /usr/src/googletest build/gpu-libraries/src/ || exit 1
    du -sh build/gpu-libraries
    exit 0 ;;
  *) sed -n '2,/^set/p' "$0" | sed '$d' >&2; exit 2 ;;
esac
build=build/gpu-$mode
[ $mode = quick ] && build=build/gpu-full
out=${OUT:-build/gpu/results}
mkdir -p "$out" "$build"
python=${SMALLTALK_PYTHON:-python3}
if ! "$python" -c 'import torch' 2>/dev/null; then
  python=${SMALLTALK_VENV:-build/venv}/bin/python3
  "$python" -c 'import torch' || { echo "error: no Python with torch: set SMALLTALK_PYTHON" >&2; exit 1; }
fi
torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
options=(-G Ninja -DCMAKE_BUILD_TYPE=Release "-DSMALLTALK_LIBRARIES=core;lm" -DSMALLTALK_UNITY=ON
  "-DSMALLTALK_TORCH_ROOT=$torch" "-DCMAKE_PREFIX_PATH=$PWD/build/gpu-libraries;$PWD/$build/googletest")
if [ $mode = rehearse ]; then
  options+=(-DSMALLTALK_CUDA=OFF)
else
  card=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') ||
    { echo "error: PyTorch finds no GPU (ci/gpu.sh --rehearse needs none)" >&2; exit 1; }
  options+=(-DSMALLTALK_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$card")
  # The wheel's own NCCL header, wherever the image keeps it.
  nccl=$("$python" -c 'import nvidia.nccl as n; print(list(n.__path__)[0])' 2>/dev/null)
  [ -n "$nccl" ] && options+=("-DSMALLTALK_NCCL_INCLUDE_DIR=$nccl/include")
fi
echo "gpu: building"
tests=$build/googletest
if [ -d build/gpu-libraries/src/googletest ] && [ ! -d $tests ]; then
  { cmake -S build/gpu-libraries/src/googletest -B $tests/build -G Ninja -DCMAKE_BUILD_TYPE=Release \
      "-DCMAKE_INSTALL_PREFIX=$PWD/$tests" && cmake --build $tests/build --target install; } >"$out/googletest.log" 2>&1 ||
    { tail -20 "$out/googletest.log"; exit 1; }
fi
if ! { cmake -B "$build" "${options[@]}" && cmake --build "$build" -j "$(nproc)" --target test_lm_cuda engine_bench
} >"$out/build.log" 2>&1; then
  tail -40 "$out/build.log"
  echo "error: the build failed: $out/build.log" >&2
  exit 1
fi
echo "gpu: built in $((SECONDS - start)) s"
status=0
if [ $mode != rehearse ]; then
  SMALLTALK_REQUIRE_GPU=1 timeout 240 "$build/tests/lm/test_lm_cuda" --gtest_output="json:$out/tests.json" >"$out/tests.log" 2>&1 ||
    { status=1; grep -B1 -A12 'Failure\|FAILED  \]' "$out/tests.log" | tail -120; }
  tail -5 "$out/tests.log"
fi
"$python" -B ci/gpu.py --bench "$build/tests/lm/engine_bench" --out "$out" --mode $mode \
  --seconds $((limit - (SECONDS - start))) || status=1
exit $status
