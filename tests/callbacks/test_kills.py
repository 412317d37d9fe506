"""Trainings that are killed, once or twice, and end as if they had not been."""

import collections
import os
import random
import signal
import time

import numpy as np
import pytest

from swa_tf.support import compat
from tests import programs, resumable
from tests.fitting import exhaustive

# Killed as it writes its first backup, or any one's epoch after the weights,
# Keras 3 cannot go on, or trains an epoch twice, of which `SWACallback` warns.
# The backups of tf_keras and Keras 2 are whole or absent.
CUT_SHORT = ("OSError: Unable to", "JSONDecodeError", "trained twice")


class Trainings:
    """Trainings of one kind, compared with one that nobody interrupts."""

    def __init__(self, way, folder):
        self._way = way
        self._folder = folder
        self.hit = collections.Counter()
        whole = self._new_folder()
        done = self._start(whole).wait()
        assert done.returncode == 0, done.stderr
        self._values, self._file = ending(whole)
        self._n_marks, _ = resumable.last_mark(whole / "marks")

    def kill_and_resume(self, share, rng):
        """Kills at about this share of the training, and maybe once more."""
        folder = self._new_folder()
        moments = [share * self._n_marks]
        if rng.random() < 0.3:
            moments.append(rng.uniform(0.0, 0.5) * self._n_marks)
        for moment in moments:
            self.hit[self._killed(folder, moment, rng.uniform(0.0, 0.01))] += 1
            averaged = folder / "averaged.weights.h5"
            assert not averaged.exists() or averaged.read_bytes() == self._file
        done = self._start(folder).wait()
        keras_3 = self._way == "backup" and compat.KERAS_3
        if keras_3 and any(said in done.stderr for said in CUT_SHORT):
            self.hit["cut short"] += 1
            return
        assert done.returncode == 0, done.stderr
        values, file = ending(folder)
        assert values.keys() == self._values.keys()
        figures = {row[0]: row for row in self._values["figures"]}
        for row in values.pop("figures"):  # of the epochs since the last kill
            np.testing.assert_array_equal(row, figures[row[0]])
        for name, value in values.items():
            np.testing.assert_array_equal(value, self._values[name])
        assert file == self._file

    def _new_folder(self):
        folder = self._folder / f"{self._way}-{len(os.listdir(self._folder))}"
        folder.mkdir()
        return folder

    def _start(self, folder):
        (folder / "marks").unlink(missing_ok=True)
        return programs.Program([self._way, folder], module="tests.resumable")

    def _killed(self, folder, moment, delay):
        """Kills a training so many seconds after its mark of this number.

        Returns:
            What it was doing, or "nothing" if it had come to its end.
        """
        program = self._start(folder)
        marks, deadline = folder / "marks", time.monotonic() + 60
        while resumable.last_mark(marks)[0] < moment:
            assert time.monotonic() < deadline
            if (folder / "ending.npz").exists():
                break
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(program.pid, signal.SIGKILL)
        if program.wait().returncode == 0:
            return "nothing"
        return resumable.last_mark(marks)[1] or "to start"


def ending(folder):
    """Returns the values that a training ends with, and the file it wrote."""
    with np.load(folder / "ending.npz") as arrays:
        values = {name: arrays[name] for name in arrays}
    averaged = folder / "averaged.weights.h5"
    return values, averaged.read_bytes() if averaged.exists() else None


def kill(trainings, times, seed):
    rng = random.Random(seed)
    for i in range(times):
        trainings.kill_and_resume((i + rng.random()) / times, rng)
    print(f"killed while about to: {dict(trainings.hit)}")
    kills = sum(trainings.hit.values()) - trainings.hit["cut short"]
    assert kills >= times
    assert trainings.hit["nothing"] <= 0.1 * kills


FIT = "manager" if compat.KERAS_3 else "backup"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["loop", FIT])
def test_killed_once(way, tmp_path):
    kill(Trainings(way, tmp_path), 1, seed=5)  # past the middle


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "times"),
    [
        exhaustive("loop", 7),
        exhaustive("manager", 7),
        ("backup", 5),
        exhaustive("loop", 26),
        exhaustive("manager", 24),
        exhaustive("backup", 8),
    ],
)
def test_killed_at_random_moments(way, times, tmp_path):
    trainings = Trainings(way, tmp_path)
    kill(trainings, times, seed=0)
    assert len(trainings.hit) >= 2
