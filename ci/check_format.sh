#!/usr/bin/env bash
# Checks that all sources are formatted (.clang-format); `ci/check_format.sh --fix` formats them.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v clang-format >/dev/null; then
  echo "skipped: clang-format is not installed"
  exit 77
fi
arguments=(--dry-run -Werror)
if [ "${1:-}" = --fix ]; then arguments=(-i); fi
find src include jobs tests -name '*.[ch]pp' -print0 -o -name '*.cu' -print0 -o -name '*.cuh' -print0 |
  xargs -0 clang-format "${arguments[@]}"
