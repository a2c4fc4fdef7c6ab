#!/usr/bin/env bash
# How many small faults the tests notice: ci/mutants.py puts them into a copy of this tree, one at a
# time. Goes on where it was. The table is build/mutants/table.md.
#
#   ci/mutants.sh [--number N] [--seed S] [--again] [FILE OR FOLDER...]
#
# Default: 200 of src/core, src/data, src/comm and src/mixture (without report/), seed 1. With
# --again, the faults that lived before meet the tests of today.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
universalmutator_version=1.14.1
venv=build/mutants/venv
if [ ! -e "$venv/.installed-$universalmutator_version" ]; then
  python3 -m venv "$venv"
  "$venv/bin/python3" -m pip install -q --disable-pip-version-check --retries 10 \
    "universalmutator==$universalmutator_version"
  touch "$venv/.installed-$universalmutator_version"
fi
exec nice -n 10 "$venv/bin/python3" -B ci/mutants.py -DSMALLTALK_CUDA=$cuda "$@"
