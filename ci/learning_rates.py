#!/usr/bin/env python3
"""The learning rates of experts and dense models, chosen from one grid on the validation split.

Reads one run for each rate and prints the table; with --page, rewrites that of a page. Fails if an
optimum lies at an edge of the grid, where a better rate might lie beyond.
"""
import argparse
import json
import pathlib
import sys

from claim_table import NAMES, replace_between

BEGIN, END = "<!-- learning rates: begin -->", "<!-- learning rates: end -->"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run folders, one for each rate")
    parser.add_argument("--page", type=pathlib.Path, help="file whose table is rewritten")
    args = parser.parse_args()
    results = [json.loads((run / "results.json").read_text()) for run in args.runs]
    results.sort(key=lambda result: result["models"]["mixture"]["lr"])
    rates = [result["models"]["mixture"]["lr"] for result in results]
    if len(set(rates)) < 5:
        sys.exit("the grid needs at least five rates")
    lines = ["| validation perplexity at peak lr | " + " | ".join(f"{rate:g}" for rate in rates)
             + " |", "|---|" + "---|" * len(rates)]
    failed = False
    for model in ("mixture", "dense", "dense_large_batch"):
        values = [r["models"][model]["validation_perplexity"]["all"] for r in results]
        best = values.index(min(values))
        cells = [f"**{v:.3f}**" if i == best else f"{v:.3f}" for i, v in enumerate(values)]
        lines.append(f"| {NAMES[model].format(E=results[0]['experts'])} | " + " | ".join(cells)
                     + " |")
        print(f"{model}: best lr {rates[best]:g}")
        if best in (0, len(rates) - 1):
            print(f"{model}: the optimum lies at the grid's edge", file=sys.stderr)
            failed = True
    print("\n".join(lines))
    if args.page:
        replace_between(args.page, BEGIN, END, lines)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
