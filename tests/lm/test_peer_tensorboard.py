"""TensorBoard reads our event files. Skipped where it is not installed (ci/setup.sh --peers)."""

import os
import subprocess
import tempfile
import unittest

import peer_python

peer_python.require("tensorboard")

from tensorboard.backend.event_processing import event_accumulator  # noqa: E402

DUMP_EVENTS = os.path.join(os.environ["SMALLTALK_BUILD_DIR"], "tests/lm/dump_events")


class PeerTensorBoard(unittest.TestCase):
    def points(self, *starts):
        with tempfile.TemporaryDirectory() as folder:
            for start in starts:
                subprocess.run([DUMP_EVENTS, folder, *map(str, start)], check=True)
            events = event_accumulator.EventAccumulator(folder)
            events.Reload()
            self.assertEqual(events.file_version, 2.0)
            self.assertEqual(sorted(events.Tags()["scalars"]), ["loss", "mfu(%)"])
            return events.Scalars("loss"), events.Scalars("mfu(%)")

    def test_points(self):
        loss, mfu = self.points([0, 1, 100, 200])
        self.assertEqual([p.step for p in loss], [1, 100, 200])
        self.assertEqual([p.value for p in loss], [0.25, 25, 50])
        self.assertEqual([p.wall_time for p in mfu], [1.7e9 + step for step in (1, 100, 200)])

    def test_a_resumed_run_replaces_the_steps_done_again(self):
        loss, _ = self.points([0, 1, 100, 200, 300], [200, 300, 400])
        self.assertEqual([p.step for p in loss], [1, 100, 200, 300, 400])
        self.assertEqual([p.value for p in loss], [0.25, 25, 50, 275, 300])


if __name__ == "__main__":
    unittest.main()
