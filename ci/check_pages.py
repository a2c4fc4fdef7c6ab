#!/usr/bin/env python3
"""Holds the pages to what is there: every link, file, job, option, key and test that they name.

Usage: check_pages.py [ROOT]        prints whatever a page names that does not exist, exits 1
       check_pages.py --self-test   plants one such name of each kind and expects to find it

In a page, what stands between backticks, or in a fenced block, is looked at as follows:
  data/README.md, tiny.toml    a file or folder of the project: from the page, the root, or as #include
                               names it. What lies in a run folder is not looked for.
  smalltalk JOB                a job of jobs/*.cpp; README.md and jobs/README.md name each of them
  --option                     one that a job, a script or slurm/submit knows, unless the command is
                               another program's; behind `smalltalk JOB` one of that job
  --set KEY=VALUE              a key of the experiment
  expert.keep_every            a key of the experiment, if the first word is one of its sections
  comm/failure, lm/Suite.Case  a test, if the first word is a folder of tests/ and there is no such file
"""
import fnmatch
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from check_layers import main

OURS = {"bash", "python3", "smalltalk", "slurm/submit", "submit"}  # programs whose options we know
SUFFIXES = (".cpp", ".hpp", ".cu", ".py", ".sh", ".toml", ".sbatch", ".cmake", ".md", ".def")
PLACEHOLDER = re.compile(r"[<>{}$…*]|\bRUN\b|\bNAME\b|\bMODEL\b|\bFOLDER\b|\bFILE\b|\bSTAGE\b")
PAGES_OF_JOBS = ("README.md", "jobs/README.md")  # which name all of them
MADE = re.compile(r"^(runs|build|RUN)(/|$)")  # what the project's commands make


class Project:
    """What exists, read from the sources."""

    def __init__(self, root):
        self.root = root
        listed = subprocess.run(["git", "-C", root, "ls-files", "-co", "--exclude-standard"],
                                capture_output=True, text=True, check=True).stdout.split("\n")
        self.files = {name for name in listed if name and (root / name).is_file()}
        self.folders = {str(parent) for name in self.files for parent in pathlib.Path(name).parents}
        self.names = {pathlib.Path(name).name for name in self.files}
        code = {name: (root / name).read_text(encoding="utf-8", errors="replace")
                for name in self.files if not name.endswith(".md")}
        jobs = "".join(text for name, text in code.items() if name.startswith("jobs/"))
        self.jobs = set(re.findall(r'add_subcommand\(\s*"([\w-]+)"', jobs))
        self.of_job = {}  # its own options, and those of the functions that it shares with others
        shared = set(re.findall(r"--[a-z][\w-]*", code.get("jobs/options.cpp", "")))
        for text in code.values():
            for job in re.findall(r'add_subcommand\(\s*"([\w-]+)"', text):
                self.of_job[job] = shared | set(re.findall(r"--[a-z][\w-]*", text)) | {"--help"}
        self.options = set(re.findall(r"--[a-z][\w-]*", "".join(
            text for name, text in code.items() if name.split("/")[0] in ("jobs", "ci", "slurm", "data"))))
        self.keys = self.read_keys(code)
        self.written = set(re.findall(r'"([\w-]+\.(?:md|json|toml))"', "".join(code.values())))
        self.run_files = "".join(text for name, text in code.items()
                                 if name.endswith("run_layout.hpp"))
        tests = "".join(text for name, text in code.items() if name.startswith("tests/"))
        self.test_folders = {name.split("/")[1] for name in self.files
                             if name.startswith("tests/") and name.count("/") > 1}
        self.cases = set(re.findall(r"TEST(?:_F|_P)?\(\s*(\w+),", tests))
        self.cases |= {".".join(case) for case in re.findall(r"TEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)", tests)}
        self.tests = set(re.findall(r"smalltalk_add_(?:command_|python_)?test\((\w+/\w+)", tests))
        self.tests |= {name.removeprefix("tests/").removesuffix("_test.cpp") for name in self.files
                       if name.startswith("tests/") and name.endswith("_test.cpp")}
        self.test_folders |= {name.split("/")[0] for name in self.tests}

    @staticmethod
    def read_keys(code):
        keys = set()
        for name, text in code.items():
            if not name.endswith("experiment_fields.hpp"):
                continue
            keys |= set(re.findall(r'f\((?:std::string\()?"([\w.]+)"', text))
            for shape in re.findall(r"void visit_(\w+)_fields\(.*?\n}\n", text, re.S):
                body = re.search(rf"void visit_{shape}_fields\((.*?)\n}}\n", text, re.S)[1]
                for section in re.findall(rf'visit_{shape}_fields\("(\w+)"', text):
                    keys |= {section + key for key in re.findall(r'section \+ "(\.\w+)"', body)}
        return keys

    def has_file(self, name, page):
        """Whether a page may call something by this name."""
        name = name.rstrip("/").removeprefix("./")
        places = [page.parent, *map(pathlib.Path, (".", "include/smalltalk", "include", "src"))]
        for place in places:
            path = os.path.normpath(place / name)
            if path in self.files or path in self.folders:
                return True
            if any(c in name for c in "*?[") and fnmatch.filter(self.files, path):
                return True
        return "/" not in name and (name in self.names | self.written or name in self.run_files)

    def has_test(self, name):
        folder, _, case = name.partition("/")
        if name in self.tests or (name.split(".")[0] in self.tests and "." in name):
            return True
        if case in self.cases:
            return True
        return any(re.fullmatch(case.replace("*", ".*"), known) for known in self.cases)


def check_word(project, page, word):
    """What is wrong with one word between backticks."""
    if word.startswith("http") or MADE.match(word):
        return
    key = re.fullmatch(r"([a-z]+)\.([a-z_0-9]+)", word)
    sections = {known.split(".")[0] for known in project.keys}
    if key and key[1] in sections and word not in project.written and not word.endswith(SUFFIXES):
        if word not in project.keys:
            yield f"{word} is no key of the experiment"
        return
    if PLACEHOLDER.search(word.replace("*", "")):
        return
    head = word.split("/")[0]
    if "/" in word and (head in project.folders or head in project.test_folders or
                        head in {"core", "data", "comm", "lm", "mixture"}):
        if not project.has_file(word, page) and not (
                head in project.test_folders and project.has_test(word)):
            yield f"{word} is not there"
    elif word.endswith(SUFFIXES) and not project.has_file(word, page):
        yield f"{word} is not there"


def check_command(project, page, text):
    """A span that may be a command: its words, and its options if the program is ours."""
    words = text.split()
    program = next((w for w in words if pathlib.Path(w).name == "smalltalk" or w in OURS), None)
    for i, word in enumerate(words):
        if pathlib.Path(word).name == "smalltalk" and i + 1 < len(words):
            job = words[i + 1]
            if re.fullmatch(r"[a-z][a-z-]*", job) and job not in project.jobs:
                yield f"there is no job {job}"
    alone = len(words) <= 2 and words[0].startswith("--")
    behind = words.index(program) if program else 0
    job = words[behind + 1] if program and len(words) > behind + 1 else None
    known = project.options
    if program and pathlib.Path(program).name == "smalltalk":
        known = project.of_job.get(job, known)
    for i, word in enumerate(words):
        option = re.match(r"--[a-z][\w-]*", word)
        if option and (alone or (program and i > behind)):
            if option[0] not in known:
                yield f"nobody knows the option {option[0]}"
            if option[0] == "--set" and i + 1 < len(words):
                key = words[i + 1].strip("'\"").split("=")[0]
                if "." in key and key not in project.keys and key != "section.key":
                    yield f"{key} is no key of the experiment"
        elif not word.startswith("-") and not (i > 0 and words[i - 1].startswith("--")):
            yield from check_word(project, page, re.sub(r"[,;:()\[\]\"'.]+$", "", word))


def anchors_of(text):
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def check_page(project, page):
    text = (project.root / page).read_text(encoding="utf-8")
    for match in re.finditer(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        target, _, anchor = match[1].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = pathlib.Path(os.path.normpath(page.parent / target)) if target else page
        line = text.count("\n", 0, match.start()) + 1
        if str(path) not in project.files | project.folders:
            yield f"{page}:{line}: the link {match[1]} leads nowhere"
        elif anchor and anchor not in anchors_of((project.root / path).read_text(encoding="utf-8")):
            yield f"{page}:{line}: {path} has no heading for #{anchor}"
    fenced = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("```"):
            fenced = not fenced
            continue
        spans = [line.split("#")[0]] if fenced else re.findall(r"(?<!format )`([^`]+)`", line)
        for span in spans:
            for problem in check_command(project, page, span):
                yield f"{page}:{number}: {problem}"


def check_tree(root):
    project = Project(root)
    problems = [problem for name in sorted(project.files) if name.endswith(".md")
                for problem in check_page(project, pathlib.Path(name))]
    for name in project.files & set(PAGES_OF_JOBS):
        text = (root / name).read_text(encoding="utf-8")
        problems += [f"{name}: nothing about the job {job}" for job in sorted(project.jobs)
                     if f"`{job}`" not in text]
    return problems


def self_test():
    files = {
        "jobs/route.cpp": 'app.add_subcommand("route", ""); "--method --set"',
        "slurm/other.sh": "--other",
        "include/smalltalk/core/experiment/experiment_fields.hpp":
            'void visit_train_fields(section) {\n  f(section + ".lr", x);\n}\n'
            'void visit_fields() {\n  f(std::string("data.train"), x);\n  visit_train_fields("expert", y);\n}\n',
        "include/smalltalk/mixture/run/run_layout.hpp": "results.json",
        "tests/core/a_test.cpp": "TEST(Order, IsKept) {}",
        "tests/core/CMakeLists.txt": "smalltalk_add_test(core/a)",
        "src/README.md": "# A map\n",
    }
    good = ("`route` [map](src/README.md#a-map) `smalltalk route --method x` `--method` `expert.lr` `data.train`\n"
            "`core/a` `core/Order.IsKept` `jobs/route.cpp` `results.json` `RUN/x.toml`\n"
            "`core/experiment/experiment_fields.hpp` `cmake --preset x`\n")
    bad = ["[x](src/NONE.md)", "[x](src/README.md#no)", "`smalltalk rout x`", "`--methods`",
           "`smalltalk route --foo`", "`smalltalk route --other`", "`smalltalk route --set expert.lrr=1`", "`expert.lrr`", "`data.none`", "`core/b`", "`core/Order.IsLost`",
           "`jobs/none.cpp`", "`none.toml`", "```\nsmalltalk none\n```"]
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        subprocess.run(["git", "init", "-q", folder], check=True)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        page = root / "README.md"
        for text, wrong in [(good, False), *(("`route`\n" + line, True) for line in bad), ("", True)]:
            page.write_text(text)
            found = check_tree(root)
            if bool(found) != wrong:
                failures.append(f"not found: {text}" if wrong else "\n".join(found))
    return failures


if __name__ == "__main__":
    sys.exit(main(check_tree, self_test, "the pages name what is there"))
