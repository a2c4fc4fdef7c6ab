"""Our models in transformers: the folders that Transformer::save writes load as they are, and give
the same logits and gradients. Skipped where transformers is not installed (ci/setup.sh --peers)."""

import os
import subprocess
import tempfile
import unittest

import peer_python

peer_python.require("torch", "transformers", "safetensors")

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

DUMP_MODEL = os.path.join(os.environ["SMALLTALK_BUILD_DIR"], "tests/lm/dump_model")
TOLERANCE = 1e-5  # of the largest value of a tensor


class PeerTransformers(unittest.TestCase):
    def compare(self, kind, architecture):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([DUMP_MODEL, kind, folder], check=True)
            with safe_open(os.path.join(folder, "expected.safetensors"), "pt") as file:
                expected = {name: file.get_tensor(name) for name in file.keys()}
                expected_loss = float(file.metadata()["loss"])
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, attn_implementation="eager"
            )
            model.tie_weights()
        self.assertEqual(type(model).__name__, architecture)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            self.assertFalse(report[problem], problem)
        self.assertEqual(model.config.max_position_embeddings, 80)

        tokens = expected["tokens"].long()
        output = model(tokens, labels=tokens)
        self.close(output.logits, expected["logits"], "logits")
        self.assertAlmostEqual(output.loss.item(), expected_loss, delta=1e-5)
        output.loss.backward()
        parameters = dict(model.named_parameters())
        for name, gradient in expected.items():
            if name.startswith("gradient."):
                theirs = parameters[name.removeprefix("gradient.")].grad.flatten()
                self.close(theirs, gradient, name)

    def test_documents_of_a_row_are_as_if_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([DUMP_MODEL, "documents", folder], check=True)
            with safe_open(os.path.join(folder, "expected.safetensors"), "pt") as file:
                expected = {name: file.get_tensor(name) for name in file.keys()}
                expected_loss = float(file.metadata()["loss"])
            model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
            model.tie_weights()
        loss, documents, padding = 0.0, 0, 0
        for row, logits in zip(expected["tokens"].long(), expected["logits"]):
            ends = [t for t, token in enumerate(row.tolist()) if token == 2]
            for begin, end in zip(ends, ends[1:] + [len(row)]):
                # The end of the document before, then this one; its own end is only a target.
                document, targets = row[begin:end], row[begin + 1 : end + 1]
                output = model(document[None]).logits[0]
                self.close(output, logits[begin:end], "logits")
                if end == begin + 1:
                    padding += 1
                    continue
                documents += 1
                loss = loss + torch.nn.functional.cross_entropy(
                    output[: len(targets)], targets, reduction="sum"
                )
        self.assertEqual((documents, padding), (5 * 3 - 1, 4 * 3 + 1))
        loss = loss / (3 * 79)
        self.assertAlmostEqual(loss.item(), expected_loss, delta=1e-5)
        loss.backward()
        parameters = dict(model.named_parameters())
        for name, gradient in expected.items():
            if name.startswith("gradient."):
                theirs = parameters[name.removeprefix("gradient.")].grad.flatten()
                self.close(theirs, gradient, name)

    def close(self, theirs, ours, name):
        error = (theirs - ours).abs().max().item() / ours.abs().max().item()
        self.assertLess(error, TOLERANCE, name)

    def test_swiglu_with_tied_embeddings(self):
        self.compare("swiglu", "LlamaForCausalLM")

    def test_swiglu_with_grouped_heads_and_untied_embeddings(self):
        self.compare("swiglu_untied", "LlamaForCausalLM")

    def test_relu2(self):
        self.compare("relu2", "ArceeForCausalLM")


if __name__ == "__main__":
    torch.set_num_threads(1)
    unittest.main()
