#!/usr/bin/env python3
"""Puts small faults into the sources, one at a time, and asks which of them the tests notice.

A fault is one line changed by a rule of universalmutator: another operator, number or branch, a
statement left out. Lines are drawn first, then one fault of each line, so that a line with many
numbers counts as much as any other. Texts of messages stay as they are. What does not compile, or
compiles to the same object, is dropped. The others meet the test programs of their library, those
named after their file first, until one fails or does not end; faults of mixture then meet small
runs of the whole program.
"""
import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from universalmutator import mutator

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/mutants"
TREE, BUILD, TEMPORARY = WORK / "tree", WORK / "release", WORK / "tmp"
# By library: those to build, the test programs that may see a fault, and of the jobs' only these files.
LIBRARIES = {"core": "core", "data": "core;data", "comm": "core;comm",
             "mixture": "core;data;comm;lm;mixture;jobs"}
PROGRAMS = {"core": r"tests/core/test_", "data": r"tests/data/test_", "comm": r"tests/comm/test_",
            "mixture": r"tests/(mixture/test_|jobs/test_jobs(_models)?$)"}
JOBS_FILES = {"assign", "bad_input", "compare", "fault", "generate", "launch", "sweep", "tasks"}
# Those in Python, by CTest's name.
SCRIPTS = {"mixture": {"jobs/test_peer_lm_eval", "slurm/test_submit"}}
# Declarations, which begin at the margin, and what only tells or checks.
SKIPPED_LINES = [r"^(?!constexpr |const )\S", r"\b(log_info|log_warning|ST_CHECK)\(",
                 r"^\s*(//|using |template|static_assert|case |default:)"]
# What no rule may touch: texts, and what is no operator by the way it is laid out (brackets of
# templates, references, pointers) and no number (int64_t).
MASKED = re.compile(r'"(?:\\.|[^"\\])*"|->|(?<! )[<>&*]+|[<>&*]+(?! )|(?<=[A-Za-z_])\d+')
MOST_DATA, LARGEST_FILE = 6 << 30, 2 << 30  # bytes: a fault may allocate or write without end
# Alone among processes, what a fault kills or leaves behind is its own.
ALONE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def run(command, timeout, text=None, **more):
    """(exit code, output); a command that does not end is killed, and has the code None."""
    with subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", start_new_session=True, **more) as process:
        try:
            output, _ = process.communicate(text, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, ""
        return process.returncode, output


def must(command):
    code, output = run(command, 7200)
    if code != 0:
        sys.exit(f"mutants: failed: {' '.join(map(str, command))}\n{output[-4000:]}")
    return output


def ninja(*targets, **environment):
    return run(["ninja", "-C", BUILD, "-j", os.cpu_count(), *targets], 1800,
               env={**os.environ, **environment})


class Fault:
    def __init__(self, source, line, text):
        self.source, self.line, self.text = source, line, text
        lines = (ROOT / source).read_text().splitlines(keepends=True)
        self.original = lines[line - 1]
        self.whole = "".join(lines[:line - 1] + [text] + lines[line:])
        self.id = hashlib.sha256(f"{source}\n{self.whole}".encode()).hexdigest()[:16]
        self.library = source.split("/")[1]


def mask(line):
    return MASKED.sub(lambda found: "".join(chr(0xE000 + ord(c)) for c in found[0]), line)


def unmask(line):
    return "".join(chr(ord(c) - 0xE000) if 0xE000 <= ord(c) < 0xF000 else c for c in line)


def in_loop(lines, index):
    indent = len(lines[index])
    for line in reversed(lines[:index + 1]):
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            indent = len(line) - len(line.lstrip())
            if re.match(r"\s*(for|while) ", line):
                return True
    return False


def may_compile(text, lines, index):
    """Whether it is worth asking the compiler."""
    whole = lines[index].endswith(";\n") and lines[index - 1].rstrip()[-1:] in tuple(";{}")
    if text.startswith(lines[index]):  # and a jump
        return whole and in_loop(lines, index)
    if text.lstrip().startswith("/*"):  # left out: an assignment or a call, no declaration
        return whole and re.match(r"\s*(\+\+|--)?[\w.:>\[\]()*-]+?( [-+*|&/^]?= |\()", lines[index])
    return True


def faults_of(source):
    """{line: [faulty text, ...]}"""
    lines = source.read_text().splitlines(keepends=True)
    with contextlib.redirect_stdout(io.StringIO()):
        found = mutator.mutants_regexp(
            [mask(line) for line in lines],
            ruleFiles=["universal.rules", "c_like.rules", "cpp.rules"],
            ignorePatterns=SKIPPED_LINES)
    faults = {}
    for line, masked, *_ in found:
        text = unmask(masked)
        if text.split() != lines[line - 1].split() and may_compile(text, lines, line - 1):
            faults.setdefault(line, []).append(text)
    return faults


def draw(paths, number, seed):
    """So many faults; a larger number only adds to them."""
    places = []
    for path in paths:
        for source in sorted(path.rglob("*.cpp")) if path.is_dir() else [path]:
            name = str(source.relative_to(ROOT))
            if "/report/" not in name:
                places += [(name, line, texts) for line, texts in faults_of(source).items()]
    generator = random.Random(seed)
    generator.shuffle(places)
    return [Fault(name, line, generator.choice(texts)) for name, line, texts in places[:number]]


class Suite:
    """A program of tests as CTest starts it, with the cases of one file, or with all under mpirun;
    or a script, which starts the whole program."""

    def __init__(self, test, program, file=None):
        self.name = program.removeprefix("tests/") + (f" ({file})" if file else "")
        if program == "smalltalk":
            self.name = test["name"]
        self.program, self.file = program, file
        self.whole = program == "smalltalk" or "/jobs/" in program
        self.command = [part for part in test["command"]
                        if not part.startswith(("--gtest", "--file"))]
        if file:
            self.command.append(f"--file={file}")
        properties = {p["name"]: p["value"] for p in test["properties"]}
        self.environment = {**os.environ, "GTEST_FAIL_FAST": "1", "TMPDIR": str(TEMPORARY),
                            **dict(p.split("=", 1) for p in properties.get("ENVIRONMENT", []))}
        self.seconds = 0.0  # without a fault

    def build(self):
        return ninja(self.program, *(["smalltalk"] if self.whole else []))

    def passes(self, timeout):
        def limit():
            resource.setrlimit(resource.RLIMIT_DATA, (MOST_DATA, MOST_DATA))
            resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        TEMPORARY.mkdir(exist_ok=True)
        code, _ = run(ALONE + self.command, timeout, cwd=TREE, env=self.environment,
                      preexec_fn=limit)
        shutil.rmtree(TEMPORARY, ignore_errors=True)
        return code in (0, 77)

    def order(self, source):
        """First those whose name begins like the file's, then the fast ones, the whole program last."""
        name = self.file or self.program.rsplit("_", 1)[-1]
        return (self.whole, -len(os.path.commonprefix([name, Path(source).stem])),
                self.seconds)


def copy_tree():
    listed = must(["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"])
    names = [name for name in listed.splitlines() if (ROOT / name).is_file()]
    for name in names:
        old, new = TREE / name, (ROOT / name).read_bytes()
        if not old.is_file() or old.read_bytes() != new:
            old.parent.mkdir(parents=True, exist_ok=True)
            old.write_bytes(new)
            shutil.copymode(ROOT / name, old)
    for old in [path for path in TREE.rglob("*") if path.is_file()]:
        if str(old.relative_to(TREE)) not in names:
            old.unlink()


def suites_of(program, listed):
    tests = [test for test in listed if str(BUILD / program) in test.get("command", [])
             and Path(test["command"][0]).name != "bash"]
    under_mpirun = [test for test in tests if Path(test["command"][0]).name == "mpirun"]
    if under_mpirun:
        return [Suite(test, program) for test in under_mpirun]
    folder = Path(program).parent
    files = [path.stem.removesuffix("_test") for path in sorted((TREE / folder).glob("*_test.cpp"))]
    return [Suite(tests[0], program, file) for file in files
            if (folder.name != "jobs" or file in JOBS_FILES) and
            run([BUILD / program, f"--file={file}", "--gtest_list_tests"], 60)[0] == 0]


def prepare(libraries, options):
    """Copies the tree and builds it; the suites by library, each run once without a fault."""
    copy_tree()
    needed = max((LIBRARIES[library] for library in libraries), key=len)
    if {"data", "comm"} <= set(libraries) and "lm" not in needed:
        needed = "core;data;comm"
    must(["cmake", "-S", TREE, "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
          "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DSMALLTALK_LIBRARIES={needed}", *options])
    programs = [line.split(":")[0] for line in must(["ninja", "-C", BUILD, "-t", "targets", "all"])
                .splitlines() if "EXECUTABLE" in line and ".cmake:" not in line]
    suites = {}
    for library in libraries:
        mine = [program for program in programs if re.match(PROGRAMS[library], program)]
        must(["ninja", "-C", BUILD, *mine, *(["smalltalk"] if library == "mixture" else [])])
        listed = json.loads(must(["ctest", "--test-dir", BUILD, "--show-only=json-v1"]))["tests"]
        suites[library] = [suite for program in mine for suite in suites_of(program, listed)]
        suites[library] += [Suite(test, "smalltalk") for test in listed
                            if test["name"] in SCRIPTS.get(library, ())]
        for suite in suites[library]:
            start = time.monotonic()
            if not suite.passes(1800):
                sys.exit(f"mutants: {suite.name} fails without any fault")
            suite.seconds = time.monotonic() - start
    return suites


def judge(fault, target, suites):
    """(verdict, by whom)"""
    source = TREE / fault.source
    ninja(target)
    before = (BUILD / target).read_bytes()
    source.write_text(fault.whole)
    try:
        if ninja(target, CCACHE_READONLY="1")[0] != 0:
            return "does not compile", ""
        if (BUILD / target).read_bytes() == before:
            return "same object", ""
        for suite in sorted(suites, key=lambda suite: suite.order(fault.source)):
            if suite.build()[0] != 0:
                return "caught", f"the build of {suite.program}"
            if not suite.passes(20 + 5 * suite.seconds):
                return "caught", suite.name
        return "lived", ""
    finally:
        source.write_bytes((ROOT / fault.source).read_bytes())


def equivalents():
    """Faults that were looked at and change nothing that anybody may rely on."""
    lines = (ROOT / "ci/mutants_equivalent.tsv").read_text().splitlines()
    return {tuple(line.split("\t")[:3]) for line in lines if not line.startswith("#")}


def one_line(text):
    return " ".join(text.split())


def write_table(faults, known):
    cells = [["place", "line", "fault", "verdict", "by"]]
    for fault in faults:
        if fault.id in known:
            cells.append([f"{fault.source}:{fault.line}", one_line(fault.original),
                          one_line(fault.text), *known[fault.id]])
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    (WORK / "table.md").write_text("\n".join([rows[0], "|---" * 5 + "|", *rows[1:]]) + "\n")


def summary(faults, known):
    verdicts = [known[fault.id][0] for fault in faults if fault.id in known]
    count = {name: verdicts.count(name) for name in
             ("does not compile", "same object", "equivalent", "caught", "lived")}
    changing = count["caught"] + count["lived"]
    rate = 100 * count["caught"] / changing if changing else 100
    print(f"mutants: {len(verdicts)} of {len(faults)} tried: {count['does not compile']} do not "
          f"compile, {count['same object']} are the same object, {count['equivalent']} equivalent; "
          f"of {changing} that change behaviour {count['caught']} caught, {count['lived']} lived: "
          f"{rate:.0f} % caught")
    return rate >= 90 and len(verdicts) == len(faults)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", help="files or folders below src")
    parser.add_argument("--number", type=int, default=200, help="of faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="faults that lived are tried again")
    parser.add_argument("-D", action="append", default=[], help="for cmake")
    arguments = parser.parse_args()
    paths = [Path(path).resolve() for path in arguments.paths or
             [ROOT / "src" / library for library in LIBRARIES]]
    faults = draw(paths, arguments.number, arguments.seed)
    state = WORK / "verdicts.jsonl"
    known = dict(map(json.loads, state.read_text().splitlines())) if state.exists() else {}
    looked_at = equivalents()
    for fault in faults:
        if (fault.source, one_line(fault.original), one_line(fault.text)) in looked_at:
            known[fault.id] = ["equivalent", ""]
        elif known.get(fault.id, [""])[0] == "equivalent" or (
                arguments.again and known.get(fault.id, [""])[0] == "lived"):
            del known[fault.id]
    left = [fault for fault in faults if fault.id not in known]
    if left:
        suites = prepare(sorted({fault.library for fault in left}, key=list(LIBRARIES).index),
                         [f"-D{option}" for option in arguments.D])
        targets = {entry["file"]: re.search(r" -o (\S+)", entry["command"])[1] for entry in
                   json.loads((BUILD / "compile_commands.json").read_text())}
    for fault in left:
        known[fault.id] = judge(fault, targets[str(TREE / fault.source)], suites[fault.library])
        with state.open("a") as file:
            file.write(json.dumps([fault.id, known[fault.id]]) + "\n")
        print(f"{fault.source}:{fault.line}: {one_line(fault.original)} ==> {one_line(fault.text)}: "
              f"{' by '.join(filter(None, known[fault.id]))}", flush=True)
    write_table(faults, known)
    sys.exit(0 if summary(faults, known) else 1)


if __name__ == "__main__":
    main()
