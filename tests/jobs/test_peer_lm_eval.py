"""Exports a run, then asks lm-evaluation-harness for what we compute: log-likelihoods of choices,
accuracies; and transformers and the readers of llama.cpp's converter what they make of the folder.
Skipped where these are not installed (ci/setup.sh --peers)."""

import glob
import json
import logging
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest
import warnings

sys.path.insert(0, os.path.join(os.environ["SMALLTALK_SOURCE_DIR"], "tests", "lm"))
import peer_python  # noqa: E402

peer_python.require("torch", "transformers", "lm_eval", "datasets", "accelerate", "gguf")

FOLDER = tempfile.mkdtemp(prefix="smalltalk-peers-")
os.environ.update(HF_HOME=os.path.join(FOLDER, "cache"), HF_HUB_OFFLINE="1",
                  HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import gguf  # noqa: E402
import lm_eval  # noqa: E402
import torch  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.utils import make_table  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

BINARY = os.environ["SMALLTALK_BINARY"]
PREFIX = 8
EXPERIMENT = """
name = "peers"
[data]
train = ["{folder}/corpus.jsonl"]
validation = ["{folder}/corpus.jsonl"]
test = ["{folder}/corpus.jsonl"]
vocab_size = 340
seq_length = 32
[mixture]
experts = 2
prefix_tokens = 8
rounds = 2
sequences_per_round = 64
[router]
hidden_size = 8
num_layers = 1
num_heads = 1
batch_size = 8
[expert]
hidden_size = 32
num_layers = 2
num_heads = 2
train_steps = 40
batch_size = 8
lr = 1e-2
[baselines]
dense = true
dense_large_batch = false
random_shards = false
"""
PHENOMENA = ["form", "number", "order"]
WORDS = ["ka", "tomi", "über", "sela", "нет", "rumba", "14", "π", "ona", "light", "x", "日本"]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: "{choices}"
doc_to_target: {target}
metric_list: [{metrics}]
metadata: {{version: 1}}
"""
GROUP = """
group: grammar
task: [{tasks}]
aggregate_metric_list: [{{metric: acc, aggregation: mean, weight_by_size: false}}]
metadata: {{version: 1}}
"""


def path(name):
    return os.path.join(FOLDER, name)


def run(*arguments):
    result = subprocess.run([BINARY, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, f"{arguments}: {result.stderr}"
    return result.stdout


def write_lines(name, items):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
    return name


def sentence(source, most=8):
    return " ".join(source.choices(WORDS, k=source.randrange(1, most)))


def questions(source, count):
    contexts = [lambda: "", lambda: sentence(source), lambda: sentence(source) + "   ",
                lambda: sentence(source, 60), lambda: sentence(source) + " \u3000\n",
                lambda: "</s>" + sentence(source), lambda: sentence(source, 60) + "\t"]
    for i in range(count):
        choices = [sentence(source) for _ in range(source.randrange(2, 5))]
        yield {"context": contexts[i % len(contexts)](), "choices": choices,
               "answer": source.randrange(len(choices))}


def pairs(source, count):
    for i in range(count):
        yield {"good": sentence(source), "bad": sentence(source),
               "phenomenon": PHENOMENA[i * i % 7 % 3]}


class PeerLmEval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.trained, cls.out = path("run"), path("exported")
        source = random.Random(1)
        write_lines(path("corpus.jsonl"), [{"text": sentence(source, 40)} for _ in range(400)])
        with open(path("experiment.toml"), "w", encoding="utf-8") as file:
            file.write(EXPERIMENT.format(folder=FOLDER))
        run("launch", path("experiment.toml"), "--out", cls.trained)
        run("export", cls.trained, "--out", cls.out)
        os.mkdir(path("quiz"))
        cls.tasks = [write_lines(path("quiz/items.jsonl"), questions(source, 75)),
                     write_lines(path("grammar.jsonl"), pairs(source, 40))]

    def test_every_model_loads(self):
        models = ["baselines/dense", "experts/0", "experts/1", "routers/0", "routers/1"]
        with open(os.path.join(self.out, "mixture.json"), encoding="utf-8") as file:
            self.assertEqual(sorted(json.load(file)["models"]), models)
        for name in models:
            folder = os.path.join(self.out, name)
            self.assertEqual(len(AutoTokenizer.from_pretrained(folder)), 340)
            self.assertEqual(AutoModelForCausalLM.from_pretrained(folder).config.vocab_size, 340)

    # A text begins behind the end of another, whoever is asked.
    def test_one_token_begins_and_ends_texts(self):
        folder = os.path.join(self.out, "experts/1")
        for name in ("config.json", "generation_config.json"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                config = json.load(file)
            self.assertEqual((config["bos_token_id"], config["eos_token_id"]), (2, 2), name)
        with warnings.catch_warnings(), self.assertNoLogs("transformers", "WARNING"):
            warnings.simplefilter("error")
            logging.disable(logging.NOTSET)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder)
            text = model.generate(max_new_tokens=5, do_sample=False)[0]
            logging.disable(logging.WARNING)
        self.assertEqual((tokenizer.bos_token_id, tokenizer.eos_token_id), (2, 2))
        self.assertEqual(text[0], 2)
        ours = json.loads(run("generate", self.trained, "--model", "experts/1", "--temperature", "0",
                              "--max-new-tokens", "5", "--json"))
        self.assertEqual(tokenizer.decode(text, skip_special_tokens=True), ours["text"])
        # As everybody calls it.
        prompt = tokenizer("ka tomi", return_tensors="pt")
        self.assertEqual(sorted(prompt), ["attention_mask", "input_ids"])
        model.generate(**prompt, max_new_tokens=1, do_sample=False)

    # As llama.cpp joins pieces: of all neighbours those with the best score, the first of equals.
    @staticmethod
    def pieces_of_llama_cpp(scores, text):
        pieces = list(text.replace(" ", "\u2581"))
        while True:
            joined = [(-scores[a + b], i) for i, (a, b) in enumerate(zip(pieces, pieces[1:]))
                      if a + b in scores]
            if not joined:
                break
            at = min(joined)[1]
            pieces[at:at + 2] = ["".join(pieces[at:at + 2])]
        spelt = [[piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()]
                 for piece in pieces]
        return [piece for parts in spelt for piece in parts]

    def test_llama_cpp_reads_the_vocabulary(self):
        folder = pathlib.Path(self.out, "experts/0")
        special = gguf.SpecialVocab(folder, n_vocab=340)
        self.assertEqual(special.special_token_ids.get("bos"), 2)
        self.assertEqual(special.special_token_ids.get("eos"), 2)
        self.assertEqual(special.add_special_token, {"bos": True, "eos": False})
        entries = list(gguf.vocab.SentencePieceVocab(folder).all_tokens())
        self.assertEqual(len(entries), 340)
        names = [text.decode() for text, _, _ in entries]
        scores = {text.decode(): score for text, score, kind in entries
                  if kind == gguf.TokenType.NORMAL}
        tokenizer = AutoTokenizer.from_pretrained(folder)
        source = random.Random(2)
        for _ in range(1000):
            text = sentence(source, 12) + source.choice(["", "  ", "\n", "é\u2603", "</s>", " 7"])
            theirs = self.pieces_of_llama_cpp(scores, text)
            self.assertEqual(theirs, [names[i] for i in tokenizer(text)["input_ids"]], repr(text))

    # The tasks as a user of lm_eval has them: a file and a YAML each, a group for the pairs.
    def write_yamls(self, prompt):
        folder = path("tasks-" + prompt)
        os.mkdir(folder)
        accuracy = "{metric: acc, aggregation: mean, higher_is_better: true}"

        def write(name, **fields):
            with open(os.path.join(folder, name + ".yaml"), "w", encoding="utf-8") as file:
                file.write(TASK.format(name=name, **fields))

        text = {"plain": "{{context}}", "question": r"Question: {{context}}\nAnswer:"}[prompt]
        write("quiz", file=self.tasks[0], text=text, choices="{{choices}}", target="answer",
              metrics=f"{accuracy}, {accuracy.replace('acc,', 'acc_norm,')}")
        with open(self.tasks[1], encoding="utf-8") as file:
            items = [json.loads(line) for line in file]
        for phenomenon in PHENOMENA:
            file = write_lines(os.path.join(folder, phenomenon + ".jsonl"),
                               [item for item in items if item["phenomenon"] == phenomenon])
            write("grammar_" + phenomenon, file=file, text="", choices="{{[good, bad]}}", target=0,
                  metrics=accuracy)
        with open(os.path.join(folder, "group.yaml"), "w", encoding="utf-8") as file:
            file.write(GROUP.format(tasks=", ".join("grammar_" + name for name in PHENOMENA)))
        return TaskManager(include_path=folder, include_defaults=False)

    def lm_eval(self, name, tasks):
        model = HFLM(pretrained=os.path.join(self.out, name), device="cpu", dtype="float32",
                     batch_size=8)
        results = lm_eval.simple_evaluate(model=model, tasks=["quiz", "grammar"],
                                          log_samples=True, task_manager=tasks)
        samples = sorted(results["samples"]["quiz"], key=lambda sample: sample["doc_id"])
        return results, samples

    # Of the first tokens, all but the very first, which is given.
    def router_score(self, model, tokenizer, sample):
        score = 0
        for argument in sample["arguments"]:
            tokens = tokenizer.encode("".join(argument))
            if not argument[0].strip():
                tokens = [tokenizer.bos_token_id, *tokens]
            tokens = torch.tensor(tokens[:PREFIX])
            with torch.no_grad():
                losses = model(tokens[None, :-1]).logits[0].log_softmax(-1)
            score += losses.gather(1, tokens[1:, None]).sum().item()
        return score

    def check_mixture(self, ours, tasks):
        answers, scores = [], []
        for expert in "01":
            answers.append(self.lm_eval("experts/" + expert, tasks)[1])
            folder = os.path.join(self.out, "routers", expert)
            router = AutoModelForCausalLM.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            scores.append([self.router_score(router, tokenizer, item) for item in answers[0]])
        experts = [int(second > first) for first, second in zip(*scores)]
        self.assertEqual(len(set(experts)), 2)  # or this would show little
        self.assertAlmostEqual(ours["expert_shares"]["quiz"][1], sum(experts) / len(experts), 4)
        for metric in ["acc", "acc_norm"]:
            right = sum(answers[expert][item][metric] for item, expert in enumerate(experts))
            self.assertAlmostEqual(ours["results"]["quiz"][metric + ",none"],
                                   right / len(experts), 4)

    def compare(self, prompt):
        run("tasks", path("experiment.toml"), "--out", self.trained, "--task", *self.tasks,
            "--prompt", prompt)
        with open(os.path.join(self.trained, "tasks.json"), encoding="utf-8") as file:
            models = json.load(file)["models"]
        ours, tasks = models["dense"], self.write_yamls(prompt)
        theirs, samples = self.lm_eval("baselines/dense", tasks)
        for task, values in ours["results"].items():
            for key, value in values.items():
                if key.startswith("acc"):
                    self.assertAlmostEqual(value, theirs["results"][task][key], 4, (task, key))
        self.assertEqual(make_table(ours), make_table(theirs))
        self.assertEqual(make_table(ours, "groups"), make_table(theirs, "groups"))

        found = glob.glob(os.path.join(self.trained, "tasks", "quiz-*", "baselines-dense.json"))
        with open(max(found, key=os.path.getmtime), encoding="utf-8") as file:
            scores = json.load(file)["loglikelihoods"]
        expected = [float(answer[0][0]) for sample in samples for answer in sample["resps"]]
        self.assertEqual(len(scores), len(expected))
        for score, value in zip(scores, expected):
            self.assertAlmostEqual(score, value, delta=1e-3)
        return models["mixture"], tasks

    def test_plain(self):
        self.check_mixture(*self.compare("plain"))

    def test_question(self):
        self.compare("question")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of contexts that are cut
    try:
        unittest.main()
    finally:
        shutil.rmtree(FOLDER)
