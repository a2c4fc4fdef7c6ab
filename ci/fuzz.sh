#!/usr/bin/env bash
# Builds the fuzzers (tests/fuzz) and runs each for its share of the time, from the kept inputs and
# from what earlier runs found. A finding ends it with an error; the input is in build/fuzz/findings:
# mend what it shows, then keep it in tests/fuzz/corpus.
#
#   ci/fuzz.sh [SECONDS in all, default 60]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
build=build/fuzz
if ! command -v clang++ >/dev/null || ! echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }' |
  clang++ -fsanitize=fuzzer -x c++ - -o /dev/null 2>/dev/null; then
  echo "skipped: no clang with libFuzzer (ci/setup.sh --fuzz installs it)"
  exit 77
fi
mkdir -p "$build"
exec 9>"$build/.lock"
flock 9
cmake --preset fuzz >"$build/configure.log" 2>&1 || { cat "$build/configure.log"; exit 1; }
cmake --build "$build" >"$build/build.log" 2>&1 || { cat "$build/build.log"; exit 1; }

# Leaks are looked for at the end only; a single input may take 10 s and 1 GB.
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export ASAN_OPTIONS=detect_odr_violation=0:allocator_may_return_null=1
TMPDIR=$(mktemp -d "$([ -d /dev/shm ] && echo /dev/shm || echo /tmp)/smalltalk-fuzz-XXXXXX")  # in memory
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
fuzzers=("$build"/tests/fuzz/fuzz_*)
share=$((seconds / ${#fuzzers[@]} > 0 ? seconds / ${#fuzzers[@]} : 1))
start=$SECONDS total=0 failed=()
for fuzzer in "${fuzzers[@]}"; do
  name=${fuzzer##*/fuzz_}
  mkdir -p "$build/found/$name" "$build/findings/$name"
  log=$build/$name.log
  status=0
  "$fuzzer" "$build/found/$name" "tests/fuzz/corpus/$name" -max_total_time="$share" -timeout=10 \
    -rss_limit_mb=2048 -malloc_limit_mb=1024 -max_len=32768 -print_final_stats=1 \
    -artifact_prefix="$build/findings/$name/" >"$log" 2>&1 || status=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  total=$((total + ${runs:-0}))
  printf 'fuzz: %-14s %10s executions\n' "$name" "${runs:-0}"
  if [ $status != 0 ]; then
    failed+=("$name")
    tail -40 "$log"
  fi
done
echo "fuzz: ${#fuzzers[@]} fuzzers, $total executions in $((SECONDS - start)) s, ${#failed[@]} with findings${failed[*]:+: ${failed[*]}}"
[ ${#failed[@]} = 0 ]
