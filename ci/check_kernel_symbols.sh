#!/usr/bin/env bash
# check_kernel_symbols.sh OBJECT...: fails if a copy of the kernels (instruction_set.hpp) defines a
# symbol outside of its own namespace, which the linker could take for code that every processor runs.
set -euo pipefail
[ $# -gt 0 ] || { echo "no objects" >&2; exit 2; }
if nm -AC --defined-only --extern-only "$@" | grep -vE ' [A-Z] smalltalk::(\w+::)*(avx512|avx2|sse2|neon)::'; then
  echo "these are defined in a copy of the kernels, but are not of its namespace" >&2
  exit 1
fi
echo "$# objects define nothing but their own kernels"
