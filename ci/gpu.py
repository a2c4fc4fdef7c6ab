#!/usr/bin/env python3
"""Measures the engine on a GPU beside PyTorch on the same models and batches, in turns in the same
run (see ci/gpu.sh). Each contender is a process that is warmed up once and then waits for its turns;
it is ended when its case is done. Of our training steps some more are profiled then: what the device
does all the time, by kind, beside what lm/train/roofline.hpp predicts for the card. What is known is
written after each case: gpu.json, gpu.md.

The peers are the model of tests/lm/torch_peer.py under autocast in bfloat16 with fused AdamW and
clipping: eager, torch.compile, the same with max-autotune, and compiled with the loss in chunks of
tokens, of which the fastest size is taken. Several models are trained one after another.
"""
import argparse
import json
import os
import pathlib
import statistics
import sys
import time

from contender import Contender

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHUNKS = (1024, 2048, 4096)  # tokens
ALL = ("eager", "compile", "max-autotune", "compile+chunks")


def case(name, models, shape, batch, length, *, mode="step", recompute="none", micro=0,
         peers=ALL, feed_forward="swiglu", merged_experts=0, segment_tokens=0):
    vocab, hidden, layers, heads, intermediate = shape
    return {"name": name, "mode": mode, "models": models, "vocab": vocab, "hidden": hidden,
            "layers": layers, "heads": heads, "intermediate": intermediate, "batch": batch,
            "length": length, "recompute": recompute, "micro": micro, "peers": peers,
            "feed_forward": feed_forward, "merged_experts": merged_experts,
            "segment_tokens": segment_tokens}


ROUTER = (32000, 96, 12, 12, 384)
EXPERT = (32000, 1024, 24, 16, 4096)   # 335 M, the paper's
LORY = (32000, 1024, 24, 16, 2816)     # 0.3B/8E of Lory's paper; no peer merges experts
LARGE = (32000, 2048, 24, 16, 8192)    # 1.3 B
SEVEN = (32000, 4096, 4, 32, 16384)    # layers of 7 B, as many as fit with all their moments
CASES = {
    "full": [
        case("routers, step", 4, ROUTER, 32, 256, feed_forward="relu2"),
        case("expert 335M, S 1,024", 1, EXPERT, 32, 1024, feed_forward="relu2"),
        case("routers, scores", 4, ROUTER, 64, 256, mode="score", feed_forward="relu2"),
        case("expert 1.3B, S 1,024", 1, LARGE, 16, 1024, feed_forward="relu2",
             peers=("compile", "compile+chunks")),
        case("expert 335M, S 4,096", 1, EXPERT, 8, 4096, feed_forward="relu2",
             peers=("compile", "compile+chunks")),
        case("7B, 4 layers, all computed again", 1, SEVEN, 8, 1024, recompute="full",
             feed_forward="relu2", peers=("compile+chunks",)),
        case("Lory 0.3B/8E, S 4,096", 1, LORY, 4, 4096, merged_experts=8, segment_tokens=256,
             peers=()),
        case("expert 1.3B, S 4,096", 1, LARGE, 4, 4096, feed_forward="relu2",
             peers=("compile+chunks",)),
    ],
    "quick": [
        case("routers, step", 4, ROUTER, 32, 256, feed_forward="relu2",
             peers=("compile", "compile+chunks")),
        case("expert 335M, S 1,024", 1, EXPERT, 32, 1024, feed_forward="relu2",
             peers=("compile", "compile+chunks")),
    ],
    "rehearse": [
        case("routers, step", 2, (500, 32, 2, 4, 64), 4, 32, feed_forward="relu2",
             peers=("eager", "compile+chunks")),
        case("routers, scores", 2, (500, 32, 2, 4, 64), 4, 32, mode="score", peers=("eager",)),
        case("expert, all computed again", 1, (500, 64, 2, 4, 128), 4, 64, recompute="full",
             peers=("compile",)),
        case("expert, merged", 1, (500, 64, 2, 4, 128), 4, 64, merged_experts=4, segment_tokens=16,
             peers=()),
    ],
}


# --- the peers: one process each ---

def peer_step(c, kind, device):
    """A function of the chunk's size that does one step of all models."""
    sys.path.insert(0, str(ROOT / "tests/lm"))
    import torch
    import torch_peer

    torch.manual_seed(1)
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    compiled = {"eager": lambda function: function,
                "max-autotune": lambda function: torch.compile(function, mode="max-autotune"),
                }.get(kind, torch.compile)
    steps = []
    for _ in range(c["models"]):
        model = torch_peer.Peer(c["vocab"], c["hidden"], c["layers"], c["heads"],
                                c["intermediate"], c["feed_forward"], length=c["length"]).to(device)
        tokens = torch.randint(c["vocab"], (c["batch"], c["length"] + 1), device=device)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        body = compiled(model)

        def loss_of(hidden, head, wanted):
            logits = torch.nn.functional.linear(hidden, head)
            return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
        part = compiled(loss_of)
        if c["mode"] == "score":
            @torch.inference_mode()
            def step(chunk, body=body, part=part, model=model, inputs=inputs, targets=targets):
                with autocast:
                    hidden, wanted = body(inputs).flatten(0, 1), targets.flatten()
                    for i in range(0, len(wanted), chunk or len(wanted)):
                        part(hidden[i:i + (chunk or len(wanted))], model.embedding,
                             wanted[i:i + (chunk or len(wanted))])
        else:
            optimizer = torch.optim.AdamW(model.optimizer_groups(0.1), lr=1e-4, betas=(0.9, 0.99),
                                          fused=device == "cuda")

            def step(chunk, body=body, part=part, model=model, inputs=inputs, targets=targets,
                     optimizer=optimizer):
                optimizer.zero_grad(set_to_none=True)
                wanted = targets.flatten()
                with autocast:
                    hidden = body(inputs).flatten(0, 1)
                    if chunk:  # the logits of a chunk live only inside of it, on the way back, too
                        total = sum(torch.utils.checkpoint.checkpoint(
                            part, hidden[i:i + chunk], model.embedding, wanted[i:i + chunk],
                            use_reentrant=False) for i in range(0, len(wanted), chunk))
                    else:
                        total = part(hidden, model.embedding, wanted)
                (total / len(wanted)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
                optimizer.step()
        steps.append(step)

    def all_models(chunk):
        for step in steps:
            step(chunk)
        if device == "cuda":
            torch.cuda.synchronize()
    return all_models


def worker(c, kind, device):
    import torch
    import torch.utils.checkpoint  # noqa: F401
    tokens = c["models"] * c["batch"] * c["length"]
    step = peer_step(c, kind, device)

    def rate(chunk, seconds):
        step(chunk)
        start, count = time.monotonic(), 0
        while count == 0 or time.monotonic() - start < seconds:
            step(chunk)
            count += 1
        return tokens * count / (time.monotonic() - start)
    chunk = 0
    if kind == "compile+chunks":
        sizes = [size for size in CHUNKS if size <= c["batch"] * c["length"]] or [0]
        rates = {}
        for size in sizes:
            step(size)
            rates[size] = rate(size, 0.5)
        chunk = max(rates, key=rates.get)
    else:
        step(chunk)
    print(json.dumps({"chunk": chunk}), flush=True)
    for line in sys.stdin:
        answer = {"rate": rate(chunk, float(line))}
        if device == "cuda":
            answer["peak_bytes"] = torch.cuda.max_memory_allocated()
        print(json.dumps(answer), flush=True)


def start_ours(bench, c, device, card):
    keys = ("mode", "models", "vocab", "hidden", "layers", "heads", "intermediate", "feed_forward",
            "batch", "micro", "length", "recompute", "merged_experts", "segment_tokens")
    return Contender([bench, f"device={device}", f"card={card}", *(f"{key}={c[key]}" for key in keys)])


def start_peer(c, kind, device):
    return Contender([sys.executable, "-B", __file__, "--worker", kind, "--case", json.dumps(c),
                      "--device", device],
                     {"TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build/inductor")})


def profile_ours(contender, its, device, patience):
    """Adds the seconds of a step by kind of work. Error: there is nothing to be seen."""
    seconds = contender.turn("profile", patience)["seconds"]
    if device == "cuda" and not any(seconds.values()):
        raise RuntimeError("the profiler saw no kernel")
    its["seconds"] = seconds


def run_case(c, bench, device, card, seconds, repetitions, deadline, only):
    """The row of a case; contenders that fail or come too late are named with the reason."""
    row = {"case": c, "contenders": {}, "left_out": {}}
    running = {}

    def patience():
        return max(10, deadline - time.monotonic())
    for name in ("ours", *c["peers"]):
        if only is not None and name not in ("ours", *only):
            continue
        if name != "ours" and time.monotonic() > deadline - 20:
            row["left_out"][name] = "no time was left"
            continue
        contender = start_ours(bench, c, device, card) if name == "ours" else start_peer(c, name, device)
        try:
            row["contenders"][name] = {"rates": [], **contender.read(patience())}
            running[name] = contender
        except RuntimeError as error:
            row["left_out"][name] = str(error)
            contender.close()
    for turn in range(repetitions):
        names = list(running)
        for name in names[turn % max(1, len(names)):] + names[:turn % max(1, len(names))]:
            its = row["contenders"][name]
            if time.monotonic() > deadline and its["rates"]:
                continue
            try:
                answer = running[name].turn(seconds, patience())
                its["rates"].append(answer.pop("rate"))
                its.update(answer)
            except RuntimeError as error:
                row["left_out"][name] = str(error)
                del row["contenders"][name]
                running.pop(name).close()
    if "ours" in running and c["mode"] == "step":
        try:
            profile_ours(running["ours"], row["contenders"]["ours"], device, patience())
        except RuntimeError as error:
            row["left_out"]["profile"] = str(error)
    for contender in running.values():
        contender.close()
    return row


def middle(values):
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


KINDS = {"product": "products", "attention": "attention", "elementwise": "element-wise",
         "loss": "loss", "optimizer": "optimiser", "copy": "copies", "other": "other"}


def share_line(name, seconds, whole, ours):
    def percent(part, of):
        return f"{100 * part / of:.1f} %"
    cells = [percent(seconds.get(kind, 0), whole) for kind in KINDS]
    cells.append(percent(whole - sum(seconds.values()), whole))
    rate = ours["product_flops_per_step"] / seconds["product"] if seconds["product"] else 0
    cells.append(percent(rate, ours["peak_flops_per_second"]))
    return f"| {name} | {1e3 * whole:,.2f} ms | {' | '.join(cells)} |"


def shares(result):
    """Lines of Markdown: what the device does in our training steps."""
    lines = ["", "Shares of our step by kind of work, from a profile of some steps. The products of "
             "the loss count as products. Idle is what the turns above took beyond all of it; in the "
             "prediction nothing is.", "",
             f"| case | step | {' | '.join(KINDS.values())} | idle | products reach of the peak |",
             "|---" * (len(KINDS) + 4) + "|"]
    for row in result["rows"]:
        ours = row["contenders"].get("ours", {})
        if "seconds" not in ours:
            continue
        busy = sum(ours["seconds"].values())
        step = max(ours["tokens_per_step"] / statistics.median(ours["rates"]), busy)
        lines.append(share_line(row["case"]["name"], ours["seconds"], step, ours))
        if predicted := ours["predicted_seconds"]:  # none for a card that is not known
            lines.append(share_line("predicted", predicted, sum(predicted.values()), ours))
    return lines


def markdown(result):
    lines = [f"Card: {result['card']}; PyTorch {result['torch']}. Tokens per second, median (lowest to "
             "highest) of turns.", "",
             "| case | ours | share of the peak | best peer | ours is faster by | memory, measured | "
             "predicted |", "|---|---|---|---|---|---|---|"]
    for row in result["rows"]:
        name, ours = row["case"]["name"], row["contenders"].get("ours")
        if not ours or not ours["rates"]:
            lines.append(f"| {name} | failed: {row['left_out'].get('ours', '?')} | | | | | |")
            continue
        rate = statistics.median(ours["rates"])
        mfu = rate / ours["tokens_per_step"] * ours["flops_per_step"] / ours["peak_flops_per_second"]
        peers = {peer: statistics.median(of["rates"]) for peer, of in row["contenders"].items()
                 if peer != "ours" and of["rates"]}
        best = max(peers, key=peers.get) if peers else None
        lines.append(
            f"| {name} | {middle(ours['rates'])} | {100 * mfu:.1f} % | "
            + (f"{middle(row['contenders'][best]['rates'])}, {best} | {rate / peers[best]:.2f}"
               if best else "- | -")
            + f" | {ours['peak_bytes'] / 2**30:.1f} GiB | {ours['predicted_bytes'] / 2**30:.1f} GiB |")
    lines += shares(result)
    for row in result["rows"]:
        for name, why in row["left_out"].items():
            lines.append(f"\n{row['case']['name']}: {name} was left out: {why}")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", help="the program engine_bench")
    parser.add_argument("--out", default=".", help="folder of gpu.json and gpu.md")
    parser.add_argument("--mode", choices=list(CASES), default="full")
    parser.add_argument("--seconds", type=float, default=500, help="for all cases together")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=ALL, help="these alone")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(json.loads(arguments.case), arguments.worker, arguments.device)
    import torch
    device = "cpu" if arguments.mode == "rehearse" else "cuda"
    end = time.monotonic() + arguments.seconds
    slice_seconds = {"full": 2.0, "quick": 1.5, "rehearse": 0.2}[arguments.mode]
    # The rehearsal's predictions are those for some card.
    card = torch.cuda.get_device_name() if device == "cuda" else "H100"
    result = {"card": card if device == "cuda" else "none: rehearsed on the CPU",
              "torch": torch.__version__, "mode": arguments.mode, "rows": []}
    failed = False
    for c in CASES[arguments.mode]:
        if time.monotonic() > end - 30:
            result["rows"].append({"case": c, "contenders": {},
                                   "left_out": {"ours": "no time was left"}})
            continue
        print(f"gpu: {c['name']}", flush=True)
        row = run_case(c, arguments.bench, device, card, slice_seconds, arguments.repetitions, end - 10,
                       arguments.peers)
        failed |= not row["left_out"].keys().isdisjoint(("ours", "profile"))
        result["rows"].append(row)
        for name, text in (("gpu.json", json.dumps(result, indent=1)), ("gpu.md", markdown(result))):
            (pathlib.Path(arguments.out) / name).write_text(text)
    print(markdown(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
