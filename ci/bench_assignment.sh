#!/usr/bin/env bash
# Sets up, builds, and measures the balanced assignment beside other implementations. Arguments go
# to ci/bench_assignment.py: --full (1e8 sequences), --out FILE (JSON), --smoke, --repeat R.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
bash ci/setup.sh
configure
compile --target smalltalk
"${SMALLTALK_VENV:-build/venv}/bin/python3" -B ci/bench_assignment.py "$@"
