#!/usr/bin/env python3
"""Measures the balanced assignment: how its time, memory and traffic grow with sequences, experts,
ranks and threads, and how it compares with other implementations on the same scores, measured in
turns in the same run.

The scores are those of `smalltalk bench-assignment`, made again here by the same integer formula;
the peers' assignments must be the same as ours, or the script fails. Needs the built program and
numpy; ci/bench_assignment.sh brings both.
"""
import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

try:
    import numpy as np
except ImportError:
    print("skipped: numpy is not installed")
    sys.exit(77)

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("SMALLTALK_BINARY") or str(ROOT / "build/release/smalltalk")
ROOT_FLAG = ["--allow-run-as-root"] if os.getuid() == 0 else []
MPIRUN = shlex.split(os.environ.get("SMALLTALK_MPIRUN", "")) or [
    "mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1",
    *ROOT_FLAG]
CORES = len(os.sched_getaffinity(0))
GIB = 2**30
EPSILONS = (4.0, 1.0, 0.25, 0.05)  # of the auction, nats


# --- the scores of jobs/bench_assignment.cpp ---

def mix(x):
    """The finaliser of MurmurHash3, on uint64."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


def bell(x):
    """The sum of the four 16-bit words."""
    low = np.uint64(0xFFFF)
    return sum(((x >> np.uint64(shift)) & low for shift in (0, 16, 32, 48)), np.uint64(0))


def make_points(kind, sequence, experts):
    """Scores in steps of 2^-14 nats above -1024, [rows, experts], of these sequences."""
    sequence = sequence[:, None]
    expert = np.arange(experts, dtype=np.uint64)[None]
    count = np.uint64(experts)
    own = mix(~sequence)
    level = bell(own) << np.uint64(5)
    noise = mix(sequence * count + expert)
    if kind == "iid":
        return bell(noise) << np.uint64(4)
    if kind == "clustered":
        home = mix(own) % count == expert
        return (level + (bell(noise) << np.uint64(2)) + (home.astype(np.uint64) << np.uint64(19))
                + (expert << np.uint64(20)) // count)
    gap = np.uint64(2**22 // experts)
    return level + (count - expert) * gap + (noise >> np.uint64(40)) % gap


def make_scores(kind, sequences, experts, bits):
    scores = np.empty((sequences, experts), np.uint16 if bits == 16 else np.float32)
    for first in range(0, sequences, 1 << 16):
        rows = np.arange(first, min(first + (1 << 16), sequences), dtype=np.uint64)
        points = make_points(kind, rows, experts)
        if bits == 16:
            scores[rows[0]:rows[-1] + 1] = points >> np.uint64(8)
        else:
            scores[rows[0]:rows[-1] + 1] = (points.astype(np.int64) - 2**24) * 2.0**-14
    return scores


def hash_of(assignment):
    """As the job prints it."""
    sequence = np.arange(len(assignment), dtype=np.uint64)
    keys = sequence << np.uint64(16) | assignment.astype(np.uint64)
    return f"{int(mix(keys).sum(dtype=np.uint64)):016x}"


def mean_score(scores, assignment):
    of_assigned = scores[np.arange(len(assignment)), assignment].astype(np.float64)
    if scores.dtype == np.uint16:
        of_assigned = of_assigned / 64 - 1024
    return float(of_assigned.mean())


def capacities(sequences, experts):
    return np.array([sequences // experts + (e < sequences % experts) for e in range(experts)])


# --- peers ---

def numpy_walk(scores, method="greedy"):
    """The definition, one sequence after the other; only those whose best expert is full look at
    their row again."""
    sequences, experts = scores.shape
    first = scores.argmax(1)
    if scores.dtype == np.uint16:
        scores = scores.astype(np.int32)  # so that a full expert can be worse than any score
        full = np.int32(-1 << 20)
    else:
        full = np.float32(-np.inf)
    best = scores.max(1)
    if method == "margin" and experts > 1:
        best = best - np.partition(scores, -2, axis=1)[:, -2]
    order = np.argsort(-best, kind="stable")
    room = capacities(sequences, experts).tolist()
    penalty = np.zeros(experts, scores.dtype)
    penalty[np.array(room) == 0] = full
    assignment = first.tolist()
    for i in order.tolist():
        expert = assignment[i]
        if room[expert] == 0:
            expert = int((scores[i] + penalty).argmax())
            assignment[i] = expert
        room[expert] -= 1
        if room[expert] == 0:
            penalty[expert] = full
    return np.array(assignment)


def numpy_auction(scores, epsilons):
    """Bertsekas's auction for experts with several places, as balanced k-means uses it: all
    sequences without a place bid at once for their best expert, which keeps its highest bids; the
    lowest of those is its price. Prices outlive a change of epsilon, places do not. Ends within the
    last epsilon (nats per sequence) of the best mean score."""
    values = scores.astype(np.float64)
    if scores.dtype == np.uint16:
        values = values / 64 - 1024
    sequences, experts = values.shape
    room = capacities(sequences, experts)
    price = np.zeros(experts)
    rounds = 0
    for epsilon in epsilons:
        assignment = np.full(sequences, -1)
        offer = np.zeros(sequences)
        members = [np.empty(0, np.int64) for _ in range(experts)]
        bidders = np.arange(sequences)
        while len(bidders):
            rounds += 1
            worth = values[bidders] - price
            line = np.arange(len(bidders))
            wanted = worth.argmax(1)
            best = worth[line, wanted]
            worth[line, wanted] = -np.inf
            offer[bidders] = price[wanted] + best - worth.max(1) + epsilon
            for expert in np.unique(wanted):
                candidates = np.concatenate([members[expert], bidders[wanted == expert]])
                places = room[expert]
                if len(candidates) > places:
                    ranked = np.argpartition(-offer[candidates], places - 1)
                    assignment[candidates[ranked[places:]]] = -1
                    candidates = candidates[ranked[:places]]
                if len(candidates) == places:
                    price[expert] = offer[candidates].min()
                assignment[candidates] = expert
                members[expert] = candidates
            bidders = np.flatnonzero(assignment < 0)
    return assignment, rounds


# --- measuring ---

def ours(ranks=None, **options):
    """One run of the job; `ranks` start it through mpirun."""
    command = [] if ranks is None else [*MPIRUN, "-n", str(ranks)]
    command += [BINARY, "bench-assignment", "--json"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(command)} failed with exit code {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(seconds):
    return {"repetitions": len(seconds), "median": statistics.median(seconds),
            "min": min(seconds), "max": max(seconds)}


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def require_same_hash(expected, found, what):
    if expected != found:
        sys.exit(f"FAILED: {what}: the assignment is {found}, not {expected}")


def text_of(seconds):
    return f"{seconds['median']:.4g} ({seconds['min']:.4g} to {seconds['max']:.4g})"


class Table:
    """Prints rows of Markdown as they come and keeps them for the JSON file."""

    def __init__(self, title, *columns):
        print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        self.rows = []

    def add(self, figures, *cells):
        print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)
        self.rows.append(figures)


def shape_of(run):
    return f"{run['sequences']:.0e} x {run['experts']}".replace("e+0", "e")


def memory_of(run):
    """(scores, what was needed beside them) in bytes; the program's own start is in neither."""
    beside = (run["peak_memory_bytes_per_rank"] - run["start_memory_bytes_per_rank"]
              - run["score_bytes_per_rank"])
    return run["score_bytes_per_rank"], beside


def scaling(title, shapes, repeat):
    table = Table(title, "N x E", "bits", "seconds, median (min to max)", "ns per score",
                  "reductions", "numbers", "b E^2 / 2", "scores, MiB", "memory beside, MiB",
                  "beside, bytes per sequence", "peak, MiB")
    for sequences, experts, bits in shapes:
        run = ours(sequences=sequences, experts=experts, bits=bits, repeat=repeat)
        seconds = spread(run["seconds"])
        scores, beside = memory_of(run)
        table.add({**run, "seconds": seconds}, shape_of(run), bits, text_of(seconds),
                  f"{seconds['median'] / (run['sequences'] * experts) * 1e9:.3f}",
                  run["reductions"], run["numbers"], f"{run['predicted_numbers']:.0f}",
                  f"{scores / 2**20:.1f}", f"{beside / 2**20:.1f}",
                  f"{beside / run['sequences']:.1f}",
                  f"{run['peak_memory_bytes_per_rank'] / 2**20:.0f}")
    return table.rows


def scaling_in_ranks(sequences, experts, repeat):
    table = Table("Ranks and threads", "N x E", "ranks x threads",
                  "seconds, median (min to max)", "sent per rank, bytes",
                  "8 b E^2 / 2, bytes", "assignment")
    expected = None
    for ranks, threads in [(1, t) for t in sorted({1, 2, CORES})] + [(2, 0), (4, 0)]:
        run = ours(ranks, sequences=sequences, experts=experts, repeat=repeat, threads=threads)
        expected = expected or run["assignment_hash"]
        require_same_hash(expected, run["assignment_hash"], f"{ranks} ranks, {threads} threads")
        seconds = spread(run["seconds"])
        predicted = 8 * run["predicted_numbers"] if ranks > 1 else 0
        table.add({**run, "seconds": seconds, "predicted_bytes": predicted}, shape_of(run),
                  f"{ranks} x {run['threads_per_rank']}", text_of(seconds),
                  run["bytes_sent_per_rank"], f"{predicted:.0f}", run["assignment_hash"])
    return table.rows


def numpy_peer(settings, repeat):
    """Ours and numpy's walk in turns: same scores, same assignment."""
    table = Table("Greedy beside the definition in numpy", "N x E", "scores", "bits",
                  "numpy, seconds", f"ours, {CORES} threads", "ratio", "ours, 1 thread", "ratio")
    for sequences, experts, bits, kind in settings:
        scores = make_scores(kind, sequences, experts, bits)
        options = {"sequences": sequences, "experts": experts, "bits": bits, "scores": kind}
        figures = {"numpy": [], "ours": [], "ours_one_thread": []}
        for _ in range(repeat):
            run = ours(**options)
            figures["ours"] += run["seconds"]
            figures["ours_one_thread"] += ours(**options, threads=1)["seconds"]
            seconds, assignment = timed(numpy_walk, scores)
            figures["numpy"].append(seconds)
        require_same_hash(hash_of(assignment), run["assignment_hash"],
                          f"numpy, {sequences} x {experts} {kind}, {bits} bits")
        figures = {name: spread(seconds) for name, seconds in figures.items()}
        peer = figures["numpy"]["median"]
        ratio = {name: peer / figures[name]["median"] for name in ("ours", "ours_one_thread")}
        table.add({**options, **figures, "ratio": ratio, "displaced": run["displaced"],
                   "assignment_hash": run["assignment_hash"]},
                  shape_of(run), kind, bits, text_of(figures["numpy"]), text_of(figures["ours"]),
                  f"{ratio['ours']:.1f}", text_of(figures["ours_one_thread"]),
                  f"{ratio['ours_one_thread']:.1f}")
    return table.rows


def auction_peer(settings):
    """Seconds and mean scores of the auction and of our methods in turns, on the same scores."""
    table = Table("Beside an auction as in balanced k-means (numpy), 16 bits", "N x E", "scores",
                  "method", "repetitions", "seconds, median (min to max)", "mean score, nats",
                  "below optimal, nats", "balanced", "auction's seconds / these")
    methods = ("greedy", "margin", "optimal")
    for sequences, experts, kind, repeat in settings:
        options = {"sequences": sequences, "experts": experts, "bits": 16, "scores": kind}
        scores = make_scores(kind, sequences, experts, 16)
        seconds = {name: [] for name in ("auction", *methods)}
        means = {}
        for _ in range(repeat):
            for method in methods:
                run = ours(**options, method=method)
                seconds[method] += run["seconds"]
                means[method] = run["mean_score"]
            took, (assignment, rounds) = timed(numpy_auction, scores, EPSILONS)
            seconds["auction"].append(took)
        means["auction"] = mean_score(scores, assignment)
        counts = np.bincount(assignment, minlength=experts)
        # The program itself refuses an assignment whose counts are not the capacities.
        balanced = {"auction": bool((counts == capacities(sequences, experts)).all())}
        for name, of_name in seconds.items():
            figures = spread(of_name)
            ratio = statistics.median(seconds["auction"]) / figures["median"]
            row = {**options, "method": name, "seconds": figures, "mean_score": means[name],
                   "balanced": balanced.get(name, True), "ratio": ratio}
            label = f"ours, {name}"
            if name == "auction":
                row.update(epsilons=EPSILONS, rounds=rounds)
                label = f"auction, {rounds} rounds"
            table.add(row, shape_of(options), kind, label, repeat, text_of(figures),
                      f"{means[name]:.4f}", f"{means['optimal'] - means[name]:.4f}",
                      "yes" if row["balanced"] else "no", f"{ratio:.2f}")
    print(f"\nThe auction's epsilon falls over {EPSILONS} nats; optimal's is 0.001.")
    return table.rows


def smoke():
    """The smallest check that program and script still fit together."""
    shape = {"sequences": 10_000, "experts": 8}
    for kind, bits, method, all_ranks in (("clustered", 16, "greedy", (None, 1, 2)),
                                          ("same-order", 16, "greedy", (None,)),
                                          ("iid", 32, "greedy", (None,)),
                                          ("clustered", 32, "margin", (2,))):
        scores = make_scores(kind, shape["sequences"], shape["experts"], bits)
        assignment = numpy_walk(scores, method)
        for ranks in all_ranks:
            run = ours(ranks, **shape, scores=kind, bits=bits, method=method)
            what = f"{kind}, {bits} bits, {method}, {ranks or 1} ranks"
            require_same_hash(hash_of(assignment), run["assignment_hash"], what)
            if abs(run["mean_score"] - mean_score(scores, assignment)) > 1e-4:
                sys.exit(f"FAILED: {what}: mean score {run['mean_score']}")
            print(f"same assignment as numpy's: {what}: {run['assignment_hash']}")
    assignment, _ = numpy_auction(scores[:1000], (4.0, 1.0))
    if (np.bincount(assignment) != 125).any():
        sys.exit("FAILED: the auction is not balanced")


def machine():
    cpu = [line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
           if line.startswith("model name")]
    return {"cpu": cpu[0] if cpu else "unknown", "cores": CORES,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load_at_start": os.getloadavg()[0], "numpy": np.__version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def free_memory():
    with open("/proc/meminfo", encoding="utf-8") as file:
        kib = {line.split(":")[0]: int(line.split()[1]) for line in file}
    return kib["MemAvailable"] * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true",
                        help="also 1e8 sequences: 6.4 GB of scores in 16 bits, and 12.8 GB in "
                             "float32 where the memory is there; and the auction at 1e6")
    parser.add_argument("--smoke", action="store_true", help="only check, in seconds")
    parser.add_argument("--repeat", type=int, default=3, help="of each figure of ours (default 3)")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for all figures")
    args = parser.parse_args()
    if args.smoke:
        smoke()
        return
    result = {"machine": machine(), "command": shlex.join(sys.argv)}
    print(f"{result['machine']['cpu']}, {CORES} cores, "
          f"{result['machine']['memory_bytes'] / GIB:.1f} GiB, load {os.getloadavg()[0]:.1f}; "
          "clustered scores, greedy and all cores where nothing else is said")
    shapes = [(n, 32, 16) for n in (10**5, 10**6, 10**7)]
    shapes += [(n, 32, 32) for n in (10**5, 10**6, 10**7)]
    if args.full:
        shapes.append((10**8, 32, 16))
        needed = 10**8 * 32 * 4 + 4 * GIB
        if free_memory() > needed:
            shapes.append((10**8, 32, 32))
        else:
            print(f"left out: 1e8 x 32 in float32 needs {needed / GIB:.1f} GiB, "
                  f"{free_memory() / GIB:.1f} are free")
    result["sequences"] = scaling("Sequences", shapes, args.repeat)
    result["experts"] = scaling("Experts", [(10**6, e, 16) for e in (1, 8, 32, 128, 1024)],
                                args.repeat)
    result["ranks"] = scaling_in_ranks(10**6, 32, args.repeat)
    kinds = ("clustered", "iid", "same-order")
    result["numpy"] = numpy_peer([(10**5, 32, 16, kind) for kind in kinds] +
                                 [(10**5, 32, 32, "clustered"), (10**6, 32, 16, "clustered")],
                                 args.repeat)
    large = [(10**6, 32, "clustered", 1)] if args.full else []  # takes up to a minute
    result["auction"] = auction_peer([(10**5, 32, kind, args.repeat) for kind in kinds] + large)
    result["machine"]["load_at_end"] = os.getloadavg()[0]
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
