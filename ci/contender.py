"""A contender of a benchmark: a process that is warmed up once and then waits for its turns. It says
what it is, and answers each line of its input, a number of seconds or a word, by a line of JSON."""
import json
import os
import select
import subprocess
import tempfile


class Contender:
    def __init__(self, command, environment=None):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, text=True,
                                        env={**os.environ, **(environment or {})})

    def read(self, patience=None):
        """Its next answer, for which it has so many seconds."""
        if not select.select([self.process.stdout], [], [], patience)[0]:
            raise RuntimeError(f"it said nothing for {patience:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines()
            raise RuntimeError(said[-1] if said else "it ended without a word")
        return json.loads(line)

    def turn(self, asked, patience=None):
        try:
            print(asked, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has ended: read() says why
        return self.read(patience)

    def close(self):
        self.process.kill()
        self.process.wait()
