"""slurm/submit and the batch files in a real Slurm: whatever happens to a run's jobs, it ends with
the bytes of a run that nothing happened to. CTest says where the binary is.

Every case begins with the finished, undisturbed run less what it is to make anew.
"""
import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

from one_node_slurm import OneNodeSlurm, missing_programs

SUBMIT = os.path.join(os.environ["SMALLTALK_SOURCE_DIR"], "slurm", "submit")
SITE = """\
SMALLTALK_SBATCH=(--ntasks-per-node=1)
SMALLTALK_SBATCH_route=(--ntasks-per-node=2)
SMALLTALK_SBATCH_shard=(--ntasks-per-node=2)
SMALLTALK_PARTS=3
"""
# Routers and experts take seconds, long enough to be met in the middle.
EXPERIMENT = """\
name = "slurm"
[data]
train = ["train.jsonl"]
validation = ["heldout.jsonl"]
test = ["heldout.jsonl"]
vocab_size = 300
seq_length = 32
[mixture]
experts = 2
prefix_tokens = 8
rounds = 60
sequences_per_round = 256
[router]
hidden_size = 8
num_layers = 1
num_heads = 1
batch_size = 8
lr = 1e-2
lr_decay = "constant"
[expert]
hidden_size = 16
num_layers = 1
num_heads = 2
train_steps = 6000
batch_size = 8
lr = 1e-2
save_interval = 200
log_interval = 200
[baselines]
dense = false
dense_large_batch = false
random_shards = true
"""


def write_corpus(path, documents):
    """Two made-up languages."""
    source = random.Random(os.path.basename(path))
    languages = [["".join(source.choices(alphabet, k=source.randint(3, 6))) for _ in range(50)]
                 for alphabet in ("abcdefg", "mnopqrs")]
    with open(path, "w") as file:
        for _ in range(documents):
            words = source.choices(source.choice(languages), k=40)
            file.write(json.dumps({"text": " ".join(words)}) + "\n")


def read(path):
    with open(path, "rb") as file:
        return file.read()


class SlurmTest(unittest.TestCase):
    folder = slurm = run_name = None

    @classmethod
    def setUpClass(cls):
        """The undisturbed run."""
        for name, content in (("experiment.toml", EXPERIMENT), ("site.sh", SITE)):
            with open(os.path.join(cls.folder, name), "w") as file:
                file.write(content)
        write_corpus(os.path.join(cls.folder, "train.jsonl"), 1000)
        write_corpus(os.path.join(cls.folder, "heldout.jsonl"), 100)
        cls.first_submission = cls.submit("undisturbed")
        cls.second_submission = cls.submit("undisturbed")
        cls.wait_for_queue()

    def tearDown(self):
        if self.slurm.run("squeue", "-h"):
            self.slurm.run("scancel", "--user", str(os.getuid()))
            self.wait_for_queue()
        self.resume_node()

    def resume_node(self):
        # Refused if there is nothing to resume from.
        self.slurm.run("scontrol", "update", "nodename=n1", "state=resume", check=False)

    @classmethod
    def submit(cls, run, *more, environment=None):
        return cls.slurm.run(SUBMIT, "experiment.toml", run, "--site", "site.sh", *more,
                             cwd=cls.folder, env=environment or {})

    @classmethod
    def wait_for_queue(cls):
        """As an administrator: Slurm holds a job that came back to a node where it still died."""
        def is_empty():
            queue = cls.slurm.run("squeue", "-h", "-o", "%i %r").splitlines()
            for line in queue:
                if "requeued held" in line:
                    cls.slurm.run("scontrol", "release", line.split()[0], check=False)
            return not queue
        cls.slurm.wait_for(is_empty, "an empty queue", 240)

    @classmethod
    def wait_for(cls, condition, what):
        return cls.slurm.wait_for(condition, what)

    def path(self, *names, run=None):
        return os.path.join(self.folder, run or self.run_name, *names)

    def begin(self, name, without):
        """A copy of the finished run that lacks some of it."""
        self.run_name = name
        shutil.copytree(self.path(run="undisturbed"), self.path(), symlinks=True)
        for pattern in [*without, "slurm", "queue", "results.json", "report.html"]:
            found = glob.glob(self.path(pattern))
            self.assertTrue(found, f"{pattern} is not in the run")
            for path in found:
                shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)

    def begin_before_expert(self, name):
        self.begin(name, ["experts/0", "evaluation/*/experts-0.h5"])

    def status(self, run=None):
        return json.loads(self.slurm.run(os.environ["SMALLTALK_BINARY"], "status",
                                         self.path(run=run), "--json", cwd=self.folder))

    def job_of(self, stage):
        """The id of the stage's first job in the queue that runs."""
        def find():
            for line in self.slurm.run("squeue", "-h", "-r", "-t", "R", "-o", "%i %j").splitlines():
                job, name = line.split()
                if name == "smalltalk-" + stage:
                    return job
        return self.wait_for(find, f"a running job of {stage}")

    def stop_in_the_middle(self, stage, pattern, end):
        """Waits for a file of the stage and holds its ranks there, until Slurm sends them SIGCONT
        on their way to what is to come. The id of its job."""
        self.wait_for(lambda: glob.glob(self.path(pattern)), pattern)
        job = self.job_of(stage)
        self.slurm.run("scancel", "--signal=STOP", job)
        self.assertFalse(os.path.exists(self.path(end)), f"{stage} was too quick")
        return job

    def stop_expert(self):
        return self.stop_in_the_middle("train", "experts/0/checkpoints/step-*",
                                       "experts/0/training.json")

    def log_of(self, stage, run=None):
        return "".join(read(path).decode(errors="replace")
                       for path in sorted(glob.glob(self.path("slurm", stage + "-*.out", run=run))))

    def assert_complete(self, run=None):
        for stage in self.status(run)["stages"]:
            missing = sum(stage[state] for state in ("running", "waiting", "failed", "begun",
                                                     "missing"))
            self.assertEqual(missing, 0, f"{stage}\n{self.log_of(stage['stage'], run)}")

    def assert_undisturbed_bytes(self):
        """Weights, shards and results are those of the run that nothing happened to."""
        self.wait_for_queue()
        self.assert_complete()
        models = sorted(glob.glob("**/model.safetensors", root_dir=self.path(run="undisturbed"),
                                  recursive=True))
        self.assertEqual(len(models), 6)
        for model in models:
            self.assertEqual(read(self.path(model)), read(self.path(model, run="undisturbed")),
                             model)
        for dataset in ("/expert", "/offsets", "/sequences"):
            subprocess.run(["h5diff", self.path("shards.h5"),
                            self.path("shards.h5", run="undisturbed"), dataset], check=True)
        results = [json.loads(read(self.path("results.json", run=run)))
                   for run in (None, "undisturbed")]
        for each in results:  # what was sent is that of the last starts
            del each["seconds"], each["communication"]
        self.assertEqual(*results)

    def test_undisturbed(self):
        self.assert_complete("undisturbed")
        lines = self.first_submission.splitlines()
        self.assertEqual([line.split(":")[0] for line in lines],
                         ["prepare", "route", "shard", "train 0-1", "train 2-3", "evaluate 0-1",
                          "evaluate 2", "report"])
        self.assertIn("nothing to submit", self.second_submission)
        self.assertIn("nothing to submit", self.submit("undisturbed"))
        ledger = glob.glob(self.path("ledger", "*-rank-1.json", run="undisturbed"))
        self.assertEqual(len(ledger), 2, "route and shard ran with two ranks")

    def test_requeue_of_route(self):
        self.begin("route", ["routers", "rounds", "routing.jsonl", "shards*", "random_shards.h5",
                             "sharding.json", "scores"])
        submitted = self.submit("route")
        job = self.stop_in_the_middle("route", "rounds/round-003.h5", "rounds/round-060.h5")
        self.slurm.run("scontrol", "requeue", job)
        stage = self.status()["stages"][1]
        self.assertEqual((stage["stage"], stage["done"]), ("route", 0))
        self.assertRegex(stage["progress"], "^[1-9][0-9]* of 60 rounds$")
        self.assertEqual([line.split(":")[0] for line in submitted.splitlines()],
                         ["route", "shard", "report"])
        self.assert_undisturbed_bytes()
        self.assertIn("go on after", self.log_of("route"))

    def test_requeue_of_expert(self):
        self.begin_before_expert("requeue")
        self.submit("requeue")
        job = self.stop_expert()
        # A line that is not whole yet is none.
        with open(self.path("experts", "0", "metrics.jsonl"), "a") as file:
            file.write('{"step": 1, "throughput(tps)":')
        model = self.status()["models"][0]
        self.assertEqual((model["model"], model["state"], model["job"]),
                         ("experts/0", "running", job))
        self.assertGreater(model["step"], 0)
        self.assertEqual(model["steps"], 6000)
        self.slurm.run("scontrol", "requeue", job)
        self.assert_undisturbed_bytes()
        self.assertIn("goes on from step", self.log_of("train"))

    def test_signals(self):
        """Both that Slurm may send to the ranks as a warning: route by the one, then an expert by
        the other."""
        self.begin("signals", ["routers", "rounds", "routing.jsonl", "shards*", "random_shards.h5",
                               "sharding.json", "scores", "experts/0", "evaluation/*/experts-0.h5"])
        self.submit("signals")
        stops = {"route": lambda: self.stop_in_the_middle("route", "rounds/round-003.h5",
                                                          "rounds/round-060.h5"),
                 "train": self.stop_expert}
        for (stage, stop), signal_name in zip(stops.items(), ("USR1", "USR2")):
            job = stop()
            self.slurm.run("scancel", "--signal=" + signal_name, job)
            self.slurm.run("scancel", "--signal=CONT", job)
            self.wait_for(lambda: "requeueing job " + job in self.log_of(stage), "the requeue")
        self.assert_undisturbed_bytes()
        self.assertIn("everything is saved", self.log_of("route"))
        self.assertIn("goes on from step", self.log_of("train"))

    def test_sweep(self):
        """Runs of a sweep as an array: the tables are those of one process."""
        with open(os.path.join(self.folder, "sweep.toml"), "w") as file:
            file.write("""\
experiment = "experiment.toml"
set = ["expert.train_steps=50", "mixture.rounds=3", "baselines.random_shards=false"]
[[run]]
name = "two"
set = ["baselines.dense=true"]
[[run]]
name = "three"
set = ["mixture.experts=3"]
[[table]]
name = "all"
rows = [{ run = ["two", "three"] }]
reference = { run = "two", model = "dense" }
""")
        batch = [os.path.join(os.path.dirname(SUBMIT), "sweep.sbatch"), "sweep.toml", "array"]
        def sbatch(*options):
            return self.slurm.run("sbatch", "--parsable", "--output=sweep-%j.out", *options, *batch,
                                  cwd=self.folder,
                                  env={"SMALLTALK_SLURM": os.path.dirname(SUBMIT)}).strip()
        runs = sbatch("--array=0-1")
        sbatch("--dependency=afterok:" + runs)
        self.wait_for_queue()
        self.slurm.run(os.environ["SMALLTALK_BINARY"], "sweep", "sweep.toml", "--out", "alone",
                       cwd=self.folder)
        self.assertEqual(*(read(self.path("sweep.json", run=run)) for run in ("array", "alone")))

    def test_preemption(self):
        self.begin_before_expert("preemption")
        self.submit("preemption")
        self.stop_expert()
        self.slurm.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null",
                       "--wrap=true")
        self.assert_undisturbed_bytes()
        self.assertIn("goes on from step", self.log_of("train"))

    def test_cancelled_element(self):
        self.begin("cancelled", ["experts/*", "evaluation/*/experts-*.h5"])
        self.submit("cancelled")
        element = self.stop_expert()
        self.assertTrue(element.endswith("_0"))
        self.slurm.run("scancel", element)
        self.wait_for(
            lambda: element not in self.slurm.run("squeue", "-h", "-r", "-o", "%i").split(),
            "the end of the cancelled element")
        self.assertEqual([line.split(":")[0] for line in self.submit("cancelled").splitlines()],
                         ["train 0", "evaluate 0-1", "evaluate 2", "report"])
        self.assert_undisturbed_bytes()

    def test_node_down(self):
        self.begin_before_expert("node")
        self.submit("node")
        job = self.slurm.run("squeue", "-h", "-j", self.stop_expert(), "-o", "%A").strip()
        self.slurm.run("scontrol", "update", "nodename=n1", "state=down", "reason=test")
        self.wait_for(lambda: not self.slurm.run("squeue", "-h", "-t", "R,CG"), "the node's end")
        # A job that comes back while its first start still dies is not started, and the node is
        # drained.
        log = os.path.join(self.slurm.folder, "slurmd.log")
        for step in ("batch", "0"):
            done = f"[{job}.{step}] done with job".encode()
            self.wait_for(lambda: done in read(log), f"the end of step {step}")
        self.resume_node()
        self.assert_undisturbed_bytes()
        self.assertIn("goes on from step", self.log_of("train"))

    def test_walltime(self):
        """A minute, of which all but seconds are kept in reserve; after that an hour. Saving often
        makes the expert slower."""
        self.begin_before_expert("walltime")
        with open(self.path("site.sh"), "w") as file:
            file.write(SITE + "SMALLTALK_SBATCH_train=(--time=1)\n"
                       "SMALLTALK_OPTIONS_train=(--walltime-margin 56)\n")
        self.submit("walltime", "--site", self.path("site.sh"), "--set", "expert.save_interval=3")
        job = self.job_of("train")
        self.wait_for(lambda: "requeueing job " + job in self.log_of("train"), "the first requeue")
        self.slurm.run("scontrol", "update", "jobid=" + job, "timelimit=60")
        self.assert_undisturbed_bytes()

    def test_guard(self):
        """A job that says 75 again and again and saves nothing is not started for ever."""
        self.begin_before_expert("guard")
        binary = self.path("stand-in")
        with open(binary, "w") as file:
            file.write('#!/bin/bash\n[ "$1" != train ] || exit 75\n'
                       f'exec {os.environ["SMALLTALK_BINARY"]} "$@"\n')
        os.chmod(binary, 0o755)
        self.submit("guard", environment={"SMALLTALK": binary, "SMALLTALK_TRIES": "2"})
        self.wait_for_queue()
        log = self.log_of("train")
        self.assertEqual(log.count("requeueing"), 1)
        self.assertIn("was started 2 times in a row without anything new", log)
        self.assertEqual(self.status()["models"][0]["state"], "failed")
        self.assertFalse(os.path.exists(self.path("results.json")))
        # Asked again, with a binary that works, it goes on.
        self.submit("guard")
        self.assert_undisturbed_bytes()


if __name__ == "__main__":
    missing = missing_programs()
    if missing:
        print(f"skipped: {', '.join(missing)} not installed: apt-get install slurm-wlm munge")
        sys.exit(77)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unittest swallows SystemExit
    os.environ.update({"SMALLTALK": os.environ["SMALLTALK_BINARY"],
                       "OMPI_MCA_mpi_yield_when_idle": "1",
                       "OMPI_MCA_btl_vader_single_copy_mechanism": "none"})
    # Arrays of two at most: the four models need two of them.
    with tempfile.TemporaryDirectory(prefix="smalltalk-test-slurm-") as SlurmTest.folder, \
            OneNodeSlurm(max_array_size=2) as SlurmTest.slurm:
        unittest.main()
