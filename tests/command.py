"""Runs the command line in a folder with checkpoints."""

import contextlib
import os
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import swa_tf
from swa_tf import average_checkpoints_main
from tests import checkpoint_files
from tests.checkpoint_files import OBJECT

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIKE = {"w": np.float32(0)}


def write_weight(name, value, form=OBJECT):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    path = name + checkpoint_files.suffix(form)
    checkpoint_files.write(form, path, {"w": np.float32(value)})
    return path


def write_snapshots(widths=(0.05, 0.1), n_models=80, every=10):
    """Snapshots of two averages of the weights 1, 2, 3, ... in `snapshots`."""
    weight = tf.Variable(0.0)
    averages = [swa_tf.PowerFunctionAverage(width) for width in widths]
    for step in range(1, n_models + 1):
        weight.assign(step)
        for average in averages:
            average.apply([weight])
        for average in averages if step % every == 0 else ():
            path = f"snapshots/{average.relative_width}/ckpt-{step}"
            with swa_tf.averaged_weights(average, [weight]):
                tf.train.Checkpoint(w=weight, average=average).write(path)


def read_weight(path, form=OBJECT):
    return float(checkpoint_files.read(form, str(path), LIKE)["w"])


def files_here():
    """All that is below the working directory, hidden files too."""
    return sorted(map(str, pathlib.Path().rglob("*")))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for number in (1, 2, 10):
        write_weight(str(folder / f"ckpt-{number}"), number)
    return folder


@pytest.fixture
def run(written, tmp_path, monkeypatch):
    """A working directory with `run/ckpt-1`, 2 and 10 of these weights."""
    shutil.copytree(written, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return [f"run/ckpt-{number}" for number in (1, 2, 10)]


class Ran:
    """The outcome of a command: `status`, `out`, `err`, and table rows."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err
        rows = [line.strip("│ ").split("│") for line in out.splitlines()]
        self.rows = [[c.strip() for c in row] for row in rows if len(row) > 1]


@pytest.fixture
def command(capsys):
    """Runs a command line in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def run_command(*arguments):
        capsys.readouterr()
        with flagsaver.flagsaver():
            given = flags.FLAGS(["swa-average-checkpoints", *arguments])
            status = average_checkpoints_main.main(given)
        return Ran(status, *capsys.readouterr())

    yield run_command
    signal.signal(signal.SIGTERM, handler)


def assert_fails(ran, message):
    """An error that says so, and nothing else."""
    assert ran.status == 1
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


@contextlib.contextmanager
def metrics_module(code):
    """A module `my_metrics` in the working directory."""
    pathlib.Path("my_metrics.py").write_text(
        "import os, signal\n"
        "import numpy as np\n"
        "from tests import checkpoint_files\n\n"
        "def weight(path):\n"
        "    like = {'w': np.float32(0)}\n"
        "    read = checkpoint_files.read\n"
        "    return float(read(checkpoint_files.OBJECT, path, like)['w'])\n\n"
        + code
    )
    try:
        yield
    finally:
        sys.modules.pop("my_metrics", None)
