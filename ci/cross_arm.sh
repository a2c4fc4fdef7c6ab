#!/usr/bin/env bash
# Builds `core` and what `lm` has without LibTorch for 64-bit ARM, with Debian's cross compiler, and
# runs their tests in qemu. Leaves with 77 where compiler and emulator are missing and cannot be
# installed.
#   SMALLTALK_CTEST_ARGS  passed to ctest
set -euo pipefail
source "$(dirname "$0")/environment.sh"

has_tools() { command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; }
has_tools || bash ci/setup.sh --arm || true
has_tools || { echo "neither here nor to be installed: a cross compiler for ARM, qemu-user"; exit 77; }

cross=build/aarch64
cmake -S . -B $cross -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_TOOLCHAIN_FILE=ci/cmake/aarch64.cmake \
  -DSMALLTALK_LIBRARIES="core;lm" -DSMALLTALK_TORCH=OFF
cmake --build $cross -j "$cores"
read -ra arguments <<<"${SMALLTALK_CTEST_ARGS:-}"
status=0
ctest --test-dir $cross -j "$cores" --output-on-failure --output-junit tests.xml -R '^(core|lm)/' \
  "${arguments[@]}" || status=$?
python3 ci/test_summary.py $cross/tests.xml
exit $status
