"""Exports a run, then asks lm-evaluation-harness for what we compute: log-likelihoods of choices,
accuracies, perplexities; and transformers and the readers of llama.cpp's converter what they make
of the folder. Skipped where these are not installed (ci/setup.sh --peers)."""

import glob
import json
import logging
import math
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
                  HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DISABLE_MULTIPROC="1")

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
seq_length = 64
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
[lory]
experts = 3
segment_tokens = 8
layers = "1"
train_steps = 40
"""
PHENOMENA = ["form", "number", "order"]
WORDS = ["ka", "tomi", "über", "sela", "нет", "rumba", "14", "π", "ona", "light", "x", "日本"]
# As lm_eval's own YAMLs of such tasks: copa, winogrande, lambada_openai, blimp.
CHOICES = {"doc_to_choice": "{{choices}}", "doc_to_target": "answer",
           "output_type": "multiple_choice", "metrics": ["acc", "acc_norm"]}
CONTEXTS = {"doc_to_text": "answer", "doc_to_choice": "asked", "doc_to_target": "continuation",
            "output_type": "multiple_choice", "metrics": ["acc", "acc_norm"]}
TARGET = {"doc_to_target": "{{' ' + target}}", "output_type": "loglikelihood",
          "metrics": ["acc", "perplexity"]}
PAIR = {"doc_to_text": "", "doc_to_choice": "{{[good, bad]}}", "doc_to_target": 0,
        "output_type": "multiple_choice", "metrics": ["acc"], "num_fewshot": 0}
PROMPTS = {"plain": "%s", "question": "Question: %s\nAnswer:"}
TASKS = ["quiz", "cups", "words"]


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


# Of every kind by turns; with `most` words, some are longer than what the models read.
def context(source, i, most):
    return [lambda: "", lambda: sentence(source), lambda: sentence(source) + "   ",
            lambda: sentence(source, most), lambda: sentence(source) + " \u3000\n",
            lambda: "</s>" + sentence(source), lambda: sentence(source, most) + "\t"][i % 7]()


def questions(source, count, most=60):
    for i in range(count):
        asked = context(source, i, most)
        choices = [sentence(source) for _ in range(source.randrange(2, 5))]
        yield {"context": asked, "choices": choices, "answer": source.randrange(len(choices))}


# lm_eval reads `asked` and `continuation`, we the rest.
def cups(source, count, prompt, most=60):
    for i in range(count):
        contexts = ["the " + context(source, i + k, most) for k in range(source.randrange(2, 4))]
        choice = sentence(source)
        yield {"context": contexts, "choices": [choice], "answer": source.randrange(len(contexts)),
               "asked": [PROMPTS[prompt] % text for text in contexts], "continuation": choice}


# Every other one is the same, and so its own example, if it is only looked at where it stands.
def words(source, count, most=60):
    for i in range(count):
        yield {"context": context(source, i, most) if i % 2 else "sela x",
               "target": sentence(source, 2) if i % 2 else "ona"}


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
        run("export", cls.trained, "--out", cls.out, "--merge-for", path("corpus.jsonl"))
        os.mkdir(path("quiz"))
        cls.quiz = write_lines(path("quiz/items.jsonl"), questions(source, 75))
        cls.grammar = write_lines(path("grammar.jsonl"), pairs(source, 40))
        cls.words = write_lines(path("words.jsonl"), words(source, 75))
        cls.cups = {prompt: write_lines(path(prompt + "/cups.jsonl"), cups(source, 60, prompt))
                    for prompt in PROMPTS if not os.mkdir(path(prompt))}
        cls.examples = {
            prompt: [write_lines(path(prompt + "/quiz-train.jsonl"), questions(source, 30, 8)),
                     write_lines(path(prompt + "/cups-train.jsonl"), cups(source, 20, prompt, 8)),
                     write_lines(path(prompt + "/words-train.jsonl"), words(source, 90, 8))]
            for prompt in PROMPTS}

    def test_every_model_loads(self):
        models = ["baselines/dense", "experts/0", "experts/1", "lory", "lory-merged",
                  "routers/0", "routers/1"]
        with open(os.path.join(self.out, "mixture.json"), encoding="utf-8") as file:
            self.assertEqual(sorted(json.load(file)["models"]), models)
        for name in models:
            folder = os.path.join(self.out, name)
            trust = {"trust_remote_code": name == "lory"}
            self.assertEqual(len(AutoTokenizer.from_pretrained(folder, **trust)), 340)
            model = AutoModelForCausalLM.from_pretrained(folder, **trust)
            self.assertEqual(model.config.vocab_size, 340)

    # What it was merged for, it reads about as well as the model that merges anew.
    @torch.no_grad()
    def test_merged_for_a_text_a_model_is_plain(self):
        def loss(name):
            folder = os.path.join(self.out, name)
            trust = {"trust_remote_code": name == "lory"}
            model = AutoModelForCausalLM.from_pretrained(folder, **trust)
            with open(path("corpus.jsonl"), encoding="utf-8") as file:
                texts = [json.loads(line)["text"] for line in file]
            tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
            ids = [i for text in texts for i in [*tokenizer(text)["input_ids"], 2]]
            rows = torch.tensor(ids[:len(ids) // 64 * 64]).view(-1, 64)
            return type(model).__name__, model(rows, labels=rows).loss.item()

        with open(os.path.join(self.out, "mixture.json"), encoding="utf-8") as file:
            (weights,) = json.load(file)["merged"]["lory-merged"]["weights"]
        self.assertEqual(len(weights), 3)
        self.assertAlmostEqual(sum(weights), 1, 6)
        self.assertGreater(max(weights) - min(weights), 1e-3)  # or this would show little
        (_, whole), (kind, merged) = loss("lory"), loss("lory-merged")
        self.assertEqual(kind, "LlamaForCausalLM")
        print(f"perplexity {math.exp(whole):.4f}, merged for the text {math.exp(merged):.4f}")
        self.assertAlmostEqual(whole, merged, delta=0.01)
        short = write_lines(path("short.jsonl"), [{"text": "ka tomi"}])
        refused = subprocess.run([BINARY, "export", self.trained, "--out", path("refused"),
                                  "--merge-for", short], capture_output=True, text=True)
        self.assertIn("less than one sequence of 64 tokens", refused.stderr)
        self.assertFalse(os.path.exists(path("refused")))

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
        ours = json.loads(run("generate", self.trained, "--model", "lory", "--merge", "segments",
                              "--temperature", "0", "--max-new-tokens", "40", "--json"))
        lory = AutoModelForCausalLM.from_pretrained(os.path.join(self.out, "lory"),
                                                    trust_remote_code=True)
        text = lory.generate(max_new_tokens=40, do_sample=False)[0]
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

    # The tasks as a user of lm_eval has them: a file and a YAML each, a group for the pairs. Their
    # examples come from files of their own, or else from the tasks themselves.
    def write_yamls(self, name, prompt, examples):
        folder = path("tasks-" + name)
        os.mkdir(folder)

        def write(task, fields):
            with open(os.path.join(folder, task + ".yaml"), "w", encoding="utf-8") as file:
                json.dump(fields, file)  # every JSON text is YAML

        def write_task(task, file, kind, train=None):
            fields = {"task": task, "dataset_path": "json", "test_split": "test",
                      "dataset_kwargs": {"data_files": {"test": file}}, "metadata": {"version": 1},
                      "doc_to_text": PROMPTS[prompt] % "{{context}}", "fewshot_split": "test",
                      **kind}
            if train:
                fields["dataset_kwargs"]["data_files"]["train"] = train
                fields["fewshot_split"] = "train"
            fields["metric_list"] = [
                {"metric": metric, "higher_is_better": metric != "perplexity",
                 "aggregation": "perplexity" if metric == "perplexity" else "mean"}
                for metric in fields.pop("metrics")]
            write(task, fields)

        trains = examples or [None] * 3
        write_task("quiz", self.quiz, CHOICES, trains[0])
        write_task("cups", self.cups[prompt], CONTEXTS, trains[1])
        write_task("words", self.words, TARGET, trains[2])
        with open(self.grammar, encoding="utf-8") as file:
            items = [json.loads(line) for line in file]
        for phenomenon in PHENOMENA:
            file = write_lines(os.path.join(folder, phenomenon + ".jsonl"),
                               [item for item in items if item["phenomenon"] == phenomenon])
            write_task("grammar_" + phenomenon, file, PAIR)
        write("group", {"group": "grammar", "task": ["grammar_" + name for name in PHENOMENA],
                        "metadata": {"version": 1}, "aggregate_metric_list": [
                            {"metric": "acc", "aggregation": "mean", "weight_by_size": False}]})
        return TaskManager(include_path=folder, include_defaults=False)

    # Results, and the samples of each task in the order of its file.
    def lm_eval(self, name, tasks, fewshot, resamples):
        model = HFLM(pretrained=os.path.join(self.out, name), device="cpu", dtype="float32",
                     batch_size=8, trust_remote_code=name == "lory")
        results = lm_eval.simple_evaluate(model=model, tasks=[*TASKS, "grammar"], log_samples=True,
                                          task_manager=tasks, bootstrap_iters=resamples, **fewshot)
        return results, {task: sorted(results["samples"][task], key=lambda item: item["doc_id"])
                         for task in TASKS}

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

    def check_mixture(self, ours, tasks, fewshot):
        answers, scores = [], []
        for expert in "01":
            answers.append(self.lm_eval("experts/" + expert, tasks, fewshot, 0)[1])
            folder = os.path.join(self.out, "routers", expert)
            router = AutoModelForCausalLM.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            scores.append({task: [self.router_score(router, tokenizer, item) for item in items]
                           for task, items in answers[0].items()})
        for task in TASKS:
            experts = [int(second > first) for first, second in zip(*(of[task] for of in scores))]
            self.assertEqual(len(set(experts)), 2)  # or this would show little
            self.assertAlmostEqual(ours["expert_shares"][task][1], sum(experts) / len(experts), 4)
            results = ours["results"][task]
            for metric in ["acc", "acc_norm", "perplexity"]:
                if metric + ",none" not in results:
                    continue
                values = [answers[expert][task][item][metric]
                          for item, expert in enumerate(experts)]
                mean = sum(values) / len(values)
                if metric == "perplexity":
                    self.assertAlmostEqual(results["perplexity,none"] * math.exp(mean), 1, 3)
                else:
                    self.assertAlmostEqual(results[metric + ",none"], mean, 4, task)

    def compare(self, name, prompt, fewshot=None, examples=None, others=()):
        fewshot = fewshot or {}
        options = ["--fewshot", str(fewshot["num_fewshot"]),
                   "--fewshot-seed", str(fewshot["fewshot_random_seed"])] if fewshot else []
        options += ["--fewshot-file", *examples] if examples else []
        run("tasks", path("experiment.toml"), "--out", self.trained, "--task", self.quiz,
            self.cups[prompt], self.words, self.grammar, "--prompt", prompt, *options)
        with open(os.path.join(self.trained, "tasks.json"), encoding="utf-8") as file:
            models = json.load(file)["models"]
        tasks = self.write_yamls(name, prompt, examples)
        self.compare_model("baselines/dense", models["dense"], tasks, fewshot)
        for other in others:
            self.compare_model(other, models[other], tasks, fewshot)
        return models["mixture"], tasks, fewshot

    def compare_model(self, name, ours, tasks, fewshot):
        theirs, samples = self.lm_eval(name, tasks, fewshot, 100000)
        for task, values in ours["results"].items():
            for key, value in values.items():
                if key.startswith("acc"):
                    self.assertAlmostEqual(value, theirs["results"][task][key], 4, (task, key))
        self.assertTrue(0 < ours["results"]["words"]["acc,none"] < 1)  # or it would show little
        self.assertEqual(ours["higher_is_better"]["words"], theirs["higher_is_better"]["words"])
        for key in ["perplexity,none", "perplexity_stderr,none"]:  # large ones have more digits
            value, expected = (of["results"]["words"].pop(key) for of in (ours, theirs))
            self.assertAlmostEqual(value / expected, 1, 3, key)
        self.assertEqual(make_table(ours), make_table(theirs))
        self.assertEqual(make_table(ours, "groups"), make_table(theirs, "groups"))

        for task in TASKS:
            found = glob.glob(os.path.join(self.trained, "tasks", task + "-*",
                                           name.replace("/", "-") + ".json"))
            found = [file for file in found if "-by-prompt" not in file]  # asked once more
            with open(max(found, key=os.path.getmtime), encoding="utf-8") as file:
                scores = json.load(file)["loglikelihoods"]
            expected = [float(answer[0][0]) for item in samples[task] for answer in item["resps"]]
            self.assertEqual(len(scores), len(expected))
            for score, value in zip(scores, expected):
                self.assertAlmostEqual(score, value, delta=1e-3)

    def test_plain(self):
        self.check_mixture(*self.compare("plain", "plain", others=["lory"]))

    def test_question(self):
        self.compare("question", "question")

    def test_examples_of_the_same_file(self):
        self.compare("own", "question", {"num_fewshot": 2, "fewshot_random_seed": 1234})

    def test_examples_of_other_files(self):
        fewshot = {"num_fewshot": 3, "fewshot_random_seed": 7}
        self.check_mixture(*self.compare("other", "plain", fewshot, self.examples["plain"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of contexts that are cut
    try:
        unittest.main()
    finally:
        shutil.rmtree(FOLDER)
