"""Two processes on the loopback interface come out as one process does.

One run of two workers does all of it, since to start TensorFlow takes most of
the time: see `tests/distributed.py`. One of them is killed in the middle, and
both are started again from the last checkpoint.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from swa_tf import _compat
from tests import distributed
from tests.test_distribution import check, on_one

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKERS = 2
SECONDS = 240  # before the test gives up; 20 are usual

pytestmark = pytest.mark.slow

keras_2 = pytest.mark.skipif(
    _compat.KERAS_3, reason="`fit` of Keras 3 knows one process only"
)


def free_ports():
    sockets = [socket.socket() for _ in range(WORKERS)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(folder, attempt):
    """The workers, as processes that write to `folder`."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports()]}
    processes = []
    for index in range(WORKERS):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": cluster, "task": task})
        fits = "no" if _compat.KERAS_3 else "fit"
        with open(folder / f"log-{attempt}-{index}", "wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.distributed", folder, fits],
                    cwd=ROOT,
                    env={**os.environ, "TF_CONFIG": config},
                    stdout=log,
                    stderr=log,
                )
            )
    return processes


def finish(processes):
    """Waits for all, or for the first that fails; none is left running.

    Returns:
        The status of that one, or 0.
    """
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            statuses = [process.poll() for process in processes]
            failed = [status for status in statuses if status]
            if failed or None not in statuses:
                return (failed or [0])[0]
            time.sleep(0.05)
        return None
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two workers have left their results."""
    folder = tmp_path_factory.mktemp("workers")
    for attempt, status in enumerate([-signal.SIGKILL, 0]):
        if finish(start(folder, attempt)) != status:
            logs = sorted(folder.glob(f"log-{attempt}-*"))
            pytest.fail("\n".join(log.read_text()[-4000:] for log in logs))
    return folder


def results(folder, name):
    """What each worker found."""
    found = []
    for index in range(WORKERS):
        with np.load(folder / f"{name}-{index}.npz") as file:
            found.append(dict(file))
    return found


def test_is_what_one_process_finds(folder):
    for found in results(folder, "results"):
        check(found, on_one())


def test_workers_agree_to_the_bit(folder):
    first, second = results(folder, "results")
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


def test_the_second_run_went_on_from_the_checkpoint(folder):
    path = tf.train.latest_checkpoint(str(folder / "worker-0"))
    reader = tf.train.load_checkpoint(path)
    assert reader.get_tensor("epoch/.ATTRIBUTES/VARIABLE_VALUE") == 2
    assert results(folder, "results")[0]["n_models"][1] == distributed.EPOCHS


@keras_2
def test_fit_is_what_one_process_finds(folder):
    expected = distributed.fit(tf.distribute.get_strategy())
    for found in results(folder, "fit"):
        check(found, expected)
