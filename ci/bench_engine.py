#!/usr/bin/env python3
"""Measures the training engine beside PyTorch (eager, torch.compile, torch.compile with a chunked
cross-entropy) on the same models and batches, in turns in the same run: every repetition gives each
contender a slice of some seconds, in rotating order. Peers are processes that are compiled and
warmed up once and then wait; ours is `smalltalk bench`. The GEMM rate, of one large product through
PyTorch, is taken in every repetition too.

Goals: training at least 1.3 times the best peer, or at least 80 % of the GEMM rate; the router step
at least 5 times plain torch.compile; scoring at least 1.7 times the best peer, or at least 80 % of
the GEMM rate.

--memory prints a table of memory over vocabularies and lengths instead.
"""
import argparse
import json
import os
import pathlib
import platform
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

from contender import Contender

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("SMALLTALK_BINARY") or str(ROOT / "build/release/smalltalk")
CORES = len(os.sched_getaffinity(0))
PEERS = ("eager", "compile", "compile+chunks")
CHUNKS = (256, 512, 1024, 2048)  # tokens, of which the fastest for the peer is taken
# Freed memory is kept: fresh pages are slow. For the peer that stands for a user who knows.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40),
               "MALLOC_TOP_PAD_": str(2**26)}

# name: vocabulary, hidden, layers, heads, intermediate, feed-forward, batch, length, training, and
# for Lory the experts and the tokens of a segment
CASES = {
    "router-step": (32000, 96, 12, 12, 384, "relu2", 32, 256, True),
    "router-score": (32000, 96, 12, 12, 384, "relu2", 32, 256, False),
    "tiny-step": (4096, 128, 4, 4, 344, "swiglu", 32, 256, True),
    "expert-step": (32000, 384, 6, 6, 1024, "swiglu", 8, 512, True),
    "gpt2-step": (50257, 768, 12, 12, 2048, "swiglu", 4, 64, True),
    "lory-64-step": (1024, 64, 4, 4, 176, "swiglu", 16, 256, True, 8, 64),
    "lory-64-long-step": (1024, 64, 4, 4, 176, "swiglu", 4, 1024, True, 8, 256),
    "lory-192-step": (4096, 192, 4, 4, 512, "swiglu", 8, 512, True, 8, 64),
    "lory-384-step": (4096, 384, 6, 6, 1024, "swiglu", 8, 512, True, 8, 64),
    "lory-384-long-step": (4096, 384, 6, 6, 1024, "swiglu", 4, 1024, True, 8, 256),
}


def shape_of(name):
    """What `smalltalk bench` is told of a case that it does not know by name."""
    vocab, hidden, layers, heads, _, _, batch, length, _, experts, segment = CASES[name]
    return ["custom-step", "--vocab-size", vocab, "--hidden-size", hidden, "--num-layers", layers,
            "--num-heads", heads, "--batch-size", batch, "--seq-length", length,
            "--merged-experts", experts, "--segment-tokens", segment]


# --- the peers: one process each, told "run SECONDS" through a pipe ---

def peer_step(name, kind, threads):
    """A function that does one step of a case, given the tokens of a chunk (of use to
    compile+chunks alone), the tokens it has worked on, and the model's parameters."""
    sys.path.insert(0, str(ROOT / "tests/lm"))
    import torch
    import torch_peer

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    vocab, hidden, layers, heads, intermediate, form, batch, length, train, *lory = CASES[name]
    model = torch_peer.Peer(vocab, hidden, layers, heads, intermediate, form, lory=lory)
    tokens = torch.randint(vocab, (batch, length + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    compiled = torch.compile if kind.startswith("compile") else lambda function: function
    chunked = kind == "compile+chunks"

    if train:
        optimizer = torch.optim.AdamW(model.optimizer_groups(0.1), lr=1e-4, betas=(0.9, 0.99),
                                      fused=True)
        if chunked:
            body = compiled(model)
            torch_peer.ChunkedLoss.gradients = staticmethod(compiled(torch_peer.chunk_gradients))

            def loss_of(chunk):
                return torch_peer.ChunkedLoss.apply(body(inputs), model.embedding, targets, chunk)
        else:
            plain = compiled(lambda: torch_peer.plain_loss(model(inputs), model.embedding, targets))

            def loss_of(_):
                return plain()

        def step(chunk):
            optimizer.zero_grad(set_to_none=True)
            loss_of(chunk).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
    else:
        body = compiled(model)
        log_probs = compiled(torch_peer.chunk_log_probs)

        @torch.inference_mode()
        def step(chunk):
            size = chunk if chunked else batch * length
            flat, wanted = body(inputs).flatten(0, 1), targets.flatten()
            parts = [log_probs(flat[i:i + size], model.embedding, wanted[i:i + size])
                     for i in range(0, batch * length, size)]
            return torch.cat(parts).view(batch, length).sum(1)
    return step, batch * length, sum(p.numel() for p in model.parameters())


def gemm_step(threads):
    import torch

    torch.set_num_threads(threads)
    size = 2048
    a, b, c = torch.ones(size, size), torch.ones(size, size), torch.empty(size, size)
    return lambda _: torch.mm(a, b, out=c), 2.0 * size**3, 0


def run_for(step, chunk, seconds):
    start, steps = time.monotonic(), 0
    while steps == 0 or time.monotonic() - start < seconds:
        step(chunk)
        steps += 1
    return (time.monotonic() - start) / steps


def worker(name, kind, threads):
    chunk = None
    step, amount, parameters = (gemm_step(threads) if kind == "gemm" else
                                peer_step(name, kind, threads))
    if kind == "compile+chunks":
        times = {}
        for size in [size for size in CHUNKS if size <= amount]:
            step(size)  # compiles
            times[size] = min(run_for(step, size, 0) for _ in range(2))
        chunk = min(times, key=times.get)
        print(json.dumps({"chunk": chunk}), flush=True)
    step(chunk)
    step(chunk)
    print(json.dumps({"parameters": parameters}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"rate": amount / run_for(step, chunk, float(line))}), flush=True)


class Peer(Contender):
    def __init__(self, name, kind, threads):
        super().__init__(
            [sys.executable, "-B", __file__, "--worker", kind, "--cases", name, "--threads",
             str(threads)],
            {"TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build/inductor"), "OMP_NUM_THREADS": str(threads),
             **(KEEP_MEMORY if kind == "compile+chunks" else {})})
        self.note = ""
        while True:
            answer = self.read()
            if "chunk" in answer:
                self.note = f"chunks of {answer['chunk']} tokens, freed memory kept"
            if "parameters" in answer:
                self.parameters = answer["parameters"]
                break

    def rate(self, seconds):
        return self.turn(seconds)["rate"]


class LlmC:
    """llm.c's CPU program at GPT-2's size. Its steps are timed by itself; between slices it sleeps."""

    BATCH, LENGTH = 4, 64

    def __init__(self, source, threads):
        self.folder = tempfile.TemporaryDirectory()
        here = pathlib.Path(self.folder.name)
        self.threads = threads
        subprocess.run(["cc", "-Ofast", "-march=native", "-fopenmp", "-DOMP", "-o",
                        here / "train_gpt2", pathlib.Path(source) / "train_gpt2.c", "-lm"],
                       cwd=source, check=True, capture_output=True)
        import torch
        length, vocab, layers, heads, width, padded = 1024, 50257, 12, 12, 768, 50304
        count = (padded * width + length * width + 2 * width
                 + layers * (12 * width * width + 13 * width))
        with open(here / "gpt2_124M.bin", "wb") as file:
            head = [20240326, 3, length, vocab, layers, heads, width, padded]
            file.write(struct.pack("256i", *head, *[0] * (256 - len(head))))
            file.write((torch.randn(count) * 0.02).numpy().tobytes())
        data = here / "dev/data/tinyshakespeare"
        data.mkdir(parents=True)
        tokens = torch.randint(vocab, (self.BATCH * self.LENGTH * 100,)).tolist()
        for part in ("train", "val"):
            with open(data / f"tiny_shakespeare_{part}.bin", "wb") as file:
                file.write(struct.pack("256i", 20240520, 1, len(tokens), *[0] * 253))
                file.write(struct.pack(f"{len(tokens)}H", *tokens))
        self.note = "-Ofast -march=native -fopenmp"
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            ["stdbuf", "-oL", "./train_gpt2"], cwd=self.folder.name, text=True,
            stdout=subprocess.PIPE, env=dict(os.environ, OMP_NUM_THREADS=str(self.threads)))

    def rate(self, seconds):
        if self.process is None:
            self.start()
        self.process.send_signal(signal.SIGCONT)
        times, begin = [], None
        while not times or time.monotonic() - begin < seconds:
            line = self.process.stdout.readline()
            if not line.startswith("step "):
                continue
            step = int(line.split()[1].rstrip(":"))
            if begin is None:  # this one has slept in its middle
                begin = time.monotonic()
            else:
                times.append(float(line.split("took")[1].split()[0]) / 1000)
            if step >= 19:  # then it would generate text, for long
                self.close()
                self.start()
                begin = None if not times else begin
        self.process.send_signal(signal.SIGSTOP)
        return self.BATCH * self.LENGTH / statistics.median(times)

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def ours(name, threads, seconds, dense=False):
    lory = len(CASES[name]) > 9
    case = shape_of(name) if lory else [name]
    if dense:
        case = case[:case.index("--merged-experts")]
    line = subprocess.run([BINARY, "bench", *map(str, case), "--threads", str(threads), "--seconds",
                           str(seconds), "--json"], check=True, capture_output=True, text=True)
    return json.loads(line.stdout.splitlines()[-1])


# --- one case ---

def middle(values):
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def run_case(name, arguments):
    contenders, notes = {}, {}
    for kind in ("gemm", *arguments.contenders):
        try:
            contenders[kind] = Peer(name, kind, arguments.threads)
        except RuntimeError as error:
            print(f"{name}: {kind} left out: {error}")
    if name == "gpt2-step" and arguments.llm_c:
        contenders["llm.c"] = LlmC(arguments.llm_c, arguments.threads)
    elif name == "gpt2-step":
        print("gpt2-step: llm.c not measured (give --llm-c FOLDER)")
    rates = {kind: [] for kind in ("ours", *contenders)}
    details, dense = [], []
    order = list(rates)
    for repetition in range(arguments.repetitions):
        for kind in order[repetition % len(order):] + order[:repetition % len(order)]:
            if kind == "ours":
                details.append(ours(name, arguments.threads, arguments.seconds))
                rates[kind].append(details[-1]["tokens_per_second"])
                if len(CASES[name]) > 9:
                    dense.append(ours(name, arguments.threads, arguments.seconds, dense=True))
            else:
                seconds = min(1.0, arguments.seconds) if kind == "gemm" else arguments.seconds
                rates[kind].append(contenders[kind].rate(seconds))
    for kind, contender in contenders.items():
        notes[kind] = getattr(contender, "note", "")
        contender.close()

    for kind in arguments.contenders:
        if kind in contenders and contenders[kind].parameters != details[0]["parameters"]:
            sys.exit(f"{name}: {kind} has {contenders[kind].parameters} parameters, ours "
                     f"{details[0]['parameters']}: not the same model")
    gemm = rates.pop("gemm")
    flops = details[0]["model_flops_per_second"] / details[0]["tokens_per_second"]
    print(f"\n{name}: {details[0]['parameters'] / 1e6:.1f} M parameters, "
          f"{arguments.threads} threads, GEMM {middle([g / 1e9 for g in gemm])} GFLOP/s, "
          f"page faults per step {max(d['page_faults_per_step'] for d in details):.1f}")
    print(f"  {'':<16} {'tokens/s':<32} {'of the GEMM rate':<18} ours is faster by")
    ratios, shares = {}, {}
    for kind, values in rates.items():
        shares[kind] = statistics.median(v * flops / g for v, g in zip(values, gemm))
        ratios[kind] = [a / b for a, b in zip(rates["ours"], values)]
        text = "" if kind == "ours" else f"{middle(ratios[kind])} x"
        print(f"  {kind:<16} {middle(values):<32} {100 * shares[kind]:<18.0f} {text:<28} "
              f"{notes.get(kind, '')}")
    peers = [kind for kind in rates if kind != "ours"]
    best = max(peers, key=lambda kind: statistics.median(rates[kind]), default=None)
    verdicts = []
    if best is not None:
        wanted = 1.5 if dense else 1.3 if CASES[name][8] else 1.7
        ratio = statistics.median(ratios[best])
        met = ratio >= wanted or (shares["ours"] >= 0.8 and not dense)
        verdicts.append(f"{'met' if met else 'MISSED'}: {ratio:.2f} x the best peer ({best}) and "
                        f"{100 * shares['ours']:.0f} % of the GEMM rate; "
                        f"asked are {wanted} x{'' if dense else ' or 80 %'}")
    if dense:
        def flops_a_token(result):
            return result["model_flops_per_second"] / result["tokens_per_second"]

        times = [d["tokens_per_second"] / o["tokens_per_second"] for d, o in zip(dense, details)]
        more = flops_a_token(details[0]) / flops_a_token(dense[0])
        ratio = statistics.median(times) / more
        verdicts.append(f"{'met' if ratio <= 1.15 else 'MISSED'}: a step takes {middle(times)} x a "
                        f"dense one for {more:.3f} x the FLOPs, {ratio:.2f} x that; asked are 1.15 x")
    if name == "router-step" and "compile" in ratios:
        ratio = statistics.median(ratios["compile"])
        verdicts.append(f"{'met' if ratio >= 5 else 'MISSED'}: {ratio:.2f} x plain torch.compile; "
                        "asked are 5 x")
    for verdict in verdicts:
        print(f"  goal {verdict}")
    return {"rates": rates, "gemm": gemm, "ours": details, "notes": notes, "verdicts": verdicts}


# --- memory over vocabularies and lengths ---

def memory_worker(kind, vocab, length, threads):
    """One training step in this process; prints the most it has held."""
    sys.path.insert(0, str(ROOT / "tests/lm"))
    CASES["custom-step"] = (vocab, 128, 2, 4, 344, "swiglu", 1, length, True)
    import torch_peer

    build = torch_peer.Peer.__init__
    torch_peer.Peer.__init__ = lambda self, *a: build(self, *a, length=length)
    if kind == "chunks":  # not compiled: the compiler's own memory would count
        import torch

        torch.compile = lambda function: function
        kind = "compile+chunks"
    step, *_ = peer_step("custom-step", kind, threads)
    step(1024)
    with open("/proc/self/status") as file:
        print([int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")][0])


def memory_table(arguments):
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print("peak memory in GiB of a process that does one training step on one sequence (H 128, L 2, "
          "4 heads, SwiGLU, tied):")
    print(f"{'V':>8} {'S':>7} {'ours':>8} {'eager':>8} {'eager, chunked loss':>20} "
          f"{'logits alone':>13}")
    rows = []
    for vocab in (32768, 131072, 262144):
        for length in (1024, 4096, 16384):
            logits = 4 * vocab * length
            row = {"vocab": vocab, "length": length}
            result = subprocess.run(
                [BINARY, "bench", "custom-step", "--hidden-size", "128", "--num-layers", "2",
                 "--num-heads", "4", "--vocab-size", str(vocab), "--batch-size", "1",
                 "--seq-length", str(length), "--threads", str(arguments.threads), "--seconds", "0",
                 "--json"], check=True, capture_output=True, text=True)
            row["ours"] = json.loads(result.stdout.splitlines()[-1])["peak_memory_bytes"]
            for kind in ("eager", "chunks"):
                if kind == "eager" and 4 * logits > total / 2:
                    continue  # logits, log-softmax, two gradients
                result = subprocess.run(
                    [sys.executable, "-B", __file__, "--memory-worker", kind, str(vocab),
                     str(length), "--threads", str(arguments.threads)],
                    check=True, capture_output=True, text=True)
                row[kind] = int(result.stdout)
            cell = {k: f"{row[k] / 2**30:.2f}" if k in row else "too much" for k in
                    ("ours", "eager", "chunks")}
            print(f"{vocab:>8} {length:>7} {cell['ours']:>8} {cell['eager']:>8} "
                  f"{cell['chunks']:>20} {logits / 2**30:>13.2f}", flush=True)
            rows.append(row)
    return rows


def cpu_model():
    with open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if "model name" in line), "?")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--contenders", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each slice, at least one step")
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--llm-c", help="a checkout of llm.c, to be measured at GPT-2's size")
    parser.add_argument("--memory", action="store_true", help="the table of memory, no times")
    parser.add_argument("--out", help="write all raw figures as JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--memory-worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.cases[0], arguments.worker, arguments.threads)
    if arguments.memory_worker:
        kind, vocab, length = arguments.memory_worker
        return memory_worker(kind, int(vocab), int(length), arguments.threads)

    try:
        import torch
    except ImportError:
        print("skipped: PyTorch is not installed")
        return 77

    print(f"{cpu_model()}, {CORES} cores, {arguments.threads} threads; PyTorch "
          f"{torch.__version__}, Python {platform.python_version()}; {arguments.repetitions} "
          f"repetitions of {arguments.seconds:g} s; median (lowest to highest)", flush=True)
    if arguments.memory:
        results = memory_table(arguments)
    else:
        results = {name: run_case(name, arguments) for name in arguments.cases}
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
