#!/usr/bin/env python3
"""Prints one line about a ctest run from its JUnit file: counts, failures, skips with reasons."""
import re
import sys
import xml.etree.ElementTree as ElementTree


def skip_reason(case):
    """The text of GTEST_SKIP() or of unittest's skip, or what the command said last."""
    output = case.findtext("system-out") or ""
    for pattern in (r": Skipped\n(.+)", r"skipped[: ]+['\"]?([^'\"\n]+)"):
        match = re.search(pattern, output)
        if match:
            return match[1].strip()
    lines = output.strip().splitlines()
    return lines[-1] if lines else "no reason given"


def main():
    cases = ElementTree.parse(sys.argv[1]).getroot().findall("testcase")
    failed = [case.get("name") for case in cases if case.get("status") == "fail"]
    skipped = [case for case in cases if case.find("skipped") is not None]
    parts = [f"{len(cases) - len(failed) - len(skipped)} of {len(cases)} tests passed"]
    if failed:
        parts.append(f"failed: {', '.join(failed)}")
    if skipped:
        reasons = {}
        for case in skipped:
            reasons.setdefault(skip_reason(case), []).append(case.get("name"))
        parts.append("skipped: " + "; ".join(
            f"{', '.join(names)} ({reason})" for reason, names in reasons.items()))
    print(" | ".join(parts))


if __name__ == "__main__":
    main()
