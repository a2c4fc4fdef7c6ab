"""200 training steps in PyTorch from the same weights and batches: the curves of loss and gradient
norm, and the weights at the end, agree to the rounding of float32, or of bfloat16 on the GPU
(SMALLTALK_PEER_DEVICE=cuda), where the peer computes under autocast.

PyTorch in float64 is the truth. How far PyTorch in the same precision strays from it is what
rounding does to this run; ours may stray FACTOR times as far, since its sums are formed in another
order. In bfloat16 the orders of sums are the lesser part: both round the same tensors."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import peer_python

root = pathlib.Path(os.environ["SMALLTALK_SOURCE_DIR"])
peer_python.require("torch", pythons=[
    os.environ.get("SMALLTALK_PEER_PYTHON", ""),
    str(pathlib.Path(os.environ.get("SMALLTALK_VENV", root / "build/venv")) / "bin/python3")])

import torch  # noqa: E402
from torch_peer import Peer, plain_loss, read_safetensors  # noqa: E402

DUMP_TRAINING = os.path.join(os.environ["SMALLTALK_BUILD_DIR"], "tests/lm/dump_training")
DEVICE = os.environ.get("SMALLTALK_PEER_DEVICE", "cpu")
PRECISION, FACTOR = {"cpu": ("float32", 4), "cuda": ("bfloat16", 1.5)}[DEVICE]
LORY = (4, 8)  # experts, tokens of a segment
WEIGHT_DECAY, BETAS, EPS, CLIP = 0.1, (0.9, 0.99), 1e-8, 1.0


def train(folder, kind, dtype, rates, autocast=False):
    """Losses and gradient norms of all steps, and the weights after the last."""
    tensors, _ = read_safetensors(folder / "start/model.safetensors")
    rows, _ = read_safetensors(folder / "rows.safetensors")
    with open(folder / "start/config.json") as file:
        config = json.load(file)
    model = Peer(config["vocab_size"], config["hidden_size"], config["num_hidden_layers"],
                 config["num_attention_heads"], config["intermediate_size"],
                 "relu2" if kind == "relu2" else "swiglu", lory=LORY if kind == "lory" else ())
    model.load(tensors)
    model.to(DEVICE, dtype)
    optimizer = torch.optim.AdamW(model.optimizer_groups(WEIGHT_DECAY), betas=BETAS, eps=EPS)
    losses, norms = [], []
    for batch, rate in zip(rows["rows"].long().to(DEVICE), rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            loss = plain_loss(model(batch[:, :-1]), model.embedding, batch[:, 1:])
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, model


def flat(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def distance(values, truth):
    return max(abs(a - b) for a, b in zip(values, truth))


class PeerTorch(unittest.TestCase):
    def compare(self, kind):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            subprocess.run([DUMP_TRAINING, kind, name, DEVICE], check=True)
            with open(folder / "run/metrics.jsonl") as file:
                steps = [json.loads(line) for line in file]
            self.assertEqual([s["step"] for s in steps], list(range(1, 201)))
            rates = [s["lr"] for s in steps]
            true_losses, true_norms, truth = train(folder, kind, torch.float64, rates)
            losses, norms, model = train(folder, kind, torch.float32, rates,
                                         autocast=PRECISION == "bfloat16")
            true_weights, weights = flat(truth), flat(model)
            model.load(read_safetensors(folder / "end/model.safetensors")[0])

        self.assertGreater(true_losses[0], 6)
        self.assertLess(true_losses[-1], 3)  # it does learn
        self.assertGreater(max(true_norms), CLIP)  # clipping takes part
        ours = [s["loss_metrics/global_avg_loss"] for s in steps]
        our_norms = [s["grad_norm"] for s in steps]
        report = {}
        for what, mine, theirs, exact in (("loss", ours, losses, true_losses),
                                          ("gradient norm", our_norms, norms, true_norms)):
            report[what] = (distance(mine, exact), distance(theirs, exact))
        report["weights"] = ((flat(model) - true_weights).norm().item(),
                             (weights - true_weights).norm().item())
        for what, (mine, theirs) in report.items():
            print(f"{kind}: {what}: {mine:.2e} from float64, PyTorch in {PRECISION} {theirs:.2e}")
            self.assertLess(mine, FACTOR * theirs + 1e-7, what)

    def test_swiglu(self):
        self.compare("swiglu")

    def test_relu2(self):
        self.compare("relu2")

    def test_lory(self):
        self.compare("lory")


if __name__ == "__main__":
    torch.set_num_threads(1)
    unittest.main()
