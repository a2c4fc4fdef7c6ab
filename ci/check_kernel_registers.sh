#!/usr/bin/env bash
# Compiles the kernels for each generation of GPUs, and fails if one spills registers or needs more of
# them, or of shared memory, than its launch has: 256 threads a block.
#
#   ci/check_kernel_registers.sh NVCC SOURCE_FOLDER
set -euo pipefail
nvcc=$1 root=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
for card in 80 90 100; do
    "$nvcc" -std=c++20 -O3 "-I$root/include" "-I$root/src" --expt-relaxed-constexpr \
      -gencode "arch=compute_$card,code=sm_$card" -Xptxas -v -c "$root/src/lm/torch/kernels.cu" \
      -o "$work/kernels.o" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    awk -v card=$card '
      /spill stores/ { kernels++; if ($0 !~ / 0 bytes spill stores, 0 bytes spill loads/) { print "sm_" card ": " $0; bad = 1 } }
      match($0, /Used [0-9]+ registers/) { r = substr($0, RSTART + 5) + 0; if (r > most) most = r; if (r > 255) bad = 1 }
      match($0, /[0-9]+ bytes smem/) { m = substr($0, RSTART) + 0; if (m > shared) shared = m; if (m > 49152) bad = 1 }
      END { printf "sm_%s: %d kernels, %d registers and %d bytes of shared memory at most\n", card, kernels, most, shared
            exit bad || kernels == 0 }' "$work/log" || failed=1
done
exit $failed
