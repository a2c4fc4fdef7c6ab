#!/usr/bin/env python3
"""Prints one line about ctest runs from their JUnit files: counts, failures, skips with reasons.

A program with many cases may pass and yet have skipped some: their reasons are named as well.
"""
import re
import sys
import xml.etree.ElementTree as ElementTree

GTEST_SKIP = re.compile(r": Skipped\n(.+)")
OTHER_SKIP = re.compile(r"^(?:.* \.\.\. )?skipped[: ]+(.+)", re.MULTILINE)


def skip_reasons(case):
    """What GTEST_SKIP(), unittest or a command said; one entry a skipped case."""
    output = case.findtext("system-out") or ""
    pattern = GTEST_SKIP if "[==========]" in output else OTHER_SKIP
    found = [reason.strip(" '\"") for reason in pattern.findall(output)]
    if found:
        return found
    return ["no reason given"] if case.get("status") in ("notrun", "disabled") else []


def main():
    cases = [case for file in sys.argv[1:] for case in ElementTree.parse(file).getroot().findall("testcase")]
    failed = [case.get("name") for case in cases if case.get("status") == "fail"]
    not_run = [case for case in cases if case.get("status") in ("notrun", "disabled")]
    line = f"{len(cases) - len(failed) - len(not_run)} of {len(cases)} tests passed"
    if failed:
        line += f" | failed: {', '.join(failed)}"
    reasons = {}
    for case in cases:
        for reason in skip_reasons(case) if case.get("name") not in failed else []:
            reasons.setdefault(reason, {}).setdefault(case.get("name"))
    if reasons:
        line += " | skipped: " + "; ".join(
            f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    print(line)


if __name__ == "__main__":
    main()
