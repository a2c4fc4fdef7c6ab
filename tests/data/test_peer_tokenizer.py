"""Our tokenizer in transformers: the tokenizer.json that export writes gives the same ids and texts.
And the control whose text is cut by tokens. Skipped where transformers is not installed (ci/setup.sh --peers)."""

import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.environ["SMALLTALK_SOURCE_DIR"], "tests", "lm"))
import peer_python  # noqa: E402

peer_python.require("transformers", "sentencepiece")

import sentencepiece  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

DUMP = os.path.join(os.environ["SMALLTALK_BUILD_DIR"], "tests/data/dump_tokenizer")
OFTEN = [" ", "  ", "    ", "\n", "\t", "a", "aa", "aaa", "the", "The whale", "7", "1984", "</s>",
         "<s>", "<unk>", "<0x41>", "é", "ß", "привет", "鯨", "\U0001F433", "e\u0301", "\u200b"]


def real_text():
    """Sources and documentation of Python itself, which are there wherever this runs."""
    folder = os.path.dirname(os.__file__)
    for name in ("argparse", "ast", "difflib", "inspect", "tarfile", "typing", "this"):
        with open(os.path.join(folder, name + ".py"), encoding="utf-8") as file:
            yield file.read()


def random_texts(count):
    source = random.Random(4)
    for _ in range(count):
        parts = []
        for _ in range(source.randrange(40)):
            if source.random() < 0.7:
                parts.append(source.choice(OFTEN))
                continue
            code = source.randrange(0x3000 if source.random() < 0.5 else 0x110000)
            # No surrogates; U+2581 is SentencePiece's own sign for a space.
            parts.append("?" if 0xD800 <= code < 0xE000 or code == 0x2581 else chr(code))
        yield "".join(parts)


class PeerTokenizer(unittest.TestCase):
    def compare(self, corpus, vocabulary, texts):
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "text.jsonl")
            with open(source, "w", encoding="utf-8") as file:
                for text in corpus:
                    file.write(json.dumps({"text": text}) + "\n")
            output = subprocess.run([DUMP, source, str(vocabulary), folder], check=True,
                                    input=json.dumps(texts), capture_output=True, text=True)
            expected = json.loads(output.stdout)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        self.assertEqual(len(tokenizer), vocabulary)
        self.assertEqual(tokenizer.bos_token_id, 2)
        found = tokenizer(texts)["input_ids"]
        for text, ours, theirs in zip(texts, expected, found):
            self.assertEqual(theirs, ours or [], repr(text[:300]))
        for text, ids in list(zip(texts, expected))[-300:]:
            self.assertEqual(tokenizer.decode(ids or []), text)

    def test_any_text(self):
        corpus = list(real_text())
        texts = corpus + [text[at:at + 200] for text in corpus for at in range(0, 20000, 500)]
        texts += list(random_texts(2000)) + ["", " ", "a" * 300, " " * 301]
        for vocabulary in (400, 3000):
            self.compare(corpus, vocabulary, texts)

    # Few letters: pieces that overlap with themselves, and ties everywhere.
    def test_words_that_repeat_themselves(self):
        source = random.Random(5)
        word = lambda most: "".join(source.choices("ab", k=source.randrange(1, most)))
        corpus = [" ".join(word(24) for _ in range(60)) for _ in range(60)]
        self.compare(corpus, 500, [word(80) for _ in range(4000)])


class CutSegments(unittest.TestCase):
    """data/cut_segments.py: pieces of so many tokens, in two orders."""

    def test_pieces_are_of_one_size_and_in_both_orders_the_same(self):
        with tempfile.TemporaryDirectory() as folder:
            place = lambda *names: os.path.join(folder, *names)
            texts = list(real_text())
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line for text in texts for line in text.splitlines()),
                model_prefix=place("small"), vocab_size=600, model_type="bpe",
                minloglevel=2)
            tokenizer = sentencepiece.SentencePieceProcessor(model_file=place("small.model"))
            for split in ("train", "validation", "test"):
                with open(place(split + ".jsonl"), "w", encoding="utf-8") as file:
                    for text in texts:
                        file.write(json.dumps({"text": text, "domain": "d"}) + "\n")
            script = os.path.join(os.environ["SMALLTALK_SOURCE_DIR"], "data", "cut_segments.py")
            subprocess.run([sys.executable, "-B", script, "--corpus", folder, "--tokenizer",
                            place("small.model"), "--tokens", "16", "--out", place("out")],
                           check=True, capture_output=True)
            pieces = {}
            for order in ("in-order", "shuffled"):
                with open(place("out", order, "test.jsonl"), encoding="utf-8") as file:
                    pieces[order] = [json.loads(line)["text"] for line in file]
            for piece in pieces["in-order"]:
                self.assertEqual(len(tokenizer.encode(piece)), 15)
            self.assertNotEqual(pieces["in-order"], pieces["shuffled"])
            self.assertEqual(sorted(pieces["in-order"]), sorted(pieces["shuffled"]))
            words = "".join("".join(texts).split())
            at = 0  # one behind the other in the text, and most of it
            for piece in pieces["in-order"]:
                at = words.index("".join(piece.split()), at) + 1
            kept = sum(len("".join(piece.split())) for piece in pieces["in-order"])
            self.assertGreater(kept, len(words) / 2)


if __name__ == "__main__":
    unittest.main()
