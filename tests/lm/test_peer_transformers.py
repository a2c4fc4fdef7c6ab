"""Our models in transformers: the folders that Transformer::save writes load as they are, and give
the same logits, hidden states and gradients. Lory models need the file that goes with their
exports. Skipped where transformers is not installed (ci/setup.sh --peers)."""

import os
import subprocess
import sys
import tempfile
import unittest

import peer_python

peer_python.require("torch", "transformers", "safetensors")

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

sys.path.insert(0, os.path.join(os.environ["SMALLTALK_SOURCE_DIR"], "src/mixture/evaluation"))
from modeling_lory import LoryConfig, LoryForCausalLM  # noqa: E402

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
        with torch.no_grad():
            hidden = model.model(tokens).last_hidden_state
        for length, sums in zip((79, 40), expected["hidden_sums"]):
            self.close(hidden[:, :length].sum(1), sums, "hidden states")

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

    def test_lory(self):
        self.compare("lory", "LoryForCausalLM")

    def test_lory_by_the_prefix_in_one_layer(self):
        self.compare("lory_prefix", "LoryForCausalLM")

    def test_lory_of_relu2(self):
        self.compare("lory_relu2", "LoryForCausalLM")

    @torch.no_grad()
    def test_lory_continues_texts_from_its_cache(self):
        for kind in ("lory", "lory_prefix"):
            model, tokens, logits = self.lory(kind)
            cache, found = None, []
            for piece in tokens.split([5, 7, 1, 11, 1, 25, 30], dim=1):
                output = model(piece, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                found.append(output.logits)
            self.close(torch.cat(found, 1), logits, kind)
            for beams in (1, 3):
                texts = [model.generate(tokens[:, :20], max_new_tokens=20, do_sample=False,
                                        num_beams=beams, use_cache=cached)
                         for cached in (False, True)]
                self.assertTrue(torch.equal(*texts), (kind, beams))

    @torch.no_grad()
    def test_lory_wants_texts_to_begin_rows(self):
        model, tokens, logits = self.lory("lory")
        mask = torch.ones_like(tokens)
        mask[1, -15:] = 0
        self.close(model(tokens, attention_mask=mask).logits[1, :-15], logits[1, :-15], "logits")
        with self.assertRaisesRegex(ValueError, "pad behind"):
            model(tokens, attention_mask=mask.flip(1))
        with self.assertRaisesRegex(ValueError, "several"):
            model(tokens, position_ids=torch.arange(80).remainder(40).expand(3, 80))
        with self.assertRaisesRegex(ValueError, "StaticCache"):
            model.generate(tokens, max_new_tokens=1, cache_implementation="static")

    def lory(self, kind):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([DUMP_MODEL, kind, folder], check=True)
            with safe_open(os.path.join(folder, "expected.safetensors"), "pt") as file:
                expected = {name: file.get_tensor(name) for name in ("tokens", "logits")}
            model = LoryForCausalLM.from_pretrained(folder, attn_implementation="eager")
        model.tie_weights()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model, expected["tokens"].long(), expected["logits"]


if __name__ == "__main__":
    AutoConfig.register("lory", LoryConfig)
    AutoModelForCausalLM.register(LoryConfig, LoryForCausalLM)
    torch.set_num_threads(1)
    unittest.main()
