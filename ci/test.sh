#!/usr/bin/env bash
# Sets up, builds and runs all tests; those of `core` in a build of core alone, as on a machine with
# nothing else.
# SMALLTALK_CTEST_ARGS is passed to ctest, as in SMALLTALK_CTEST_ARGS="-L unit" bash ci/test.sh
set -euo pipefail
source "$(dirname "$0")/environment.sh"
bash ci/setup.sh --core
bash ci/setup.sh & setup=$!  # LibTorch and the rest come while core is built and tested
cmake --preset core $(unity_of build/core) >build/core.log || { cat build/core.log; exit 1; }
cmake --build --preset core -j "$cores"
ctest --preset core -j "$cores" -Q --output-junit "$PWD/build/core/tests.xml" ||
  { ctest --preset core --rerun-failed; exit 1; }

wait $setup
{  # needed by tests only: comes while the build runs
  bash ci/setup.sh --peers || echo "not all peers could be installed: their tests will be skipped"
} &
configure
compile
wait
status=0
read -ra arguments <<<"${SMALLTALK_CTEST_ARGS:--E ^core/}"
# Twice as many at once as there are cores: most wait for processes to start and to end.
ctest --test-dir "$build" -j $((2 * cores)) --output-on-failure --output-junit tests.xml --test-output-size-passed 100000 \
  "${arguments[@]}" || status=$?
python3 ci/test_summary.py build/core/tests.xml "$build/tests.xml"
exit "$status"
