#!/usr/bin/env bash
# Builds `core` and `lm` for the GPU that is there and then does, each in bounded time and whatever
# became of the others:
#   tests      those with label `gpu`, which fail where there is no GPU
#   peer       200 training steps in bfloat16 beside PyTorch's
#   measure    the engine beside PyTorch, the most important first, and what its time goes into
#   sanitizer  the kernels' tests under compute-sanitizer, if it is there
# Needs LibTorch or PyTorch, nvcc, cmake and ninja; no MPI, no HDF5, no network. In $OUT (default
# build/gpu/results) steps.txt says as it goes what passed, gpu.json and gpu.md what was measured;
# what each printed is in its .log. Leaves with 0 if all passed.
#
#   ci/gpu.sh              everything, in ten minutes
#   ci/gpu.sh --quick      tests and the first cases, in three
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
rm -f "$out"/gpu.{json,md}
: >"$out/steps.txt"
python=${SMALLTALK_PYTHON:-python3}
if ! "$python" -c 'import torch' 2>/dev/null; then
  python=${SMALLTALK_VENV:-build/venv}/bin/python3
  "$python" -c 'import torch' || { echo "error: no Python with torch: set SMALLTALK_PYTHON" >&2; exit 1; }
fi
python=$(command -v "$python")
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
if ! { cmake -B "$build" "${options[@]}" && timeout $limit \
  cmake --build "$build" -j "$(nproc)" --target test_lm_cuda dump_training engine_bench
} >"$out/build.log" 2>&1; then
  tail -40 "$out/build.log"
  echo "error: the build failed: $out/build.log" >&2
  exit 1
fi

status=0
say() { echo "gpu: $*" | tee -a "$out/steps.txt"; }
left() { echo $((limit - (SECONDS - start))); }
# step NAME SECONDS COMMAND...: the command for at most so long, its output in NAME.log.
step() {
  local name=$1 most=$2 began=$SECONDS rc=0 log=$out/$1.log
  shift 2
  [ "$most" -lt "$(left)" ] || most=$(left)
  if [ "$most" -lt 10 ]; then
    status=1
    say "$name: left out, no time was left"
    return
  fi
  timeout -k 5 "$most" "$@" >"$log" 2>&1 || rc=$?
  if [ $rc = 0 ]; then
    say "$name: passed in $((SECONDS - began)) s"
    return
  fi
  status=1
  { grep -B1 -A12 'Failure$\|^FAIL\|^Traceback' "$log" || tail -40 "$log"; } | tail -120
  case $rc in
    124 | 137) say "$name: stopped after $most s: $log" ;;
    *) say "$name: failed with $rc: $log" ;;
  esac
}
say "build: passed in $((SECONDS - start)) s"

export SMALLTALK_SOURCE_DIR=$PWD SMALLTALK_BUILD_DIR=$PWD/$build SMALLTALK_PEER_PYTHON=$python
[ $mode = rehearse ] || export SMALLTALK_REQUIRE_GPU=1 SMALLTALK_PEER_DEVICE=cuda
step tests 180 "$build/tests/lm/test_lm_cuda" "--gtest_output=json:$out/tests.json"
kept=5  # seconds for what comes behind the measurements
if [ $mode != quick ]; then
  step peer 90 "$python" -B tests/lm/test_peer_torch.py
  kept=65
fi
measured=$(($(left) - kept))
step measure $((measured + 5)) "$python" -B ci/gpu.py --bench "$build/tests/lm/engine_bench" --out "$out" \
  --mode $mode --seconds $measured
[ -e "$out/gpu.md" ] && cat "$out/gpu.md"
if [ $mode != quick ]; then
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
  if [ -n "$sanitizer" ]; then
    # Memory that each tensor has to itself; no complaints of calls that LibTorch makes to see whether
    # they succeed.
    kernels=CudaTest.AnUpdateAgreesWithTheCpu:CudaTest.LossKernelsAgreeWithFloat64
    kernels+=:CudaTest.RecomputationChangesNothing:CudaTest.BlockKernelsAgreeWithTheCpu
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step sanitizer 60 "$sanitizer" --error-exitcode 1 \
      --report-api-errors no "$build/tests/lm/test_lm_cuda" "--gtest_filter=$kernels"
  else
    say "sanitizer: there is no compute-sanitizer here"
  fi
fi
exit $status
