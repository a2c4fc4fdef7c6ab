#!/usr/bin/env python3
"""Collects the results of the claim's seeds, checks the claim, writes the README's table.

The claim: the mixture's test perplexity lies below the dense model's of one expert's size at no
fewer training FLOPs, by at least the paper's 8.5 % in its protocol (same steps, batch x E) and by
at least 5 % in the stronger one (same batch, steps x E); experts on random shards do not.
"""
import argparse
import json
import pathlib
import statistics
import sys

NAMES = {
    "mixture": "**mixture of {E} experts**",
    "dense": "dense, same batch, steps x E",
    "dense_large_batch": "dense, batch x E, same steps (the paper's)",
    "random_shards": "{E} experts on random shards",
    "tfidf_kmeans": "{E} experts on shards by TF-IDF and k-means",
}
CLAIMS = {"dense": 5.0, "dense_large_batch": 8.5}
BEGIN, END = "<!-- claim table: begin -->", "<!-- claim table: end -->"


def gain(result, model, where="all"):
    """How far, in per cent, the mixture's perplexity lies below the model's."""
    models = result["models"]
    return 100 * (1 - models["mixture"]["perplexity"][where] / models[model]["perplexity"][where])


def spread(values, digits=2):
    """Mean and range over the seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(seeds):
    """The README's table, as lines of Markdown."""
    first = seeds[0]
    lines = [
        "| model | test perplexity | after the prefix | bits per byte | mixture is below by | "
        "training FLOPs | steps x batch | peak lr |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, label in NAMES.items():
        if model not in first["models"]:
            continue
        of = [seed["models"][model] for seed in seeds]
        below = "" if model == "mixture" else spread([gain(s, model) for s in seeds], 1) + " %"
        lines.append(
            f"| {label.format(E=first['experts'])} "
            f"| {spread([m['perplexity']['all'] for m in of])} "
            f"| {spread([m['perplexity']['after_prefix'] for m in of])} "
            f"| {statistics.mean(m['bits_per_byte'] for m in of):.3f} "
            f"| {below} | {of[0]['train_flops']:.3e} "
            f"| {of[0]['steps']} x {of[0]['batch_size']}"
            f"{' each' if of[0]['models'] > 1 else ''} | {of[0]['lr']:g} |")
    purity = [100 * seed["routing"]["purity"] for seed in seeds]
    lines += [
        "",
        f"Mean over {len(seeds)} seeds (lowest to highest). Purity, the share of test sequences "
        f"routed where most of their domain goes, by labels that training never saw: "
        f"{spread(purity, 1)} %. Bytes sent between groups after the shards: "
        f"{max(s['communication']['world_bytes_after_shards'] for s in seeds)}.",
    ]
    return lines


def failures(seeds):
    """What of the claim does not hold, on the mean of the seeds."""
    found = []
    for model, least in CLAIMS.items():
        mean = statistics.mean(gain(seed, model) for seed in seeds)
        if mean < least:
            found.append(f"the mixture is {mean:.2f} % below {model}, less than {least} %")
    for seed in seeds:
        models = seed["models"]
        if models["random_shards"]["perplexity"]["all"] < models["dense"]["perplexity"]["all"]:
            found.append(f"seed {seed['seed']}: random shards are below dense")
        for model in CLAIMS:
            if models[model]["train_flops"] < models["mixture"]["train_flops"]:
                found.append(f"seed {seed['seed']}: {model} had fewer FLOPs than the mixture")
        if seed["communication"]["world_bytes_after_shards"] != 0:
            found.append(f"seed {seed['seed']}: bytes crossed between groups after the shards")
    return found


def replace_between(path, begin, end, lines):
    """Puts the lines between two markers of a text file."""
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    path.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + tail, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run folders, one for each seed")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="results of all seeds")
    parser.add_argument("--page", type=pathlib.Path, help="file whose table is rewritten")
    args = parser.parse_args()
    seeds = [json.loads((run / "results.json").read_text()) for run in args.runs]
    args.out.write_text(json.dumps({"seeds": seeds}, indent=1) + "\n")
    lines = table(seeds)
    print("\n".join(lines))
    if args.page:
        replace_between(args.page, BEGIN, END, lines)
    found = failures(seeds)
    for failure in found:
        print("claim fails:", failure, file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
