# Sourced by the other scripts: the root folder as working directory, and how to configure here.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=build/release
cores=$(nproc)

# Without a CUDA toolkit that fits LibTorch (CUDA 13), the same build folder holds the CPU build.
cuda=ON
nvcc=${CUDACXX:-$(command -v nvcc || true)}
if [ -z "$nvcc" ] && [ -x /usr/local/cuda/bin/nvcc ]; then
  nvcc=/usr/local/cuda/bin/nvcc
fi
if [ -z "$nvcc" ]; then
  echo "no nvcc here: building without CUDA kernels"
  cuda=OFF
elif ! "$nvcc" --version | grep -q 'release 13\.'; then
  echo "$nvcc is not of CUDA 13, for which LibTorch is built: building without CUDA kernels"
  cuda=OFF
else
  export CUDACXX=$nvcc
fi

# Files are compiled eight at once where all have to be, unless that folder was configured by hand.
unity_of() { [ -e "$1/CMakeCache.txt" ] || echo -DSMALLTALK_UNITY=ON; }

configure() {  # prints only what went wrong
  local log=$build/configure.log
  mkdir -p "$build"
  if ! flock "$build/.lock" cmake --preset release $(unity_of $build) -DSMALLTALK_CUDA=$cuda "$@" >"$log" 2>&1; then
    cat "$log"
    return 1
  fi
}

compile() {  # one build at a time in a folder, whoever started it
  flock "$build/.lock" cmake --build "$build" -j "$cores" "$@"
}
