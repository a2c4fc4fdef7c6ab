"""Runs a test with a Python that has the peer's packages."""

import os
import subprocess
import sys

FOUND = "SMALLTALK_PEER_FOUND"


def require(*modules, pythons=None):
    """Goes on in the first Python that can import the modules (by default SMALLTALK_PEER_PYTHON is
    the only one asked); leaves with "skipped" if there is none."""
    if os.environ.get(FOUND) == " ".join(modules):
        return
    for python in pythons or [os.environ.get("SMALLTALK_PEER_PYTHON", "")]:
        probe = [python, "-c", "import " + ", ".join(modules)]
        if os.path.exists(python) and subprocess.run(probe, capture_output=True).returncode == 0:
            os.environ[FOUND] = " ".join(modules)
            os.execv(python, [python, "-B", *sys.argv])
    print(f"skipped: no Python here has {', '.join(modules)}; run ci/setup.sh --peers")
    sys.exit(77)
