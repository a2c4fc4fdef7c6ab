#!/usr/bin/env bash
# Sets up, builds and runs all tests; `core` also alone, as on a machine with nothing else.
# SMALLTALK_CTEST_ARGS is passed to ctest, as in SMALLTALK_CTEST_ARGS="-L unit" bash ci/test.sh
set -euo pipefail
source "$(dirname "$0")/environment.sh"
bash ci/setup.sh
{  # needed by tests only: comes while the build runs
  bash ci/setup.sh --fuzz || echo "clang could not be installed: fuzzing will be skipped"
  bash ci/setup.sh --peers || echo "not all peers could be installed: their tests will be skipped"
} &

cmake -S . -B build/core -G Ninja -DSMALLTALK_LIBRARIES=core >build/core.log || { cat build/core.log; exit 1; }
cmake --build build/core -j "$cores"
ctest --test-dir build/core -j "$cores" --output-on-failure -Q -R '^core/' ||
  { ctest --test-dir build/core --rerun-failed --output-on-failure; exit 1; }

configure
compile
wait
status=0
read -ra arguments <<<"${SMALLTALK_CTEST_ARGS:-}"
ctest --test-dir "$build" -j "$cores" --output-on-failure --output-junit tests.xml --test-output-size-passed 100000 \
  "${arguments[@]}" || status=$?
python3 ci/test_summary.py "$build/tests.xml"
exit "$status"
