#!/usr/bin/env bash
# What takes long, part after part, whatever becomes of the one before; then a line for each. About
# three hours on 2 cores. The logs are in runs/nightly/.
#   SMALLTALK_FUZZ_SECONDS  how long to fuzz (default 1800)
set -uo pipefail
source "$(dirname "$0")/environment.sh"
logs=runs/nightly
mkdir -p "$logs"
summary=()
failed=0

part() {  # part NAME COMMAND...: its summary is the last line that it prints
  local name=$1 start=$SECONDS status=0
  shift
  echo "nightly: $name"
  "$@" >"$logs/$name.log" 2>&1 || status=$?
  local result=ok
  if [ $status = 77 ]; then
    result=skipped
  elif [ $status != 0 ]; then
    result=FAILED failed=1
  fi
  summary+=("$(printf '%-14s %-7s %6d s  %s' "$name" $result $((SECONDS - start)) "$(tail -n 1 "$logs/$name.log")")")
}

tests() {  # tests BUILD_FOLDER CTEST_ARGUMENT...: runs them and prints one line about them
  local folder=$1 status=0
  shift
  ctest --output-on-failure --output-junit "$PWD/$folder/nightly.xml" --test-output-size-passed 100000 \
    "$@" || status=$?
  python3 ci/test_summary.py "$folder/nightly.xml"
  return $status
}

faults() {  # starting a job waits more than it computes
  SMALLTALK_KILLS=200 SMALLTALK_WRITE_FAULTS=all \
    tests build/release --test-dir build/release -j $((2 * cores)) -R 'jobs/kill|WriteFaults'
}

sanitized() {  # sanitized PRESET CTEST_ARGUMENT...
  local preset=$1
  shift
  cmake --preset "$preset" && cmake --build "build/$preset" -j "$cores" &&
    tests "build/$preset" --preset "$preset" -j "$cores" "$@"
}

part tests bash ci/test.sh
part faults faults
part asan sanitized asan -L '^(unit|mpi)$' -E '^ci/'
# Left out: one test that computes for more than nine minutes under it.
part tsan sanitized tsan -R '^(core|data)/' -E 'ClosingTable.IsTheWalksForLargeCases'
part cross_arm bash ci/cross_arm.sh
part mutants bash ci/mutants.sh
bash ci/setup.sh --fuzz || echo "clang could not be installed: fuzzing will be skipped"
part fuzz bash ci/fuzz.sh "${SMALLTALK_FUZZ_SECONDS:-1800}"
part gpu bash ci/gpu.sh --rehearse
part learning_rates bash ci/learning_rates.sh
part claim bash ci/claim.sh
printf '%s\n' "${summary[@]}"
exit $failed
