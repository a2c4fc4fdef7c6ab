"""What slurm/submit and `smalltalk status` make of a run folder and of a queue, without a Slurm."""
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import unittest

SOURCE = os.environ["SMALLTALK_SOURCE_DIR"]
BINARY = os.environ["SMALLTALK_BINARY"]
SUBMIT = os.path.join(SOURCE, "slurm", "submit")
EXPERIMENT = os.path.join(SOURCE, "jobs", "tiny.toml")  # 4 experts and 6 baselines
STEP = {"step": 20, "loss_metrics/global_avg_loss": 2.5, "throughput(tps)": 64 * 16 / 3600}


class SubmitTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="smalltalk-test-submit-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.run_folder = os.path.join(self.folder, "run")

    def write(self, name, text=""):
        path = os.path.join(self.run_folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)

    def status(self, *arguments, queue=""):
        done = subprocess.run([BINARY, "status", self.run_folder, "--experiment", EXPERIMENT,
                               "--queue", "-", *arguments],
                              input=queue, text=True, capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def rows(self, *arguments, queue=""):
        """(stage, index) -> [name, state, job, progress]"""
        lines = self.status("--tsv", *arguments, queue=queue).splitlines()
        return {(stage, int(index)): rest
                for stage, index, *rest in (line.split("\t") for line in lines)}

    def submit(self, *arguments, programs=()):
        """With nothing but these programs on the PATH."""
        path = os.path.join(self.folder, "bin")
        os.makedirs(path, exist_ok=True)
        for name in ("awk", "bash", "cat", "dirname", "env", "realpath", "sed", "sort", "wc"):
            if not os.path.exists(os.path.join(path, name)):
                os.symlink(shutil.which(name), os.path.join(path, name))
        return subprocess.run([SUBMIT, EXPERIMENT, self.run_folder, *arguments], text=True,
                              capture_output=True,
                              env={**os.environ, "PATH": path, "SMALLTALK": BINARY})

    def test_dry_run_prints_the_chain(self):
        site = os.path.join(self.folder, "site.sh")
        with open(site, "w") as file:
            file.write("SMALLTALK_SBATCH=(--account=a)\nSMALLTALK_SBATCH_route=(--nodes=4)\n"
                       "SMALLTALK_OPTIONS_shard=(--method margin)\nSMALLTALK_PARALLEL=3\n"
                       "SMALLTALK_PARTS=2\n")
        done = self.submit("--dry-run", "--site", site)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), 6)
        stages = ["prepare", "route", "shard", "train", "evaluate", "report"]
        for line, stage, before in zip(lines, stages, ["", *stages]):
            self.assertIn(f"/{stage}.sbatch'", line)
            self.assertIn("'--account=a'", line)
            self.assertEqual("'--nodes=4'" in line, stage == "route")
            self.assertEqual("'--method' 'margin'" in line, stage == "shard")
            self.assertEqual(f"'--dependency=afterok:${before}'" in line, before != "")
        self.assertIn("'--array=0-9%3'", lines[3])
        self.assertIn("'--array=0-1%3'", lines[4])
        self.assertFalse(os.path.exists(self.run_folder))

    def test_documents_are_put_in_order_behind_prepare(self):
        done = self.submit("--dry-run", "--set", "data.order=similar")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), 7)
        self.assertIn("/order.sbatch'", lines[1])
        self.assertIn("'--dependency=afterok:$prepare'", lines[1])
        self.assertIn("'--dependency=afterok:$order'", lines[2])

    def test_a_run_may_have_any_name(self):
        self.run_folder = os.path.join(self.folder, "lr 50%j 'of' %x\\y")
        done = self.submit("--dry-run")
        self.assertEqual(done.returncode, 0, done.stderr)
        for line in done.stdout.splitlines():
            words = shlex.split(line)
            output = next(word for word in words if word.startswith("--output="))
            # Slurm takes %% for a %; what it knows otherwise are the job's numbers.
            self.assertRegex(output.replace("%%", "").replace(self.folder, ""),
                             r"^--output=/lr 50j 'of' x\\y/slurm/[a-z]+-%(j|A_%a)\.out$")
            self.assertIn(self.run_folder, words)

    def test_without_slurm_nothing_is_begun(self):
        done = self.submit()
        self.assertEqual(done.returncode, 1)
        self.assertIn("no squeue here", done.stderr)
        self.assertFalse(os.path.exists(self.run_folder))

    def test_only_what_is_missing(self):
        for expert in (0, 2, 3):
            self.write(f"experts/{expert}/training.json", "{}")
        done = self.submit("--dry-run")
        self.assertIn("'--array=1,4-9'", done.stdout)

    def test_one_job(self):
        done = self.submit("--dry-run", "--one-job")
        self.assertEqual(done.stdout.count("'sbatch'"), 1)
        self.assertIn("/launch.sbatch'", done.stdout)

    def test_states(self):
        self.write("slurm/id", "abc\n")
        self.write("slurm/train-5", "1 0123456789abcdef exit 1\n")
        self.write("slurm/train-6", "1 0123456789abcdef\n")
        self.write("experts/3/config.json")
        self.write("experts/0/training.json", "{}")
        queue = ("7|N/A|COMPLETING|None|smalltalk:abc:shard:0:1\n"
                 "8_1|1|RUNNING|None|smalltalk:abc:train:0:1\n"
                 "9_0|0|PENDING|Dependency|smalltalk:abc:train:2:1\n"
                 "10_3|3|RUNNING|None|smalltalk:other:train:0:1\n"
                 "11|N/A|RUNNING|None|a comment\n"
                 "12|N/A\n")
        rows = self.rows(queue=queue)
        self.assertEqual(rows["shard", 0][1:3], ["running", "7"])
        self.assertEqual(rows["train", 0][1:3], ["done", "-"])
        self.assertEqual(rows["train", 1][1:3], ["running", "8_1"])
        self.assertEqual(rows["train", 2][1:3], ["waiting", "9_0"])
        self.assertEqual(rows["train", 3][1:3], ["begun", "-"])
        self.assertEqual(rows["train", 5][:2], ["baselines/dense_large_batch", "failed"])
        self.assertEqual(rows["train", 6][1:3], ["missing", "-"])
        self.assertIn("train experts/2 waits as job 9_0: Dependency", self.status(queue=queue))

    def test_one_job_covers_all_stages(self):
        self.write("slurm/id", "abc\n")
        self.write("experts/0/training.json", "{}")
        rows = self.rows(queue="5|N/A|PENDING|Priority|smalltalk:abc:launch:0:1\n")
        self.assertEqual({row[1] for key, row in rows.items() if key != ("train", 0)}, {"waiting"})
        self.assertEqual(rows["train", 0][1], "done")

    def test_a_queued_evaluation_keeps_its_parts(self):
        self.write("slurm/id", "abc\n")
        rows = self.rows("--parts", "5", queue="5_1|1|PENDING|None|smalltalk:abc:evaluate:0:2\n")
        parts = {key: row for key, row in rows.items() if key[0] == "evaluate"}
        self.assertEqual([row[1] for row in parts.values()], ["missing", "waiting"])
        self.assertEqual(len([key for key in self.rows("--parts", "5") if key[0] == "evaluate"]), 5)

    def test_cells_that_are_there_are_counted(self):
        def progress():
            stages = json.loads(self.status("--json", "--parts", "2"))["stages"]
            return next(row["progress"] for row in stages if row["stage"] == "evaluate")
        found, of = progress().split(" of ")
        self.assertEqual(found, "0")
        for cell in ("test/experts-0.h5", "test/experts-3.h5", "validation/experts-1.h5"):
            self.write("evaluation/" + cell, "x")
        self.assertEqual(progress(), "3 of " + of)

    def test_progress_is_what_can_be_gone_on_from(self):
        def progress():
            return self.rows("--stage", "train", "--index", "1")["train", 1][3]
        seen = [progress()]
        for name in ("checkpoints/step-00000010.safetensors", "config.json"):
            self.write("experts/1/" + name, "x")
            self.assertNotIn(progress(), seen, name)
            seen.append(progress())
        for name in ("metrics.jsonl", ".tmp-host-1-0-config.json", "tensorboard/events",
                     "../2/config.json", "../../slurm/train-1"):
            self.write("experts/1/" + name, "x")
            self.assertEqual(progress(), seen[-1], name)
        os.utime(os.path.join(self.run_folder, "experts/1/config.json"), (1, 1))
        self.assertEqual(progress(), seen[-1])
        self.write("experts/1/config.json", "grown")
        self.assertNotIn(progress(), seen)

    def test_figures_of_a_model(self):
        self.write("experts/1/metrics.jsonl", json.dumps(STEP) + "\n"
                   '{"step": 30, "outlier/loss": 1}\n{"step": 40, "throughput(tps)": \n')
        models = json.loads(self.status("--json"))["models"]
        one = models[1]
        self.assertEqual((one["step"], one["steps"], one["loss"]), (20, 60, 2.5))
        # 40 steps of 16 sequences of 64 tokens, at a step an hour.
        self.assertAlmostEqual(one["device_hours_left"], 40)
        self.assertAlmostEqual(models[0]["device_hours_left"], 60)
        dense = next(model for model in models if model["model"] == "baselines/dense")
        self.assertIsNone(dense["steps"])  # it depends on the tokens

    def test_another_experiment(self):
        self.write("experiment.toml")
        shutil.copy(EXPERIMENT, self.run_folder + "/experiment.toml")
        self.write("tokens/tokenizer.model")
        done = subprocess.run([BINARY, "status", self.run_folder, "--experiment", EXPERIMENT,
                               "--set", "seed=2"], text=True, capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)  # nothing is there that it would spoil
        self.write("routers/2/config.json")
        done = subprocess.run(done.args, text=True, capture_output=True)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\nseed +\d+ +2 +routers\n")


if __name__ == "__main__":
    unittest.main()
