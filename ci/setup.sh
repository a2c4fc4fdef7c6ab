#!/usr/bin/env bash
# Brings a Debian or Ubuntu machine to where the project builds: system packages, and LibTorch from
# the pinned torch wheel in build/venv (or $SMALLTALK_VENV). Takes seconds on a ready machine.
#
#   ci/setup.sh             everything the program needs
#   ci/setup.sh --core      only what the library `core` and its tests need
#   ci/setup.sh --no-torch  everything but LibTorch: enough for `data` and `comm`
#   ci/setup.sh --fuzz      only clang, for ci/fuzz.sh
#   ci/setup.sh --arm       only a cross compiler for ARM and qemu, for ci/cross_arm.sh
#   ci/setup.sh --peers     also transformers, tensorboard, lm-evaluation-harness and gguf, with
#                           which tests compare what we write and compute
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=2.11.0
transformers_version=4.57.6
tensorboard_version=2.21.0
lm_eval_version=0.4.13
accelerate_version=1.15.0  # which lm_eval's Hugging Face models need
gguf_version=0.19.0  # what llama.cpp's converter reads exports with
sentencepiece_version=0.2.3
core_packages=(g++ cmake ninja-build ccache git python3-venv libfmt-dev libtomlplusplus-dev
  libxxhash-dev libeigen3-dev libgtest-dev libgmock-dev liblemon-dev)
other_packages=(libopenmpi-dev openmpi-bin libhdf5-dev hdf5-tools libcli11-dev nlohmann-json3-dev
  libsimdjson-dev libsentencepiece-dev libzstd-dev zlib1g-dev libfaiss-dev iproute2
  slurm-wlm slurmctld slurmd munge)  # these four for tests
fuzz_packages=(clang libclang-rt-dev)
arm_packages=(g++-aarch64-linux-gnu qemu-user googletest)

with_torch=yes
with_peers=no
packages=("${core_packages[@]}" "${other_packages[@]}")
for argument in "$@"; do
  case $argument in
    --core) with_torch=no packages=("${core_packages[@]}") ;;
    --no-torch) with_torch=no ;;
    --fuzz) with_torch=no packages=("${fuzz_packages[@]}") ;;
    --arm) with_torch=no packages=("${arm_packages[@]}") ;;
    --peers) with_peers=yes ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done

retry() {  # package servers have bad moments
  local attempt
  for attempt in 1 2 3; do
    if "$@"; then return 0; fi
    echo "setup: failed (attempt $attempt of 3): $*" >&2
    sleep $((attempt * 5))
  done
  return 1
}

install_packages() {
  if ! command -v dpkg-query >/dev/null; then
    echo "setup: not a Debian machine: these must come from modules or a container: ${packages[*]}"
    return 0
  fi
  local missing=() package
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then
    echo "setup: missing packages; run: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    return 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  retry apt-get update -q
  retry apt-get install -qy --no-install-recommends "${missing[@]}"
}

# install_venv FOLDER STAMP REQUIREMENT...: the stamp says that the last installation was whole.
install_venv() {
  local folder=$1 stamp=$1/.installed-$2
  shift 2
  [ ! -e "$stamp" ] || return 0
  [ -x "$folder/bin/python3" ] || python3 -m venv "$folder"
  echo "setup: installing $* into $folder"
  retry "$folder/bin/python3" -m pip install -q --disable-pip-version-check --no-compile "$@"
  touch "$stamp"
}

mkdir -p build
exec 9>build/.setup.lock
flock 9  # two scripts may be started at once
install_packages
venv=${SMALLTALK_VENV:-build/venv}
if [ $with_torch = yes ]; then
  install_venv "$venv" "torch-$torch_version" "torch==$torch_version" numpy
fi
if [ $with_peers = yes ]; then
  peers=${SMALLTALK_PEER_VENV:-build/peer-venv}
  if [ ! -e "$peers/.installed-transformers-$transformers_version" ]; then
    python3 -m venv "$peers"
    # torch is 4.7 GB: the peers see the one that is there.
    (cd "$venv"/lib/python3*/site-packages && pwd) >"$(echo "$peers"/lib/python3*/site-packages)/torch.pth"
    install_venv "$peers" "transformers-$transformers_version" "transformers==$transformers_version"
  fi
  install_venv "$peers" "tensorboard-$tensorboard_version" "tensorboard==$tensorboard_version"
  install_venv "$peers" "gguf-$gguf_version" "gguf==$gguf_version" \
    "sentencepiece==$sentencepiece_version"
  install_venv "$peers" "lm_eval-$lm_eval_version" "lm_eval==$lm_eval_version" \
    "accelerate==$accelerate_version" "transformers==$transformers_version"
fi
