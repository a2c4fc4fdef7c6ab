#!/usr/bin/env python3
"""Holds the architecture: which folder may include what, and who may read domain labels.

Usage: check_layers.py [ROOT]        prints every violation, exits 1 if there is one
       check_layers.py --self-test   plants one violation of every rule and expects to find it
"""
import os
import pathlib
import re
import sys
import tempfile

ALLOWED = {  # library -> the libraries whose headers it may include, besides its own
    "core": set(),
    "data": {"core"},
    "comm": {"core"},
    "lm": {"core"},
    "mixture": {"core", "data", "lm"},
    "jobs": {"core", "data", "comm", "lm", "mixture"},
}
FENCES = [  # (name, included headers, folders that may include them)
    ("MPI", r"mpi(-ext)?\.h$", {"comm"}),
    ("HDF5", r"(hdf5|hdf5_hl|H5[A-Z]\w*)\.h$", {"data"}),
    ("SentencePiece", r"sentencepiece", {"data"}),
    ("a compression library", r"(zstd|zlib)\.h$", {"data"}),
    ("CUDA or NCCL", r"(cu(da|blas|dnn|rand|sparse|solver)\w*\.h$|nccl\.h$|nvtx|(c10|ATen)/cuda/"
                     r"|.*ProcessGroupNCCL)", {"lm"}),
    ("LibTorch", r"(torch|ATen|c10|caffe2)/", {"lm", "mixture", "jobs"}),
    ("CLI11", r"CLI/", {"jobs"}),
]
# Domain labels are for measuring only: nothing that trains or routes may see them.
DOMAIN_READERS = re.compile(
    r"(include/smalltalk/data/token_file\.hpp|src/data/(domains|describe_hdf5)\.cpp"
    r"|src/mixture/(evaluation\w*|comparison|report_examples|results)\.cpp|jobs/(evaluate|inspect)\.cpp|tests/.*)$")
DOMAIN_CALL = re.compile(r"\b(read_domains|sequence_domains)\s*\(")
MACHINE_PATH = re.compile(r"(?<![\w.}$:/-])/(" + "root|home|work|Users" + r")/\w")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
SOURCE_SUFFIXES = {".cpp", ".hpp", ".cu", ".cuh", ".h"}
TEXT_SUFFIXES = SOURCE_SUFFIXES | {".py", ".sh", ".sbatch", ".toml", ".json", ".cmake", ".txt",
                                   ".md", ".def", ".html", ".golden"}
SKIPPED_FOLDERS = {"build", "runs", ".git", "__pycache__", ".cache"}


def folder_of(path):
    """The library a file belongs to; a test belongs to the library it tests."""
    parts = path.parts
    if parts[:2] == ("include", "smalltalk") or parts[0] in ("src", "tests"):
        name = parts[2] if parts[0] == "include" else parts[1]
        return name if name in ALLOWED else None
    return "jobs" if parts[0] == "jobs" else None


def check_include(path, header):
    library, in_tests = folder_of(path), path.parts[0] == "tests"
    if str(path) == "tests/mpi_test_main.cpp":
        library = "comm"
    ours = re.match(r"smalltalk/(\w+)/", header)
    if ours and library and not in_tests:
        if ours[1] != library and ours[1] not in ALLOWED[library]:
            yield f"{library} may not include {ours[1]} ({header})"
    if header.startswith("../") and not in_tests:
        yield f"includes over a folder's edge ({header})"
    for name, pattern, folders in FENCES:
        if re.match(pattern, header) and library not in folders:
            yield f"{name} is fenced in {', '.join(sorted(folders))} ({header})"
    if path.parts[0] == "include" and header == "torch/torch.h":
        yield "a public header may not include torch/torch.h: it costs every user 27 s"


def check_file(root, path):
    try:
        text = (root / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    is_source = path.suffix in SOURCE_SUFFIXES
    for number, line in enumerate(text.splitlines(), 1):
        found = []
        if is_source:
            include = INCLUDE.match(line)
            if include:
                found += check_include(path, include[2])
            code = line.split("//")[0]
            if DOMAIN_CALL.search(code) and not DOMAIN_READERS.match(path.as_posix()):
                found.append("domain labels are read by evaluation alone")
        if MACHINE_PATH.search(line):
            found.append("names a path of one machine")
        for message in found:
            yield f"{path}:{number}: {message}"


def check_tree(root):
    violations = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        for name in sorted(files):
            path = (pathlib.Path(folder) / name).relative_to(root)
            if path.suffix in TEXT_SUFFIXES:
                violations += check_file(root, path)
    return violations


def self_test():
    planted = {
        "include/smalltalk/core/a.hpp": '#include "smalltalk/data/token_file.hpp"',
        "src/data/b.cpp": '#include "smalltalk/lm/trainer.hpp"',
        "src/lm/c.cpp": '#include "smalltalk/comm/session.hpp"',
        "src/mixture/d.cpp": "#include <mpi.h>",
        "src/lm/e.cpp": "#include <hdf5.h>",
        "src/mixture/f.cpp": "#include <c10/cuda/CUDAStream.h>",
        "jobs/g.cpp": "#  include <nccl.h>",
        "src/data/h.cpp": "#include <torch/types.h>",
        "src/core/i.cpp": "#include <CLI/CLI.hpp>",
        "include/smalltalk/lm/j.hpp": "#include <torch/torch.h>",
        "src/core/k.cpp": '#include "../data/hdf5_file.hpp"',
        "src/mixture/router_em.cpp": "auto labels = read_domains(path);",
        "jobs/train.cpp": "auto labels = sequence_domains (domains, n, s);",
        "ci/l.sh": "cd /" + "home/somebody/smalltalk",
        "tests/core/m_test.cpp": "#include <sentencepiece_processor.h>",
        "src/comm/n.cu": "#include <cuda_runtime.h>",
    }
    innocent = {
        "src/mixture/o.cpp": '#include "smalltalk/lm/trainer.hpp"\n#include <ATen/ATen.h>',
        "src/comm/p.cpp": "#include <mpi.h>\n#include <vector>",
        "src/data/q.cpp": "#include <hdf5.h>  // read_domains() is elsewhere",
        "src/mixture/evaluation_domains.cpp": "auto labels = read_domains(path);",
        "jobs/r.cpp": '#include <CLI/CLI.hpp>\n#include "smalltalk/comm/session.hpp"',
        "tests/mpi_test_main.cpp": "#include <mpi.h>",
        "tests/data/s_test.cpp": "auto labels = read_domains(path);",
        "ci/t.sh": 'cd "$root/srv/here" && ls build/home/x',
    }
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in (planted | innocent).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n")
        violations = check_tree(root)
    for name in planted:
        if not any(violation.startswith(name + ":") for violation in violations):
            failures.append(f"not found: {name}: {planted[name]}")
    failures += [f"false alarm: {v}" for v in violations if v.split(":")[0] in innocent]
    return failures


def main():
    if sys.argv[1:] == ["--self-test"]:
        problems = self_test()
    else:
        root = pathlib.Path(sys.argv[1]) if sys.argv[1:] else pathlib.Path(__file__).parents[1]
        problems = check_tree(root.resolve())
    print("\n".join(problems) or "layers hold")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
