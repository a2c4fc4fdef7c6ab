#!/usr/bin/env python3
"""Holds the architecture: which folder may include what, who may read domain labels, and that no two
types of one program have one name.

Usage: check_layers.py [ROOT]        prints every violation, exits 1 if there is one
       check_layers.py --self-test   plants one violation of every rule and expects to find it
"""
import os
import pathlib
import re
import sys
import tempfile

# Room by room, lowest first: what it may include besides itself. A library's name stands for all of
# its rooms. A room names only rooms above it in this table, so there is no circle.
ARROWS = {
    "core/system":        "",
    "core/assignment":    "core/system",
    "core/experiment":    "core/system core/assignment",
    "data":               "core",
    "comm":               "core",
    "lm/model":           "core",
    "lm/cpu":             "core lm/model",
    "lm/torch":           "core lm/model lm/cpu",
    "lm/train":           "core lm/model lm/cpu lm/torch",
    "mixture/run":        "core data lm",
    "mixture/routing":    "core data lm mixture/run",
    "mixture/evaluation": "core data lm mixture/run mixture/routing",
    "mixture/report":     "core data mixture/run mixture/evaluation",
    "jobs":               "core data comm lm mixture",
}
LIBRARIES = {room.split("/")[0] for room in ARROWS}
FENCES = [  # (name, included headers, wherever they lie, folders that may include them)
    ("MPI", r"mpi(-ext)?\.h$", {"comm"}),
    ("HDF5", r"(hdf5|hdf5_hl|H5[A-Z]\w*)\.h$", {"data"}),
    ("SentencePiece", r"sentencepiece", {"data"}),
    ("a compression library", r"(zstd|zlib)\.h$", {"data"}),
    ("FAISS", r"faiss/", {"data"}),
    ("CUDA or NCCL", r"(cu(da|blas|dnn|rand|sparse|solver)\w*\.h$|nccl\.h$|nvtx|(c10|ATen)/cuda/"
                     r"|ProcessGroupNCCL)", {"lm"}),
    ("LibTorch", r"(torch|ATen|c10|caffe2)/", {"lm"}),
    ("CLI11", r"CLI/", {"jobs"}),
]
# Domain labels are for measuring only: nothing that trains or routes may see them.
DOMAIN_READERS = re.compile(
    r"(include/smalltalk/data/token_file\.hpp|src/data/(domains|describe_hdf5)\.cpp"
    r"|src/mixture/evaluation/(evaluation\w*|measured_text)\.cpp"
    r"|src/mixture/report/examples\.cpp|jobs/(evaluate|inspect)\.cpp|tests/.*)$")
DOMAIN_CALL = re.compile(r"\b(read_domains|sequence_domains)\s*\(")
MACHINE_PATH = re.compile(r"(?<![\w.}$:/-])/(" + "root|home|work|Users" + r")/\w")
COMMENT = re.compile(r"/\*.*?\*/")
NAMESPACE = re.compile(r"(?:inline )?namespace\s*([\w:]*)\s*\{")
TYPE = re.compile(r"(?:struct|class|enum|enum class|union)\s+(?:alignas\(\w+\)\s*)?(\w+)\s*"
                  r"(?:final\s*)?(?::[^:].*)?\{")
INCLUDE = re.compile(r'^\s*#\s*(include\w*|import)\s*([<"])([^>"]+)[>"]')
SOURCE_SUFFIXES = {".cpp", ".hpp", ".cu", ".cuh", ".h", ".cc", ".cxx", ".hh", ".inl", ".in"}
TEXT_SUFFIXES = SOURCE_SUFFIXES | {".py", ".sh", ".sbatch", ".toml", ".json", ".cmake", ".txt",
                                   ".md", ".def", ".html", ".golden"}
SKIPPED_FOLDERS = {"build", "runs", ".git", "__pycache__", ".cache"}


def room_of(parts):
    """The room of a header or source by the parts of its path below src or include/smalltalk."""
    for length in (2, 1):
        if "/".join(parts[:length]) in ARROWS and len(parts) > length:
            return "/".join(parts[:length])
    return None


def place_of(path):
    """(library, room) of a file; a test belongs to the library that it tests, and to no room."""
    parts = path.parts
    if parts[0] == "tests":
        return ("comm" if path.name == "mpi_test_main.cpp" else parts[1]), None
    if parts[:2] == ("include", "smalltalk"):
        parts = parts[1:]
    elif parts[0] not in ("src", "jobs"):
        return None, None
    inside = parts if parts[0] == "jobs" else parts[1:]
    return inside[0], room_of(inside)


def check_room(path, library, room, header):
    """Whether a header of ours may be included from this room."""
    public = header.startswith("smalltalk/")
    parts = tuple((header.removeprefix("smalltalk/")).split("/"))
    if not public and parts[0] not in LIBRARIES:
        if len(parts) == 1 and "/" in room:
            yield f"a private header is included by its room's path ({header})"
        return
    target = room_of(parts)
    if target is None:
        yield f"{header} is in no room"
    elif target != room and not {target, parts[0]} & set(ARROWS[room].split()):
        yield f"{room} may not include {target} ({header})"
    elif not public and parts[0] != library:
        yield f"{header} is private to {parts[0]}"


def check_include(path, directive, quote, header):
    library, room = place_of(path)
    in_tests = path.parts[0] == "tests"
    of_ours = header.split("/")[0] in LIBRARIES | {"smalltalk"}
    if directive != "include":
        yield f"#{directive}: headers are included once, by #include"
    if library in LIBRARIES and not in_tests and (of_ours or quote == '"'):
        if room is None:
            yield f"{path.parent} is no room: the table of arrows has them all"
        else:
            yield from check_room(path, library, room, header)
        if path.parts[0] == "include" and not header.startswith("smalltalk/"):
            yield f"a public header includes a private one ({header})"
    if {".", ".."} & set(header.split("/")) and not in_tests:
        yield f"includes over a folder's edge ({header})"
    for name, pattern, folders in FENCES:
        if not of_ours and re.search(rf"(^|/)({pattern})", header) and library not in folders:
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
            include = INCLUDE.match(COMMENT.sub("", line))
            if include:
                found += check_include(path, *include.groups())
            code = line.split("//")[0]
            if DOMAIN_CALL.search(code) and not DOMAIN_READERS.match(path.as_posix()):
                found.append("domain labels are read by evaluation alone")
        if MACHINE_PATH.search(line):
            found.append("names a path of one machine")
        for message in found:
            yield f"{path}:{number}: {message}"


def types_of(text):
    """(line, name) of the types that a file defines for others to see."""
    spaces = []
    for number, line in enumerate(text.splitlines(), 1):
        opened = NAMESPACE.match(line)
        if opened:
            spaces.append(opened[1])
        elif re.match(r"\}\s*// namespace", line) and spaces:
            spaces.pop()
        else:
            found = TYPE.match(line)
            if found and "" not in spaces:
                yield number, "::".join(spaces + [found[1]])


def check_types(root, paths):
    """Two types of one name are one to the linker, which takes the functions of either."""
    first = {}
    for path in paths:
        for number, name in types_of((root / path).read_text(encoding="utf-8", errors="replace")):
            other = first.setdefault(name, path)
            if other != path:
                yield f"{path}:{number}: {name} is also what {other} defines"


def check_table():
    above = set()
    for room, allowed in ARROWS.items():
        rooms = {other for name in allowed.split() for other in ARROWS
                 if name in (other, other.split("/")[0])}
        for other in rooms - above:
            yield f"the table of arrows: {room} names {other}, which is not above it"
        above.add(room)


def check_tree(root):
    violations = list(check_table())
    sources = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        for name in sorted(files):
            path = (pathlib.Path(folder) / name).relative_to(root)
            if path.suffix in TEXT_SUFFIXES:
                violations += check_file(root, path)
            if path.suffix in SOURCE_SUFFIXES and path.parts[0] in ("include", "jobs", "src"):
                sources.append(path)
    return violations + list(check_types(root, sources))


def self_test():
    planted = {
        "include/smalltalk/core/system/a.hpp": '#include "smalltalk/data/token_file.hpp"',
        "src/data/b.cpp": '#include "smalltalk/lm/train/trainer.hpp"',
        "src/lm/train/c.cpp": '#include "smalltalk/comm/session.hpp"',
        "src/mixture/run/d.cpp": "#include <mpi.h>",
        "src/lm/model/e.cpp": "#include <hdf5.h>",
        "src/mixture/run/f.cpp": "#include <c10/cuda/CUDAStream.h>",
        "jobs/g.cpp": "#  include <nccl.h>",
        "src/data/h.cpp": "#include <torch/types.h>",
        "src/core/system/i.cpp": "#include <CLI/CLI.hpp>",
        "include/smalltalk/lm/model/j.hpp": "#include <torch/torch.h>",
        "src/core/system/k.cpp": '#include "../data/hdf5_file.hpp"',
        "src/mixture/routing/router_em.cpp": "auto labels = read_domains(path);",
        "jobs/train.cpp": "auto labels = sequence_domains (domains, n, s);",
        "ci/l.sh": "cd /" + "home/somebody/smalltalk",
        "tests/core/m_test.cpp": "#include <sentencepiece_processor.h>",
        "src/comm/n.cu": "#include <cuda_runtime.h>",
        "src/core/assignment/br.cpp": "#include <faiss/IndexFlat.h>",
        "src/core/system/ba.cpp": '#include "smalltalk/core/assignment/score_matrix.hpp"',
        "src/lm/model/bb.cpp": '#include "lm/cpu/cpu_engine.hpp"',
        "src/lm/cpu/bc.cpp": '#include "kernels.hpp"',
        "src/lm/bd.cpp": "#include \"smalltalk/core/system/error.hpp\"",
        "src/mixture/run/be.cpp": '#include "lm/train/trainer_impl.hpp"',
        "src/mixture/routing/bf.cpp": '#include "mixture/report/charts.hpp"',
        "src/mixture/routing/bg.cpp": '#include "smalltalk/mixture/units.hpp"',
        "src/mixture/run/bh.cpp": "#include <smalltalk/mixture/routing/sharding.hpp>",
        "src/mixture/run/bi.cpp": "#include <mixture/evaluation/figures.hpp>",
        "src/mixture/run/bj.cpp": '#include "./../routing/hosted_routers.hpp"',
        "src/mixture/run/bk.cpp": '#include "smalltalk/mixture/run/../routing/sharding.hpp"',
        "include/smalltalk/core/system/bl.hpp": '#include "core/system/file.hpp"',
        "src/data/bm.cpp": "#include <openmpi/mpi.h>",
        "src/core/system/bn.inl": "#include /* why */ <hdf5/serial/hdf5.h>",
        "src/core/system/bo.cpp": "#include_next <string>",
        "src/lm/train/bq.hpp": "namespace smalltalk {\nstruct Twice : Base {\n};\n}  // namespace smalltalk",
    }
    innocent = {
        "src/mixture/run/o.cpp": '#include "smalltalk/lm/train/trainer.hpp"',
        "src/comm/p.cpp": '#include <mpi.h>\n#include "waits.hpp"',
        "src/data/q.cpp": "#include <hdf5.h>  // read_domains() is elsewhere",
        "src/mixture/evaluation/evaluation_domains.cpp": "auto labels = read_domains(path);",
        "jobs/r.cpp": '#include <CLI/CLI.hpp>\n#include "smalltalk/comm/session.hpp"\n#include "jobs.hpp"',
        "tests/mpi_test_main.cpp": "#include <mpi.h>",
        "tests/data/s_test.cpp": "auto labels = read_domains(path);",
        "ci/t.sh": 'cd "$root/srv/here" && ls build/home/x',
        "include/smalltalk/lm/train/bp.hpp": "namespace smalltalk {\nclass Twice final {\n};\n"
                                             "struct Alike {\n};\n}  // namespace smalltalk",
        "src/lm/cpu/w.cpp": "namespace smalltalk {\nnamespace {\nstruct Alike {\n};\n}  // namespace\n"
                            "struct Alike::Impl {\n};\nclass Alike;\n}  // namespace smalltalk",
        "src/lm/cpu/u.cpp": '#include "lm/model/engine.hpp"',
        "src/mixture/routing/v.cpp": '#include "smalltalk/core/assignment/score_matrix.hpp"',
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


def main(check_tree, self_test, praise):
    """Of a check: with --self-test its own test, else the tree. The exit code."""
    if sys.argv[1:] == ["--self-test"]:
        problems = self_test()
    else:
        root = pathlib.Path(sys.argv[1]) if sys.argv[1:] else pathlib.Path(__file__).parents[1]
        problems = check_tree(root.resolve())
    print("\n".join(problems) or praise)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(check_tree, self_test, "layers hold"))
