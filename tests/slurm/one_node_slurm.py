"""A whole Slurm on the loopback: munged, slurmctld and a slurmd in a temporary folder.

    with OneNodeSlurm() as slurm:
        slurm.run("sbatch", "--parsable", "job.sbatch")

As a program it keeps one up for a command:  python3 one_node_slurm.py sinfo
"""
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

DAEMONS = ("munged", "mungekey", "slurmctld", "slurmd")
SBIN = "/usr/sbin:/sbin"

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
TmpFS={folder}/tmp
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdTimeout=300
MaxArraySize={max_array_size}
JobRequeue=1
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=1000
PartitionName=main Nodes=n1 Default=YES PriorityTier=1 GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=high Nodes=n1 PriorityTier=10 MaxTime=INFINITE State=UP
"""


def missing_programs():
    path = os.environ.get("PATH", "") + ":" + SBIN
    return [name for name in DAEMONS if shutil.which(name, path=path) is None]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class OneNodeSlurm:
    def __init__(self, cpus=4, max_array_size=1001):
        self.cpus = cpus
        self.max_array_size = max_array_size
        self.daemons = []

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="smalltalk-slurm-")
        os.chmod(self.folder, 0o755)  # munge wants its socket to be reachable
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        configuration = os.path.join(self.folder, "slurm.conf")
        with open(configuration, "w") as file:
            file.write(CONFIGURATION.format(
                host=socket.gethostname().split(".")[0], folder=self.folder, ports=free_ports(2),
                user=subprocess.check_output(["id", "-un"], text=True).strip(),
                cpus=self.cpus, max_array_size=self.max_array_size))
        # tmp: PMIx refuses a folder that is there already, as after the end of another such Slurm
        # whose jobs had the same numbers.
        for name in ("state", "spool", "tmp"):
            os.mkdir(os.path.join(self.folder, name))
        self.environment = {**os.environ, "SLURM_CONF": configuration,
                            "PATH": os.environ["PATH"] + ":" + SBIN}
        key = os.path.join(self.folder, "munge.key")
        self.run("mungekey", "--create", "--keyfile=" + key)
        self.start_daemon("munged", "--foreground", "--force", "--key-file=" + key,
                          *(f"--{name}-file={self.folder}/munge.{name}"
                            for name in ("pid", "seed", "log")),
                          f"--socket={self.folder}/munge.socket")
        self.wait_for(lambda: os.path.exists(f"{self.folder}/munge.socket"), "munged")
        self.start_daemon("slurmctld", "-D", "-c", "-f", configuration)
        self.start_daemon("slurmd", "-D", "-f", configuration, "-N", "n1")
        self.wait_for(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T", check=False),
                      "the node")

    def start_daemon(self, *command):
        log = open(os.path.join(self.folder, command[0] + ".out"), "w")
        # A session of its own: slurmd's own children are in its process group.
        self.daemons.append(subprocess.Popen(command, stdout=log, stderr=log, env=self.environment,
                                             start_new_session=True))

    def __exit__(self, *_):
        if self.daemons[1:]:
            self.run("scancel", "--state=PENDING", "--user", str(os.getuid()), check=False)
            self.run("scancel", "--user", str(os.getuid()), check=False)
            self.wait_for(lambda: not self.run("squeue", "-h", check=False), "the queue",
                          must=False, seconds=15)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command, check=True, timeout=60, **more):
        """Standard output of a command that speaks to this Slurm."""
        done = subprocess.run(command, env={**self.environment, **more.pop("env", {})}, text=True,
                              capture_output=True, timeout=timeout, **more)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n"
                               f"{done.stdout}{done.stderr}")
        return done.stdout

    def wait_for(self, condition, what, seconds=120, must=True):
        """Waits until condition() is true and returns what it returned."""
        end = time.monotonic() + seconds
        while True:
            found = condition()
            if found or (time.monotonic() > end and not must):
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {seconds} s\n{self.logs()}")
            time.sleep(0.1)

    def logs(self):
        text = self.run("squeue", "--all", check=False) if self.daemons[1:] else ""
        for name in sorted(os.listdir(self.folder)):
            if name.endswith((".log", ".out")):
                with open(os.path.join(self.folder, name), errors="replace") as file:
                    text += f"--- {name}\n" + "".join(file.readlines()[-15:])
        return text


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with OneNodeSlurm() as slurm:
        sys.exit(subprocess.run(sys.argv[1:], env=slurm.environment).returncode)
